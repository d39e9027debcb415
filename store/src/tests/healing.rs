//! Damage that is repaired: what is lost is stored again by the next save that has it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use memsnap::Snapshot;
use rayon::prelude::*;

use super::{content, noise};
use crate::collect::pack_contents;
use crate::format::BLOCK;
use crate::index::Place;
use crate::sink::places;
use crate::{Collect, Depth, Error, Id, Repository};

fn new() -> (tempfile::TempDir, Repository) {
    let folder = tempfile::tempdir().unwrap();
    let repository = Repository::create(folder.path().join("repository")).unwrap();
    (folder, repository)
}

fn image(seeds: std::ops::Range<u64>) -> Snapshot {
    let bytes: Vec<u8> = seeds.flat_map(noise).collect();
    Snapshot::from_slice(&bytes).unwrap()
}

fn packs(repository: &Repository) -> Vec<PathBuf> {
    let folder = fs::read_dir(repository.path().join("packs")).unwrap();
    folder.map(|entry| entry.unwrap().path()).collect()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Changes the places of the blocks in the only pack of a repository, or removes some of them.
fn change_places(repository: &Repository, change: impl Fn(&Id, Place) -> Option<Place>) {
    let inner = &repository.inner;
    let packs = inner.read(|index| index.packs()).unwrap();
    let [(number, row)] = packs[..] else { panic!("the repository has {} packs", packs.len()) };
    let contents = pack_contents(inner, &row.id).unwrap();
    let entries = places(number, &contents).filter_map(|(hash, place)| Some((hash, change(&hash, place)?)));
    inner
        .change(|index| {
            index.remove_packs(&[number].into())?;
            index.add_packs(&[(number, row)], entries.collect())
        })
        .unwrap();
}

/// Returns a repository with one pack, in which a snapshot needs all blocks but the first one.
fn with_unneeded_block() -> (tempfile::TempDir, Repository) {
    let (folder, repository) = new();
    repository.save(&image(0..20)).name("all").run().unwrap();
    repository.save(&image(1..20)).name("rest").run().unwrap();
    repository.remove("all").unwrap();
    let collected = repository.collect(&Collect::new().grace(Duration::ZERO)).unwrap();
    assert_eq!((collected.manifests, collected.packs, collected.repacked), (1, 0, 0));
    (folder, repository)
}

/// A block that nothing needs may have no place in the index. The next save that has the block stores it again.
#[test]
fn a_block_without_a_place_is_stored_again() {
    let (_folder, repository) = with_unneeded_block();
    change_places(&repository, |hash, place| (*hash != Id::of(&noise(0))).then_some(place));
    assert_eq!(repository.verify(Depth::Data).unwrap().problems, [""; 0]);

    let again = repository.save(&image(0..20)).run().unwrap();
    assert_eq!(packs(&repository).len(), 2);
    assert_eq!(content(repository.load(again.id()).run().unwrap().snapshot()), content(&image(0..20)));
    assert_eq!(repository.verify(Depth::Data).unwrap().problems, [""; 0]);
}

/// A repair adds the places of all blocks. The next save uses the block in the old pack.
#[test]
fn a_repair_adds_places_that_are_missing() {
    let (_folder, mut repository) = with_unneeded_block();
    change_places(&repository, |hash, place| (*hash != Id::of(&noise(0))).then_some(place));
    let repaired = Repository::repair(repository.path()).unwrap();
    assert_eq!(repaired.problems, [""; 0]);
    repository = Repository::open(repository.path()).unwrap();

    let again = repository.save(&image(0..20)).run().unwrap();
    assert_eq!(packs(&repository).len(), 1);
    assert_eq!(content(repository.load(again.id()).run().unwrap().snapshot()), content(&image(0..20)));
}

/// A block that a snapshot needs must have a place. A save that stores the block again completes the snapshot.
#[test]
fn a_needed_block_without_a_place_is_damage() {
    let (_folder, repository) = with_unneeded_block();
    let lost = Id::of(&noise(7));
    change_places(&repository, |hash, place| (*hash != lost).then_some(place));
    let problems = repository.verify(Depth::Structure).unwrap().problems;
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains(&format!("its block {lost} is in no pack")), "{problems:?}");
    assert!(matches!(repository.load("rest").run(), Err(Error::Damaged { .. })));
    let collected = repository.collect(&Collect::new().grace(Duration::ZERO));
    assert!(matches!(collected, Err(Error::Damaged { .. })));

    repository.save(&image(7..8)).run().unwrap();
    assert_eq!(repository.verify(Depth::Data).unwrap().problems, [""; 0]);
    assert_eq!(content(repository.load("rest").run().unwrap().snapshot()), content(&image(1..20)));
}

/// A wrong place is damage, also if nothing needs the block: the next save that has the block would rely on the place.
#[test]
fn a_wrong_place_of_a_block_that_nothing_needs_is_damage() {
    let (_folder, repository) = with_unneeded_block();
    let wrong = Id::of(&noise(0));
    change_places(&repository, |hash, place| {
        Some(if *hash == wrong { Place { number: place.number + 1, ..place } } else { place })
    });
    let problems = repository.verify(Depth::Structure).unwrap().problems;
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains(&format!("the place of the block {wrong} is wrong")), "{problems:?}");
}

/// A damaged block stayed in the index after a repair. Saves found it there and did not store it again, so each later
/// snapshot that had the block was damaged too.
#[test]
fn a_damaged_block_is_stored_again() {
    let (_folder, mut repository) = new();
    let image = image(0..20);
    repository.save(&image).name("one").run().unwrap();
    flip(&packs(&repository)[0], 40 + 17 * BLOCK);
    assert_eq!(repository.verify(Depth::Data).unwrap().problems.len(), 1);
    assert!(matches!(repository.load("one").run(), Err(Error::Damaged { .. })));

    let repaired = Repository::repair(repository.path()).unwrap();
    assert_eq!((repaired.manifests, repaired.packs, repaired.problems.len()), (1, 1, 2), "{repaired:?}");
    repository = Repository::open(repository.path()).unwrap();
    assert!(matches!(repository.load("one").run(), Err(Error::Damaged { .. })));

    let again = repository.save(&image).run().unwrap();
    assert_eq!(content(repository.load(again.id()).run().unwrap().snapshot()), content(&image));
    assert_eq!(content(repository.load("one").run().unwrap().snapshot()), content(&image));
}

/// A save relied on blocks in a pack whose file was lost, and returned a snapshot that could not be loaded.
#[test]
fn blocks_of_a_lost_pack_are_stored_again() {
    let (_folder, repository) = new();
    let image = image(0..20);
    repository.save(&image).run().unwrap();
    for pack in packs(&repository) {
        fs::remove_file(pack).unwrap();
    }
    let again = repository.save(&image).run().unwrap();
    assert_eq!(content(repository.load(again.id()).run().unwrap().snapshot()), content(&image));
}

/// A repair left out a snapshot that lacked one block. The next collection deleted all other blocks of it.
#[test]
fn what_is_left_of_a_snapshot_is_not_collected() {
    let (_folder, mut repository) = new();
    repository.save(&image(0..20)).name("one").run().unwrap();
    flip(&packs(&repository)[0], 40 + 17 * BLOCK);
    Repository::repair(repository.path()).unwrap();
    repository = Repository::open(repository.path()).unwrap();

    let all = Collect::new().grace(Duration::ZERO);
    assert!(matches!(repository.collect(&all), Err(Error::Damaged { .. })));
    assert_eq!(packs(&repository).len(), 1);
    repository.remove("one").unwrap();
    repository.collect(&all).unwrap();
    assert_eq!(packs(&repository).len(), 0);
}

/// A pack or a manifest that cannot be read at all was deleted by the collection after a repair.
#[test]
fn unreadable_files_are_set_aside() {
    let (_folder, mut repository) = new();
    repository.save(&image(0..3)).name("one").run().unwrap();
    let pack = packs(&repository).remove(0);
    let len = usize::try_from(fs::metadata(&pack).unwrap().len()).unwrap();
    flip(&pack, len - 1);
    let repaired = Repository::repair(repository.path()).unwrap();
    assert_eq!((repaired.manifests, repaired.packs, repaired.problems.len()), (1, 0, 2), "{repaired:?}");
    repository = Repository::open(repository.path()).unwrap();
    repository.remove("one").unwrap();
    repository.collect(&Collect::new().grace(Duration::ZERO)).unwrap();
    let aside = fs::read_dir(repository.path().join("damaged")).unwrap();
    assert_eq!(aside.count(), 1);
}

/// A load opened a file for each pack, and failed at the limit of open files after some hundred saves.
#[test]
fn a_snapshot_in_many_packs_is_loaded() {
    let (_folder, repository) = new();
    let mut saved = repository.save(&Snapshot::zeroed(150 * BLOCK).unwrap()).run().unwrap();
    let root = saved.snapshot().clone();
    let mut view = root.view().unwrap();
    for block in 0..150 {
        view[block * BLOCK..][..BLOCK].copy_from_slice(&noise(block as u64));
        let taken = view.take_snapshot().unwrap();
        saved = repository.save(&taken).parent(&saved).run().unwrap();
    }
    assert_eq!(packs(&repository).len(), 150);
    assert_eq!(content(repository.load(&saved).run().unwrap().snapshot()), content(saved.snapshot()));
}

/// A thread of rayon that waited for the parallel work of a save began another save. That one waited for the lock that the
/// first one held, below it on the same stack.
#[test]
fn saves_in_threads_of_rayon_do_not_wait_for_each_other() {
    let (_folder, mut repository) = new();
    repository.set_wait(Duration::from_secs(20));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let images: Vec<Snapshot> = (0..8).map(|number| image(number * 100..number * 100 + 80)).collect();
    pool.install(|| images.par_iter().for_each(|image| drop(repository.save(image).run().unwrap())));
    assert_eq!(repository.list().unwrap().len(), 8);
}
