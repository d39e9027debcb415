//! Damage that is repaired: what is lost is stored again by the next save that has it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use memsnap::Snapshot;
use rayon::prelude::*;

use super::{content, noise};
use crate::format::BLOCK;
use crate::{Collect, Depth, Error, Repository};

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
