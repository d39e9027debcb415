//! Damaged databases.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::{Everything, REPOSITORY, id, read, save};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::index::{Index, PATH, Place};
use crate::storage::DatabaseMode;
use crate::storage::simulated::Simulated;

/// Returns a storage with a small index of several runs, and the contents before the last save.
fn prepared() -> (Simulated, Everything) {
    let storage = Simulated::new();
    Index::create(&storage, crate::index::PATH, REPOSITORY).unwrap();
    for (seed, blocks) in (0..).zip([40, 200, 7, 7, 7]) {
        save(&storage, seed, blocks).unwrap();
    }
    let before = read(&storage).unwrap();
    save(&storage, 5, 1).unwrap();
    (storage, before)
}

/// Checks that each result of a damaged index is right, missing, or an error.
fn check(storage: &Simulated, truth: &Everything, hashes: &[Id]) -> Result<()> {
    let index = Index::open(storage, crate::index::PATH, DatabaseMode::Read, REPOSITORY)?;
    let reader = index.read()?;
    let places: BTreeMap<Id, Place> = truth.places.iter().copied().collect();
    if let Ok(found) = reader.find(hashes) {
        for (hash, found) in hashes.iter().zip(found) {
            assert!(found.is_none() || found.as_ref() == places.get(hash), "{hash}: {found:?}");
        }
    }
    let is_known = |hash: &Id, place: &Place| assert_eq!(places.get(hash), Some(place));
    let visited = reader.for_each_place(|hash, place| {
        is_known(hash, place);
        Ok(())
    });
    let packs = reader.packs().map(|found| assert!(found.iter().all(|row| truth.packs.contains(row))));
    let manifests =
        reader.manifests().map(|found| assert!(found.iter().all(|row| truth.manifests.contains(row))));
    let names = reader.names().map(|found| assert!(found.iter().all(|row| truth.names.contains(row))));
    for (number, row) in &truth.packs {
        assert!(reader.pack(*number).ok().flatten().is_none_or(|found| found == *row));
        assert!(reader.pack_number(&row.id).ok().flatten().is_none_or(|found| found == *number));
    }
    visited.and(packs).and(manifests).and(names)
}

/// Makes changes of an index. Returns the number of changes that were noticed.
fn damage(changes: impl Iterator<Item = (usize, u8)>) -> (u64, u64) {
    let (storage, before) = prepared();
    let truth = read(&storage).unwrap();
    let mut hashes: Vec<Id> =
        truth.places.iter().map(|entry| entry.0).chain((0..50).map(|n| id(n + 77))).collect();
    hashes.sort();
    let bytes = storage.bytes(PATH).unwrap();
    let (mut tried, mut noticed) = (0, 0);
    for (offset, bits) in changes {
        let mut changed = bytes.clone();
        changed[offset] ^= bits;
        let damaged = storage.kill();
        damaged.set_bytes(PATH, changed);
        tried += 1;
        // A bit of the header selects one of the last two commits. With the other commit, it is the header of a
        // program that crashed before its last commit.
        let truth = if (offset, bits) == (9, 1) { &before } else { &truth };
        if let Err(error) = check(&damaged, truth, &hashes) {
            let expected = matches!(error, Error::Damaged { .. } | Error::Newer { .. } | Error::Mixed { .. });
            assert!(expected, "byte {offset}, bits {bits:#x}: {error}");
            noticed += 1;
        }
    }
    (tried, noticed)
}

/// Returns the offsets of the bytes of pages that are not empty.
fn used() -> Vec<usize> {
    let bytes = prepared().0.bytes(PATH).unwrap();
    bytes.iter().enumerate().filter(|(_, byte)| **byte != 0).map(|(offset, _)| offset).collect()
}

#[test]
fn flipped_bits_are_noticed_or_harmless() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let used = used();
    let header = (0..320).flat_map(|offset| (0..8).map(move |bit| (offset, 1 << bit)));
    let beginnings =
        (1..40_usize).flat_map(|page| (0..64).map(move |byte| (page * 4096 + byte, 1 << (byte % 8))));
    let pages = used.into_iter().filter(|offset| *offset >= 4096).step_by(101);
    let pages = pages.map(|offset| (offset, rng.random_range(1..=255)));
    let (tried, noticed) = damage(header.chain(beginnings).chain(pages));
    println!("{noticed} of {tried} changes were noticed");
    assert!(noticed > 0);
}

#[test]
fn a_cut_index_is_an_error() {
    let storage = prepared().0;
    let bytes = storage.bytes(PATH).unwrap();
    for len in (1..bytes.len()).step_by(10_007).chain([1, 9, 319, 320, 4096, 8192]) {
        let cut = storage.kill();
        cut.set_bytes(PATH, bytes[..len].to_vec());
        if let Ok(found) = read(&cut) {
            // The part that was cut off was free.
            assert_eq!(found, read(&storage).unwrap(), "{len} bytes");
        }
    }
}
