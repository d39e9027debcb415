//! Crashes and failures of file operations.

use rand::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;

use super::{REPOSITORY, read, save};
use crate::index::{Index, PATH};
use crate::storage::Storage;
use crate::storage::simulated::{Fault, Simulated};

/// The number of states after a crash that are tried for each operation.
const CRASHES: u64 = 12;

/// Returns a storage with an index that has several runs, and is durable.
fn prepared() -> Simulated {
    let storage = Simulated::new();
    Index::create(&storage, crate::index::PATH, REPOSITORY).unwrap();
    storage.sync_folder("").unwrap();
    for seed in 0..7 {
        save(&storage, seed, 90).unwrap();
    }
    storage.kill()
}

/// Counts the operations of a save.
fn operations(storage: &Simulated) -> u64 {
    let storage = storage.kill();
    save(&storage, 7, 90).unwrap();
    storage.operations()
}

#[test]
fn a_crash_leaves_the_state_before_or_after() {
    let storage = prepared();
    let before = read(&storage).unwrap();
    let after = storage.kill();
    save(&after, 7, 90).unwrap();
    let after = read(&after).unwrap();
    let (mut old, mut new) = (0, 0);
    for from in 0..=operations(&storage) {
        let storage = storage.kill();
        storage.set_fault(Fault::From(from));
        let saved = save(&storage, 7, 90).is_ok();
        for seed in 0..CRASHES {
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(from * CRASHES + seed);
            // The first state is that after a kill without a power failure.
            let crashed = if seed == 0 { storage.kill() } else { storage.crash(&mut rng) };
            let found =
                read(&crashed).unwrap_or_else(|error| panic!("operation {from}, crash {seed}: {error}"));
            if found == before {
                assert!(!saved, "a save that returned was lost: operation {from}, crash {seed}");
                old += 1;
            } else {
                assert_eq!(found, after, "operation {from}, crash {seed}");
                new += 1;
            }
            // The index can be written after the crash, and another crash loses nothing.
            save(&crashed, 8, 20).unwrap();
            let again = crashed.crash(&mut rng);
            assert_eq!(read(&again).unwrap(), read(&crashed).unwrap(), "operation {from}, crash {seed}");
        }
    }
    assert!(old > 0 && new > 0, "{old} {new}");
}

#[test]
fn a_failed_operation_is_an_error_and_changes_nothing() {
    let storage = prepared();
    let before = read(&storage).unwrap();
    let after = storage.kill();
    save(&after, 7, 90).unwrap();
    let after = read(&after).unwrap();
    let operations = operations(&storage);
    let mut old = 0;
    for at in 0..operations {
        let storage = storage.kill();
        storage.set_fault(Fault::At(at));
        let result = save(&storage, 7, 90);
        storage.set_fault(Fault::Never);
        let found = read(&storage).unwrap_or_else(|error| panic!("operation {at}: {error}"));
        match result {
            // Only operations after the commit may fail without an error.
            Ok(()) => assert_eq!(found, after, "operation {at}"),
            Err(error) => {
                assert!(!matches!(error, crate::Error::Damaged { .. }), "operation {at}: {error}");
                // If the last sync failed, the commit is in the file.
                assert!(
                    found == before || (found == after && at + 5 >= operations),
                    "operation {at} of {operations}"
                );
                old += u64::from(found == before);
            }
        }
        // The index works again.
        save(&storage, 9, 20).unwrap();
    }
    assert!(old > operations / 2, "{old} of {operations}");
}

#[test]
fn a_failed_read_is_an_error() {
    let storage = prepared();
    let before = read(&storage).unwrap();
    storage.set_fault(Fault::Never);
    read(&storage).unwrap();
    for at in 0..storage.operations() {
        storage.set_fault(Fault::At(at));
        if let Ok(found) = read(&storage) {
            assert_eq!(found, before, "operation {at}");
        }
    }
}

/// An index that is not complete leads to an error and not to a panic.
#[test]
fn a_crash_while_the_index_is_made_is_found() {
    let complete = Simulated::new();
    Index::create(&complete, crate::index::PATH, REPOSITORY).unwrap();
    for from in 0..complete.operations() {
        let storage = Simulated::new();
        storage.set_fault(Fault::From(from));
        let created = Index::create(&storage, crate::index::PATH, REPOSITORY).is_ok();
        for seed in 0..CRASHES {
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(from * CRASHES + seed);
            let crashed = storage.crash(&mut rng);
            let found = read(&crashed);
            assert!(
                !created || found.is_ok() || crashed.bytes(PATH).is_none(),
                "operation {from}: {found:?}"
            );
        }
    }
}
