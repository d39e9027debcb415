//! Tests of the index.

use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::time::Instant;

use crate::id::Id;
use crate::index::{Index, ManifestRow, PackRow, Place};
use crate::storage::folder::Folder;
use crate::storage::{DatabaseMode, Storage};

const REPOSITORY: &str = "00112233445566778899aabbccddeeff";

fn id(number: u64) -> Id {
    Id::of(&number.to_le_bytes())
}

fn place(pack: u32, number: u64) -> Place {
    let offset = 32 + u32::try_from(number % 65_536).unwrap();
    Place { pack, offset, stored: 100, number: 3, blocks: 16, encoding: 1 }
}

fn pack(number: u64) -> PackRow {
    PackRow { id: id(number), len: 1 << 20, blocks: 256, created: 1_700_000_000_000 }
}

#[test]
fn places_are_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let storage = Folder::new(folder.path());
    Index::create(&storage, PATH, REPOSITORY).unwrap();
    for round in 0..20_u64 {
        let index = Index::open(&storage, PATH, DatabaseMode::Write, REPOSITORY).unwrap();
        let mut writer = index.write().unwrap();
        let number = writer.next_pack().unwrap();
        let entries = (0..256).map(|block| (id(round * 256 + block), place(number, block))).collect();
        writer.add_packs(&[(number, pack(round))], entries).unwrap();
        writer.commit().unwrap();
    }
    let index = Index::open(&storage, PATH, DatabaseMode::Read, REPOSITORY).unwrap();
    let mut hashes: Vec<Id> = (0..5200).map(id).collect();
    hashes.sort();
    let found = index.read().unwrap().find(&hashes).unwrap();
    assert_eq!(found.iter().flatten().count(), 20 * 256);
}

/// Measures an operation on a large index. Run it with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "it measures"]
fn costs() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let storage = Folder::new(folder.path());
    Index::create(&storage, PATH, REPOSITORY).unwrap();
    let len = || std::fs::metadata(storage.path("index.redb")).unwrap().len();
    println!("empty: {} bytes", len());
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut save = |count: u64| {
        let hashes: Vec<Id> = (0..count).map(|_| id(rng.next_u64())).collect();
        let start = Instant::now();
        let index = Index::open(&storage, PATH, DatabaseMode::Write, REPOSITORY).unwrap();
        let opened = start.elapsed();
        let mut writer = index.write().unwrap();
        let number = writer.next_pack().unwrap();
        let entries =
            hashes.iter().enumerate().map(|(block, hash)| (*hash, place(number, block as u64))).collect();
        writer.add_packs(&[(number, pack(count + u64::from(number)))], entries).unwrap();
        let added = start.elapsed();
        writer.commit().unwrap();
        let committed = start.elapsed();
        drop(index);
        let all = start.elapsed();
        if count > 1000 || number % 10 == 5 {
            println!(
                "{count}: open {opened:?}, add {:?}, commit {:?}, close {:?}",
                added - opened,
                committed - added,
                all - committed
            );
        }
        hashes
    };
    let mut hashes = save(256);
    println!("256: {} bytes", len());
    let base = save(262_144);
    println!("262144: {} bytes", len());
    for _ in 0..100 {
        hashes = save(256);
    }
    println!("100 x 256: {} bytes", len());
    for _ in 0..3 {
        for (name, mut hashes) in
            [("new", hashes.clone()), ("old", base[..256].to_vec()), ("none", (0..256).map(id).collect())]
        {
            hashes.sort();
            let start = Instant::now();
            let index = Index::open(&storage, PATH, DatabaseMode::Read, REPOSITORY).unwrap();
            let opened = start.elapsed();
            let reader = index.read().unwrap();
            let found = reader.find(&hashes).unwrap().iter().flatten().count();
            let all = start.elapsed();
            drop((reader, index));
            println!(
                "{name}: found {found}, open {opened:?}, find {:?}, close {:?}",
                all - opened,
                start.elapsed() - all
            );
        }
    }
    let _ = ManifestRow {
        listed: true,
        parent: None,
        base: None,
        len: 0,
        content_len: 0,
        created: 0,
        depth: 0,
        entries: 0,
        chain_entries: 0,
        stored: 0,
    };
}
