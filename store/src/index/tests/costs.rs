//! Measures the costs of operations.

use std::fs;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::{REPOSITORY, id, pack, place};
use crate::id::Id;
use crate::index::{Index, PATH};
use crate::storage::folder::Folder;
use crate::storage::{DatabaseMode, Storage};

/// Returns the number of bytes that this process has written, if the system counts them.
fn written() -> u64 {
    let text = fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Adds a pack with these blocks. Returns the time.
fn save(storage: &Folder, hashes: &[Id]) -> Duration {
    let start = Instant::now();
    let index = Index::open(storage, crate::index::PATH, DatabaseMode::Write, REPOSITORY).unwrap();
    let mut writer = index.write().unwrap();
    let number = writer.next_pack().unwrap();
    let entries = hashes.iter().zip(0..).map(|(hash, block)| (*hash, place(number, block))).collect();
    writer.add_packs(&[(number, pack(number.into()))], entries).unwrap();
    writer.commit().unwrap();
    drop(index);
    start.elapsed()
}

/// Looks up blocks. Returns the time.
fn find(storage: &Folder, hashes: &[Id], expected: usize) -> Duration {
    let start = Instant::now();
    let index = Index::open(storage, crate::index::PATH, DatabaseMode::Read, REPOSITORY).unwrap();
    let found = index.read().unwrap().find(hashes).unwrap();
    drop(index);
    let time = start.elapsed();
    assert_eq!(found.iter().flatten().count(), expected);
    time
}

/// Run this test alone, with `--release -- --ignored --nocapture`.
///
/// `MEMSNAP_COSTS` names a folder in memory.
#[test]
#[ignore = "it measures"]
fn costs() {
    let place = std::env::var_os("MEMSNAP_COSTS").map_or_else(std::env::temp_dir, Into::into);
    let folder = tempfile::tempdir_in(place).unwrap();
    let storage = Folder::new(folder.path());
    let len = || fs::metadata(storage.path(PATH)).unwrap().len() / 1024;
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut blocks = |count: usize| -> Vec<Id> { (0..count).map(|_| id(rng.next_u64())).collect() };
    Index::create(&storage, crate::index::PATH, REPOSITORY).unwrap();
    println!("an empty index: {} KiB", len());
    let base = blocks(262_144);
    let time = save(&storage, &base);
    println!("262,144 blocks: {time:?}, then {} KiB", len());
    let before = written();
    let (mut times, mut hashes) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        hashes = blocks(256);
        times.push(save(&storage, &hashes));
    }
    let each = (written() - before) / 100 / 1024;
    println!(
        "256 blocks, 100 times: median {:?}, {each} KiB written each, then {} KiB",
        median(times),
        len()
    );
    hashes.sort();
    let mut old: Vec<Id> = base.iter().step_by(1024).copied().collect();
    old.sort();
    let mut none: Vec<Id> = blocks(256);
    none.sort();
    for (name, hashes, expected) in [("new", hashes, 256), ("old", old, 256), ("unknown", none, 0)] {
        let times = (0..20).map(|_| find(&storage, &hashes, expected)).collect();
        println!("find 256 {name} blocks: median {:?}", median(times));
    }
}
