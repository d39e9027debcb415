//! Tests of the store: slots are used again, frames are kept or given back, and live bytes stay.

use std::collections::HashSet;
use std::thread;

use super::*;

impl Store {
    /// Checks the invariant of `Slots`, while no other thread uses the store.
    ///
    /// No free slot is in two places, and the store refers to itself exactly as long as a slot is not free.
    pub(crate) fn check(&self) {
        let slots = self.lock();
        let free: HashSet<_> = slots.kept.iter().chain(&slots.bare).map(|slot| slot.0).collect();
        assert_eq!(free.len(), slots.kept.len() + slots.bare.len());
        let heads = slots.segments.iter().flat_map(|segment| &segment.heads);
        let all: HashSet<_> = heads.map(NonNull::from).collect();
        assert!(free.is_subset(&all) && all.len() == slots.total);
        assert_eq!(slots.alive.is_some(), slots.live() > 0);
    }
}

fn pages(store: &Arc<Store>, count: usize, byte: u8) -> Vec<Page> {
    let (now, before) = (vec![byte; page_size()], vec![!byte; page_size()]);
    let candidates = (0..count).map(|page| Candidate { page, now: &now, before: Some(&before) });
    store.capture(candidates).unwrap().into_iter().map(|(_, page)| page).collect()
}

#[test]
fn slots_are_recycled_and_live_bytes_stay() {
    let store = Arc::new(Store::new());
    let mut held = Vec::new();
    for round in 0..if cfg!(miri) { 20 } else { 200_u8 } {
        held.push((round, pages(&store, 10, round)));
        if held.len() > 5 {
            held.remove(usize::from(round) % 5);
        }
        for (byte, pages) in &held {
            let bytes = vec![*byte; page_size()];
            assert!(pages.iter().all(|page| page.bytes() == bytes));
        }
    }
    let total = store.lock().total;
    assert!(total <= 64 * 2, "{total} slots for at most 60 pages");
}

#[test]
fn a_live_page_keeps_no_other_slot_in_use() {
    let store = Arc::new(Store::new());
    let times = if cfg!(miri) { 5 } else { 100 };
    let cold: Vec<_> = (0..times).map(|_| pages(&store, 100, 1).swap_remove(50)).collect();
    let usage = store.usage();
    assert_eq!(usage.live, times);
    assert!(usage.kept <= 100 + SWEEP, "{usage:?}");
    assert!(store.lock().total <= 400);
    drop(cold);
    assert_eq!(store.usage().live, 0);
}

#[test]
fn frames_above_the_limit_are_given_back() {
    let store = Arc::new(Store::new());
    let large = pages(&store, if cfg!(miri) { 300 } else { 10_000 }, 1);
    for _ in 0..100 {
        pages(&store, 1, 2);
    }
    drop(large);
    let usage = store.usage();
    assert!(usage.kept <= 2 * SWEEP, "{usage:?}");
}

/// If threads take turns at capturing and dropping pages of one store, none of them gives back frames that the others
/// are about to need.
#[test]
fn frames_that_several_threads_need_are_kept() {
    const PAGES: usize = 3 * SWEEP;
    let store = Arc::new(Store::new());
    let mut held = Vec::new();
    thread::scope(|scope| {
        let capture = || pages(&store, PAGES, 1);
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(capture)).collect();
        held.extend(threads.into_iter().map(|thread| thread.join().unwrap()));
    });
    drop(held);
    assert!(store.usage().kept >= PAGES * 3 / 2, "{:?}", store.usage());
}

/// A live page keeps its store alive. An image always refers to its store, so only this test drops the store first.
#[test]
fn pages_outlive_the_handles_of_their_store() {
    let store = Arc::new(Store::new());
    let weak = Arc::downgrade(&store);
    let mut all = pages(&store, 10, 7);
    let copy = all[3].clone();
    drop(store);
    assert!(copy == all[3] && copy != all[4]);
    all.truncate(1);
    assert!(weak.upgrade().is_some_and(|store| store.usage().live == 2));
    drop(all);
    assert_eq!(copy.bytes(), vec![7; page_size()]);
    drop(copy);
    assert!(weak.upgrade().is_none());
}

/// Pages that are dropped together may belong to several stores, and some may have clones.
#[test]
fn freed_pages_go_to_their_own_store() {
    let (store, other) = (Arc::new(Store::new()), Arc::new(Store::new()));
    let (mine, foreign) = (pages(&store, BATCH + 9, 1), pages(&other, 5, 2));
    let copies = mine[..4].to_vec();
    let mut freed = Freed::new(&store);
    foreign.into_iter().chain(mine).for_each(|page| freed.add(page));
    freed.add(Page::default());
    assert_eq!((store.usage().live, other.usage().live), (4 + 5, 0));
    drop(freed);
    assert_eq!(store.usage().live, 4);
    drop(copies);
    assert_eq!(store.usage().live, 0);
    store.check();
    other.check();
}
