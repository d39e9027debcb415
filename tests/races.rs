//! Threads that use state that the library shares between them without a borrow.
//!
//! These tests are for ThreadSanitizer (`ci/sanitize thread`), which finds a race even if it did no harm in
//! this run.

mod common;

use std::sync::{Arc, Barrier};
use std::thread;

use common::kinds::TRACKINGS;
use common::script::{Random, differing, read};
use common::{alone, assert_same, pattern};
use memsnap::{Snapshot, page_size};

const THREADS: usize = 4;

/// Runs `work` on several threads that start at the same time. `work` gets the number of its thread.
fn at_once(work: impl Fn(usize) + Sync) {
    let together = Barrier::new(THREADS);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (work, together) = (&work, &together);
            scope.spawn(move || {
                together.wait();
                work(thread);
            });
        }
    });
}

/// Some values exist once for each process, and the first call that needs one makes it: the page size, the
/// generation (which tells a process from its forked children), descriptors, and the page of zeroes.
#[test]
fn the_first_calls_of_a_process_come_from_several_threads() {
    let first_calls = || {
        at_once(|_| {
            let bytes = vec![1; 20 * page_size()];
            let mut snapshot = Snapshot::zeroed(bytes.len()).unwrap();
            let mut view = snapshot.view_mut().unwrap();
            view.copy_from_slice(&bytes);
            let taken = view.take_snapshot().unwrap();
            assert_same("taken", &read(&taken), &bytes);
            let mut view = taken.view().unwrap();
            // This tracking method, if it works, uses the most of these values.
            let _ = view.set_tracking(TRACKINGS[1]);
            view[0] = 2;
            view[page_size()..2 * page_size()].fill(0);
            assert_eq!(view.changes().unwrap().ranges(), [0..2 * page_size()]);
            drop(view.take_snapshot().unwrap());
            view.restore().unwrap();
            assert_same("restored", &view, &bytes);
        });
    };
    // Each process makes the values once, and the threads do not always meet. So this uses several processes.
    for _ in 0..4 {
        alone("the_first_calls_of_a_process_come_from_several_threads", first_calls);
    }
}

/// Makes all calls that a shared reference allows, on one view and on the values that they return.
#[test]
fn one_view_is_shared_by_all_threads() {
    const PAGES: usize = 300;
    let root = Arc::new(Snapshot::from_slice(&pattern(PAGES, 1)).unwrap());
    let mut view = root.view_arc().unwrap();
    for round in 0..8 {
        // There are enough pages for freed ones to be returned to the system while other threads take slots.
        for page in (0..PAGES).filter(|page| page % 8 != usize::from(round)) {
            view[page * page_size()..][..100].fill(round);
        }
        let bytes = view.to_vec();
        let changed = differing(&root.view().unwrap(), &bytes);
        at_once(|thread| {
            let mut random = Random((usize::from(round) * THREADS + thread) as u64);
            let mut held = Vec::new();
            for _ in 0..12 {
                match random.below(6) {
                    0 | 1 => held.push(view.take_snapshot().unwrap()),
                    2 => held.truncate(random.below(2)),
                    3 => assert_eq!(root.diff(&view.take_snapshot().unwrap()).unwrap().ranges(), changed),
                    4 => drop(view.changes().unwrap()),
                    _ => {
                        let _ = view.stats();
                        held.extend(held.first().cloned());
                    }
                }
                if let Some(last) = held.last() {
                    assert_same("held", &read(last), &bytes);
                    assert!(last.stats().store.live <= THREADS * 12 * bytes.len());
                }
            }
        });
        let taken = view.take_snapshot().unwrap();
        assert_same("taken", &read(&taken), &bytes);
        assert_eq!(view.changes().unwrap().ranges(), []);
    }
    drop(view);
    assert_eq!(root.stats().store.live, 0);
}

/// All threads view, copy, read and drop one snapshot while it becomes flat. Their views also use its store.
#[test]
fn one_snapshot_is_shared_by_all_threads() {
    const PAGES: usize = 200;
    for round in 1..7 {
        let bytes = pattern(PAGES, round);
        let root = Snapshot::from_slice(&pattern(PAGES, 100)).unwrap();
        let mut view = root.view().unwrap();
        view.copy_from_slice(&bytes);
        let shared = Arc::new(view.take_snapshot().unwrap());
        drop(view);
        at_once(|thread| {
            for time in 0..25 {
                let mut view = shared.view_arc().unwrap();
                assert_same("view", &view, &bytes);
                let at = (time * THREADS + thread) % PAGES * page_size();
                view[at] ^= 0xFF;
                let taken = view.take_snapshot().unwrap();
                assert_eq!(taken.diff(&shared).unwrap().ranges(), [at..at + page_size()]);
                drop(taken);
                let clone = Snapshot::clone(&shared);
                assert_same("clone", &read(&clone), &bytes);
                let _ = shared.stats();
                passed_on(&clone, &bytes);
            }
        });
        assert_eq!(shared.stats().store.live, shared.stats().captured);
    }
}

/// Makes a snapshot of the descriptor of another one, as a receiving process does, if the system supports
/// this.
///
/// The image is made flat for this.
#[cfg(all(target_os = "linux", not(memsnap_unix)))]
fn passed_on(snapshot: &Snapshot, bytes: &[u8]) {
    use memsnap::os::linux::SnapshotExt as _;

    let received = Snapshot::from_fd(snapshot.to_fd().unwrap()).unwrap();
    assert_same("passed on", &read(&received), bytes);
}

#[cfg(not(all(target_os = "linux", not(memsnap_unix))))]
fn passed_on(_: &Snapshot, _: &[u8]) {}
