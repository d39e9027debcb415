//! Several threads that use views and snapshots of one family.

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;

use common::script::{Random, differing, read};
use common::{assert_same, pattern};
use memsnap::{ArcView, CowView, MutView, Snapshot, page_size};

const fn send_and_sync<T: Send + Sync>() {}
const _: () = send_and_sync::<Snapshot>();
const _: () = send_and_sync::<CowView<'static>>();
const _: () = send_and_sync::<MutView<'static>>();
const _: () = send_and_sync::<ArcView>();

#[test]
fn two_threads_take_snapshots_of_one_view_at_once() {
    const PAGES: usize = 60;
    let root = pattern(PAGES, 1);
    let of_bytes = Arc::new(Snapshot::from_slice(&root).unwrap());
    let of_zeroes = Arc::new(Snapshot::zeroed(root.len()).unwrap());
    for snapshot in [of_bytes, of_zeroes] {
        let mut view = snapshot.view_arc().unwrap();
        let mut random = Random(1);
        for round in 1..=100 {
            for _ in 0..random.below(PAGES) {
                let page = random.below(PAGES) * page_size();
                view[page..page + page_size()].fill(round);
            }
            let bytes = view.to_vec();
            let together = Barrier::new(2);
            let take = || {
                together.wait();
                let taken = view.take_snapshot().unwrap();
                assert_same("taken", &read(&taken), &bytes);
                taken
            };
            let (one, other) = thread::scope(|scope| {
                let other = scope.spawn(take);
                (take(), other.join().unwrap())
            });
            assert_eq!(one.diff(&other).unwrap().ranges(), []);
            assert_eq!(view.changes().unwrap().ranges(), []);
            assert_eq!(one.stats().store, other.stats().store);
            assert!(
                one.stats().store.live <= 3 * one.len(),
                "the captured pages accumulate: {:?}",
                one.stats()
            );
        }
    }
}

/// Returns a snapshot with short and long runs of captured pages, over bytes or over zeroes, and its bytes.
fn changed(pages: usize, over_bytes: bool) -> (Snapshot, Vec<u8>) {
    let mut bytes = if over_bytes { pattern(pages, 1) } else { vec![0; pages * page_size()] };
    let root = match over_bytes {
        true => Snapshot::from_slice(&bytes),
        false => Snapshot::zeroed(bytes.len()),
    };
    let root = root.unwrap();
    let mut view = root.view().unwrap();
    let changed = pattern(pages, 100);
    for page in (0..pages).filter(|page| page % 3 == 0 || page % 40 > 20) {
        let page = page * page_size()..(page + 1) * page_size();
        view[page.clone()].copy_from_slice(&changed[page.clone()]);
        bytes[page.clone()].copy_from_slice(&changed[page]);
    }
    (view.take_snapshot().unwrap(), bytes)
}

#[test]
fn a_family_is_used_by_many_threads_at_once() {
    const PAGES: usize = 200;
    const THREADS: usize = 6;
    const STEPS: usize = 300;
    const POOL: usize = 12;
    let (first, bytes) = changed(PAGES, true);
    let first = (Arc::new(first), bytes);
    // The threads exchange snapshots through this pool, so that any thread may drop them.
    let pool: Vec<_> = (0..POOL).map(|_| Mutex::new(first.clone())).collect();
    let stop = AtomicBool::new(false);
    let work = |seed| {
        let mut random = Random(seed);
        let pick = |random: &mut Random| pool[random.below(POOL)].lock().unwrap().clone();
        let (mut snapshot, mut root) = pick(&mut random);
        let mut view = snapshot.view_arc().unwrap();
        let mut bytes = root.clone();
        for _ in 0..STEPS {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            match random.below(16) {
                0..7 => {
                    let start = random.below(bytes.len());
                    let end = bytes.len().min(start + random.below(50 * page_size()));
                    let value = random.below(256).to_le_bytes()[0];
                    bytes[start..end].fill(value);
                    view[start..end].fill(value);
                }
                7..11 => {
                    let taken = (Arc::new(view.take_snapshot().unwrap()), bytes.clone());
                    *pool[random.below(POOL)].lock().unwrap() = taken;
                }
                11 => {
                    view.restore().unwrap();
                    bytes.clone_from(&root);
                }
                12..14 => {
                    let (snapshot, other) = pick(&mut random);
                    view.restore_to(&snapshot).unwrap();
                    bytes = other;
                }
                14 => {
                    (snapshot, root) = pick(&mut random);
                    view = snapshot.view_arc().unwrap();
                    bytes.clone_from(&root);
                }
                _ => {
                    let ((one, left), (other, right)) = (pick(&mut random), pick(&mut random));
                    assert_eq!(one.diff(&other).unwrap().ranges(), differing(&left, &right));
                    assert_same("read", &read(&one), &left);
                }
            }
            assert_same("view", &view, &bytes);
        }
    };
    thread::scope(|scope| {
        for seed in 0..THREADS as u64 {
            let (stop, work) = (&stop, &work);
            scope.spawn(move || {
                // The other threads stop with the first that fails, so that they do not fail because of it.
                let failed = StopOnDrop(stop);
                work(seed);
                std::mem::forget(failed);
            });
        }
    });
    for slot in pool {
        let (snapshot, bytes) = slot.into_inner().unwrap();
        assert_same("at the end", &snapshot.view().unwrap(), &bytes);
    }
    let store = first.0.stats().store;
    assert_eq!(
        store.live,
        first.0.stats().captured,
        "the store holds captured pages that no snapshot shows: {store:?}"
    );
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn readers_of_a_view_written_in_place_see_only_its_bytes_while_a_snapshot_is_taken() {
    const PAGES: usize = 64;
    const READERS: usize = 3;
    for round in 0..60 {
        let bytes = pattern(PAGES, round);
        let mut snapshot = Snapshot::zeroed(bytes.len()).unwrap();
        let mut view = snapshot.view_mut().unwrap();
        view.copy_from_slice(&bytes);
        let (view_, taken, reading) = (&view, AtomicBool::new(false), AtomicUsize::new(0));
        let snapshots: Vec<_> = thread::scope(|scope| {
            for _ in 0..READERS {
                scope.spawn(|| {
                    while !taken.load(Ordering::Acquire) {
                        assert_same("read meanwhile", view_, &bytes);
                        reading.fetch_add(1, Ordering::Relaxed);
                    }
                    assert_same("read afterwards", view_, &bytes);
                });
            }
            let stop = StopOnDrop(&taken);
            while reading.load(Ordering::Relaxed) < READERS {
                thread::yield_now();
            }
            let snapshots = (0..2).map(|_| view_.take_snapshot().unwrap()).collect();
            drop(stop);
            snapshots
        });
        for snapshot in &snapshots {
            assert_same("taken", &read(snapshot), &bytes);
        }
        view.fill(255);
        drop(view);
        assert_same("at the end", &snapshot.view().unwrap(), &vec![255; bytes.len()]);
        assert_same("taken", &read(&snapshots[0]), &bytes);
    }
}

#[test]
fn snapshots_are_dropped_on_other_threads_than_they_were_taken_on() {
    const PAGES: usize = 60;
    const ROUNDS: u8 = 250;
    let root = Arc::new(Snapshot::from_slice(&pattern(PAGES, 1)).unwrap());
    let (to_dropper, taken) = mpsc::sync_channel::<(Snapshot, Vec<u8>)>(4);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut held = Vec::new();
            for (snapshot, bytes) in taken {
                held.push((snapshot, bytes));
                if held.len() == 5 {
                    // Snapshots are dropped neither in the order in which they were taken nor in reverse.
                    let (snapshot, bytes) = held.swap_remove(1);
                    assert_same("received", &read(&snapshot), &bytes);
                }
            }
        });
        for thread in 0..2 {
            let (root, to_dropper) = (Arc::clone(&root), to_dropper.clone());
            scope.spawn(move || {
                let mut view = root.view_arc().unwrap();
                for round in 0..ROUNDS {
                    let page = usize::from(round) % PAGES * page_size();
                    view[page..].fill(round.wrapping_mul(2) + thread);
                    let taken = view.take_snapshot().unwrap();
                    to_dropper.send((taken, view.to_vec())).unwrap();
                }
            });
        }
        drop(to_dropper);
    });
    assert_eq!(root.stats().store.live, 0, "captured pages outlived their last snapshot");
    assert_same("root", &read(&root), &pattern(PAGES, 1));
}

#[test]
fn many_threads_view_the_same_changed_snapshot() {
    const PAGES: usize = 500;
    const THREADS: usize = 6;
    for round in 0..15 {
        let (snapshot, bytes) = changed(PAGES, round % 2 == 0);
        let together = Barrier::new(THREADS);
        let flat = thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let (snapshot, bytes, together) = (&snapshot, &bytes, &together);
                    scope.spawn(move || {
                        together.wait();
                        let mut kept = Vec::new();
                        for time in 0..8 {
                            let mut view = snapshot.view().unwrap();
                            assert_same("view", &view, bytes);
                            let page = (time * THREADS + thread) % PAGES;
                            view[page * page_size()..]
                                .iter_mut()
                                .take(20 * page_size())
                                .for_each(|byte| *byte = 9);
                            view.restore().unwrap();
                            assert_same("restored", &view, bytes);
                            view[page * page_size()] ^= 0xFF;
                            kept.push((view, page * page_size()..(page + 1) * page_size()));
                        }
                        for (view, written) in &kept {
                            let other = differing(view, bytes);
                            assert_eq!(other, std::slice::from_ref(written));
                        }
                        snapshot.stats().flat
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).max()
        });
        assert!(flat >= Some(1), "the image was never made flat");
        assert_same("at the end", &snapshot.view().unwrap(), &bytes);
    }
}
