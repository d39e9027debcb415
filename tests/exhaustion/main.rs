//! Tests at the limits of a process: descriptors, address space, mappings, locked memory.
//!
//! Errors name the resource that ran out, no data is lost, and everything works again once the resource is
//! available.
#![cfg(all(target_os = "linux", not(memsnap_unix)))]
#![allow(clippy::single_range_in_vec_init)] // The tests compare lists of ranges.

mod address_space;
#[path = "../common/mod.rs"]
mod common;
mod descriptors;
mod kept;
mod mappings;

use std::fs::File;
use std::io;

use common::linux::{CAP_IPC_LOCK, is_capable_of, with_steady_heap};
use common::unix::Limit;
use common::{alone, assert_same, message, noise, skip};
use memsnap::{Snapshot, Tracking, View, page_size};
use rustix::mm::MlockAllFlags;

/// Checks that an error names the operation, and the resource or limit that ran out.
#[track_caller]
fn assert_tells(error: &io::Error, operation: &str, limit: &str) {
    let message = message(error);
    assert!(message.contains(operation), "the error does not name the operation ({operation}): {message}");
    assert!(message.contains(limit), "the error does not name the limit ({limit}): {message}");
}

const DESCRIPTORS: &str = "ulimit -n";
const ADDRESS_SPACE: &str = "address space";
const MAPPINGS: &str = "max_map_count";

#[track_caller]
fn assert_holds(what: &str, snapshot: &Snapshot, bytes: &[u8]) {
    let mut read = vec![0xA5; bytes.len()];
    assert_eq!(snapshot.read_at(&mut read, 0).unwrap(), bytes.len(), "{what}");
    assert_same(what, &read, bytes);
    assert_same(what, &snapshot.view().unwrap(), bytes);
}

/// Returns the tracking method of a view. `Armed` counts as `Scan`, because a view with `Scan` may become
/// armed.
fn tier<S>(view: &View<S>) -> Tracking {
    match view.stats().tracker {
        Tracking::Armed => Tracking::Scan,
        tracker => tracker,
    }
}

/// Changes one byte in each of `pages` pages, which are spread evenly.
fn touch(bytes: &mut [u8], pages: usize) {
    let step = bytes.len() / page_size() / pages;
    bytes.iter_mut().step_by(step * page_size()).take(pages).for_each(|byte| *byte ^= 0xFF);
}

#[test]
fn locked_memory_can_be_restored_and_captured() {
    const TEST: &str = "locked_memory_can_be_restored_and_captured";
    alone(TEST, || {
        if let Err(error) = rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE) {
            assert!(!is_capable_of(CAP_IPC_LOCK), "mlockall: {error}");
            return skip(TEST, format!("mlockall: {error}"));
        }
        // A restored view may not keep this many pages resident. It would discard the rest if the pages were
        // not locked.
        let bytes = noise(80 << 20, 14);
        let mut changed = bytes.clone();
        changed.chunks_mut(page_size()).for_each(|page| page[9] ^= 0xFF);
        for base in [Snapshot::from_slice(&bytes), Snapshot::zeroed(bytes.len())] {
            let base = match base {
                // The process may not be allowed to lock this much memory.
                Err(error) if !is_capable_of(CAP_IPC_LOCK) => return skip(TEST, message(&error)),
                base => base.unwrap(),
            };
            let mut view = base.view().unwrap();
            let root = view.to_vec();
            view.copy_from_slice(&changed);
            view.restore().unwrap();
            assert_same("restored", &view, &root);
            view.restore().unwrap();
            assert_same("restored twice", &view, &root);
            view[..40 << 20].copy_from_slice(&changed[..40 << 20]);
            let shows = view.to_vec();
            let taken = view.take_snapshot().unwrap();
            view.restore_to(&base).unwrap();
            assert_same("restored to the base", &view, &root);
            view.restore_to(&taken).unwrap();
            assert_same("restored to the taken", &view, &shows);
            drop(taken);
            view.restore().unwrap();
            for round in 0..3 {
                // Each capture covers pages whose memory could not be returned, since it is locked.
                view[..8 << 20].fill(round);
                let taken = view.take_snapshot().unwrap();
                let mut read = vec![0; 9 << 20];
                taken.read_at(&mut read, 0).unwrap();
                assert!(read[..8 << 20].iter().all(|&byte| byte == round));
                assert_same("behind", &read[8 << 20..], &root[8 << 20..9 << 20]);
            }
        }
    });
}

#[test]
fn the_limits_of_these_tests_are_felt() {
    const TEST: &str = "the_limits_of_these_tests_are_felt";
    with_steady_heap(TEST, || {
        let limit = Limit::descriptors();
        assert_eq!(File::open("/dev/null").unwrap_err().raw_os_error(), Some(24));
        drop(limit);
        File::open("/dev/null").unwrap();
        let limit = Limit::address_space(0);
        assert!(
            std::thread::Builder::new().spawn(|| ()).is_err(),
            "a thread got a stack although no address space is left"
        );
        drop(limit);
        std::thread::spawn(|| ()).join().unwrap();
    });
}
