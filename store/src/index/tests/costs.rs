//! Measures what operations cost.

use std::time::Instant;

use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::{REPOSITORY, id, pack, place};
use crate::id::Id;
use crate::index::Index;
use crate::storage::folder::Folder;
use crate::storage::{DatabaseMode, Storage};

/// Measures an operation on a large index. Run it with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "it measures"]
fn costs() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let storage = Folder::new(folder.path());
    Index::create(&storage, REPOSITORY).unwrap();
    let len = || {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(storage.path("index.redb")).unwrap();
        format!("{} ({} allocated)", metadata.len(), metadata.blocks() * 512)
    };
    println!("empty: {} bytes", len());
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut save = |count: u64| {
        let hashes: Vec<Id> = (0..count).map(|_| id(rng.next_u64())).collect();
        let start = Instant::now();
        let index = Index::open(&storage, DatabaseMode::Write, REPOSITORY).unwrap();
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
    let mut hashes = Vec::new();
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
            let index = Index::open(&storage, DatabaseMode::Read, REPOSITORY).unwrap();
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
}
