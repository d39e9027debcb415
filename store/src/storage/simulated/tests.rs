//! Tests of the simulated storage.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use rand::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;

use super::{Fault, Simulated};
use crate::storage::{Lock, Storage};

/// Returns the bytes of two files after each of many crashes.
fn crashes(storage: &Simulated, paths: [&str; 2]) -> BTreeSet<[Option<Vec<u8>>; 2]> {
    (0..200)
        .map(|seed| storage.crash(&mut Xoshiro256PlusPlus::seed_from_u64(seed)))
        .map(|crashed| paths.map(|path| crashed.bytes(path)))
        .collect()
}

fn write(storage: &Simulated, path: &str, bytes: &[u8], sync: bool) {
    let mut file = storage.create(path).unwrap();
    file.write_all(bytes).unwrap();
    if sync {
        file.sync().unwrap();
    }
}

#[test]
fn what_was_not_synced_may_be_lost_or_torn() {
    let storage = Simulated::new();
    storage.create_folder("tmp").unwrap();
    storage.create_folder("packs").unwrap();
    storage.sync_folder("").unwrap();
    write(&storage, "tmp/a", &[7; 1024], true);
    storage.sync_folder("tmp").unwrap();
    storage.rename("tmp/a", "packs/a").unwrap();
    let there = Some(vec![7; 1024]);
    // A rename happens as a whole.
    let expected = BTreeSet::from([[there.clone(), None], [None, there.clone()]]);
    assert_eq!(crashes(&storage, ["tmp/a", "packs/a"]), expected);
    storage.sync_folder("packs").unwrap();
    assert_eq!(crashes(&storage, ["tmp/a", "packs/a"]), BTreeSet::from([[None, there.clone()]]));
    assert_eq!(storage.kill().bytes("packs/a"), there);

    write(&storage, "packs/b", &[9; 1024], false);
    storage.sync_folder("packs").unwrap();
    let found = crashes(&storage, ["packs/b", "packs/a"]);
    let torn = [vec![], vec![9; 512], [[0; 512], [9; 512]].concat(), vec![9; 1024]];
    assert_eq!(found, torn.map(|bytes| [Some(bytes), there.clone()]).into());

    storage.remove("packs/a").unwrap();
    assert_eq!(crashes(&storage, ["packs/a", "tmp/a"]), BTreeSet::from([[None, None], [there, None]]));
}

#[test]
fn operations_fail_as_asked() {
    let storage = Simulated::new();
    storage.set_fault(Fault::At(1));
    let mut file = storage.create("a").unwrap();
    assert!(file.write_all(&[1; 100]).is_err());
    assert_eq!(storage.bytes("a"), Some(vec![1; 50]));
    file.write_all(&[2; 10]).unwrap();
    assert_eq!(storage.operations(), 3);
    // A sync that failed loses the writes, also if it is repeated.
    storage.set_fault(Fault::At(0));
    assert!(file.sync().is_err());
    file.sync().unwrap();
    storage.sync_folder("").unwrap();
    assert_eq!(crashes(&storage, ["a", "b"]), BTreeSet::from([[Some(vec![]), None]]));
    storage.set_fault(Fault::From(1));
    assert!(storage.list("").is_ok());
    assert!(storage.list("").is_err() && storage.remove("a").is_err() && file.sync().is_err());
}

#[test]
fn locks_exclude_each_other_and_end_with_the_process() {
    let storage = Simulated::new();
    let lock = |storage: &Simulated, kind| storage.lock("lock", kind, Duration::from_millis(10)).unwrap();
    let shared = [lock(&storage, Lock::Shared).unwrap(), lock(&storage.clone(), Lock::Shared).unwrap()];
    assert!(lock(&storage, Lock::Exclusive).is_none());
    assert!(lock(&storage.kill(), Lock::Exclusive).is_some());
    drop(shared);
    let exclusive = lock(&storage, Lock::Exclusive).unwrap();
    assert!(lock(&storage, Lock::Shared).is_none());
    drop(exclusive);
    assert!(lock(&storage, Lock::Shared).is_some());
}
