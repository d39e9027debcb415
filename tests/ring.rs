//! The store holds no captured page that no snapshot shows.
//!
//! The memory of a captured page is freed when the last snapshot that shows the page is dropped, even if
//! other pages that were captured at the same time are still shown.
//!
//! The tests keep the newest 64 snapshots in a ring. Each snapshot captures 99 hot pages, which are soon
//! written again, and one cold page, which is not. `MEMSNAP_RING_ROUNDS=100000 cargo test --release
//! --test ring` runs more rounds and prints the measured memory.

mod common;

use std::collections::VecDeque;
use std::env;

use common::maps::{Memory, memory};
use common::{alone, memory_file_bytes, noise, tell};
use memsnap::{Snapshot, StoreStats, Tracking, page_size};

/// The number of snapshots in the ring.
const RING: usize = 64;
/// The number of hot pages in each round.
const HOT: usize = 99;
/// The number of pages among which the hot pages move. All pages behind them are cold.
const REGION: usize = 1000;

/// The versions of pages that the held snapshots show.
struct Model {
    /// The round in which the newest version of each page was captured, if the page was captured.
    newest: Vec<Option<usize>>,
    /// The number of pages that were captured at least once.
    captured: usize,
    /// For each older version, the round in which it was captured and the round in which it was replaced.
    past: Vec<(usize, usize)>,
}

impl Model {
    fn new(pages: usize) -> Self {
        // This memory is allocated in advance, so that it does not count as memory of the library.
        let mut past = vec![(1, 1); 400_000];
        past.clear();
        Self { newest: vec![None; pages], captured: 0, past }
    }

    fn write(&mut self, page: usize, round: usize) {
        match self.newest[page].replace(round) {
            Some(before) => self.past.push((before, round)),
            None => self.captured += 1,
        }
    }

    /// Returns how many versions the snapshots of these rounds show. The newest round is one of them.
    fn live(&mut self, rounds: impl Iterator<Item = usize>) -> usize {
        let mut rounds: Vec<_> = rounds.collect();
        rounds.sort_unstable();
        self.past.retain(|&(captured, replaced)| {
            let next = rounds.partition_point(|&round| round < captured);
            rounds.get(next).is_some_and(|&round| round < replaced)
        });
        self.captured + self.past.len()
    }
}

/// Returns the hot pages of a round.
fn hot(round: usize, moving: bool) -> impl Iterator<Item = usize> {
    let start = if moving { round * 131 } else { 0 };
    let step = if moving { 7 } else { 1 };
    (0..HOT).map(move |i| (start + i * step) % REGION)
}

fn cold(round: usize, pages: usize) -> usize {
    REGION + round % (pages - REGION)
}

/// Returns the bytes that `round` writes to the page.
fn stamp(round: usize, page: usize) -> [u8; 16] {
    (((round as u128) << 64) | page as u128).to_le_bytes()
}

fn write(view: &mut [u8], round: usize, page: usize) {
    let bytes = &mut view[page * page_size()..(page + 1) * page_size()];
    bytes[..16].copy_from_slice(&stamp(round, page));
    bytes[page_size() - 16..].copy_from_slice(&stamp(round, page));
}

fn assert_shows(snapshot: &Snapshot, round: usize, page: usize) {
    let mut bytes = vec![0; page_size()];
    snapshot.read_at(&mut bytes, page * page_size()).unwrap();
    assert!(bytes.starts_with(&stamp(round, page)), "round {round}, page {page}");
    assert!(bytes.ends_with(&stamp(round, page)), "round {round}, page {page}");
}

/// Returns the length of the view and the number of rounds.
///
/// Tracking methods that look at every page of the view in each round get a smaller view.
fn dimensions(tracker: Tracking) -> (usize, usize) {
    let (len, rounds) = match tracker {
        Tracking::Scan => (256 << 20, 1000),
        Tracking::Pagemap => (32 << 20, 500),
        _ => (32 << 20, 200),
    };
    (len.max(4 * REGION * page_size()), rounds)
}

/// Returns the most bytes that the snapshots may hold after `round`, if `kept` snapshots were kept.
fn bound(round: usize, pages: usize, kept: usize, moving: bool) -> usize {
    let cold_pages = (round + 1).min(pages - REGION);
    // The oldest snapshot shows every place that the hot pages moved through.
    let behind = if moving { REGION - HOT } else { 0 };
    (RING * (HOT + 1) + cold_pages + kept * HOT + behind) * page_size()
}

/// Returns how much more memory the process has than `before`, without `private` bytes of the view.
///
/// `None` if the system does not report it.
fn held_by_system(round: usize, before: Option<Memory>, private: usize, files: Option<u64>) -> Option<usize> {
    let (now, before) = memory().zip(before)?;
    assert_eq!(memory_file_bytes(), files, "round {round}: captured pages are in memory files");
    assert!(Some(now.shared as u64) <= files.map(|files| files + (1 << 20)), "round {round}: {now:?}");
    Some(now.anonymous.saturating_sub(before.anonymous + private))
}

/// Checks the memory that the system reports against the live bytes and the bound.
fn assert_within(round: usize, held: usize, live: usize, bound: usize) {
    assert!(
        held <= bound + bound * 15 / 100,
        "round {round}: the system reports {held} bytes, which is more than {bound} and 15 %"
    );
    assert!(held >= live, "round {round}: the system reports {held} bytes, fewer than the {live} live ones");
}

fn note(round: usize, store: StoreStats, rest: &str) {
    let StoreStats { live, recyclable, .. } = store;
    tell(&format!("note: round {round}: live {live} recyclable {recyclable} {rest} (bytes)"));
}

/// Takes a snapshot in each round, and checks how much memory the snapshots hold.
///
/// Every `keep_every` rounds, the snapshot that leaves the ring is kept until the end.
fn ring(base: impl FnOnce(usize) -> Snapshot, moving: bool, keep_every: usize) {
    let tracker = Snapshot::zeroed(1).unwrap().view().unwrap().stats().tracker;
    let (len, rounds) = dimensions(tracker);
    let asked = env::var("MEMSNAP_RING_ROUNDS").ok().map(|rounds| rounds.parse().unwrap());
    let rounds = asked.unwrap_or(rounds);

    let root = base(len);
    let pages = len / page_size();
    let mut view = root.view().unwrap();
    // This maps the base and makes the kernel page tables for it, so that they are part of `before`.
    root.diff(&Snapshot::from_slice(&[1]).unwrap()).unwrap();
    let files = memory_file_bytes();
    let mut model = Model::new(pages);
    let mut ring = VecDeque::with_capacity(RING);
    let mut kept = Vec::with_capacity(1000);
    let _ = memory();
    let before = memory();
    let mut worst = (0, 0.0_f64);

    for round in 0..rounds {
        if ring.len() == RING {
            let oldest: (usize, Snapshot) = ring.pop_front().unwrap();
            kept.extend((oldest.0 % keep_every == keep_every - 1).then_some(oldest));
        }
        for page in hot(round, moving).chain([cold(round, pages)]) {
            write(&mut view, round, page);
            model.write(page, round);
        }
        ring.push_back((round, view.take_snapshot().unwrap()));

        let store = root.stats().store;
        let bound = bound(round, pages, kept.len(), moving);
        assert!(
            store.live + store.recyclable <= bound + bound * 15 / 100,
            "round {round}: {store:?}, which is more than {bound} and 15 %"
        );
        if round % 100 != 99 && round != rounds - 1 {
            continue;
        }
        let held = kept.iter().chain(&ring).map(|(round, _)| *round);
        let live = model.live(held) * page_size();
        assert_eq!(
            store.live, live,
            "round {round}: the store does not hold exactly what the snapshots show"
        );
        // Each page that was ever written is private to the view once.
        let private = model.captured * page_size();
        if tracker != Tracking::Compare {
            assert_eq!(view.stats().private, private, "round {round}");
        }
        let held = held_by_system(round, before, private, files);
        let Some(held) = held else { continue };
        assert_within(round, held, live, bound);
        #[allow(clippy::cast_precision_loss)] // Megabytes.
        let ratio = held as f64 / bound as f64;
        if ratio > worst.1 {
            worst = (round, ratio);
        }
        if asked.is_some() && (round + 1) % (rounds / 10).max(100) == 0 {
            note(round + 1, store, &format!("bound {bound} system {held} private {private}"));
        }
    }
    if asked.is_some() {
        tell(&format!("note: at most {:.1} % of the bound, in round {}", 100.0 * worst.1, worst.0 + 1));
    }

    assert_exact(kept.iter().chain(&ring), moving, pages);
    kept.clear();
    let last = ring.pop_back().unwrap();
    drop(ring);
    let live = model.live([last.0].into_iter()) * page_size();
    let hot_pages = if moving { REGION.min(rounds * HOT) } else { HOT };
    assert!(live <= (hot_pages + rounds.min(pages - REGION)) * page_size());
    assert_eq!(root.stats().store.live, live);
    drop(view);
    assert_returned(&root, last.1, live, before);
}

/// Checks that each snapshot holds the bytes of its round.
fn assert_exact<'a>(snapshots: impl Iterator<Item = &'a (usize, Snapshot)>, moving: bool, pages: usize) {
    for (round, snapshot) in snapshots {
        for page in hot(*round, moving).chain([cold(*round, pages), cold(round / 2, pages)]) {
            let written = if page >= REGION && page != cold(*round, pages) {
                // The round in which this cold page was last written, up to the round of the snapshot.
                let lap = pages - REGION;
                (round / lap).checked_sub(usize::from(page - REGION > round % lap)).unwrap() * lap + page
                    - REGION
            } else {
                *round
            };
            assert_shows(snapshot, written, page);
        }
    }
}

/// Checks that the last snapshot alone holds `live` bytes of captured pages, and that nothing is left without it.
///
/// The last snapshot still shows the cold page of each earlier capture, but none of its 99 hot pages.
fn assert_returned(root: &Snapshot, last: Snapshot, live: usize, before: Option<Memory>) {
    let store = root.stats().store;
    // If the system does not report the memory, it counts as 0.
    let held =
        || memory().zip(before).map_or(0, |(now, before)| now.anonymous.saturating_sub(before.anonymous));
    let now = held();
    assert!(now <= live + live * 15 / 100 + store.recyclable + (2 << 20), "{now} bytes held for {live}");
    assert_eq!(store.live, live, "without the view, the snapshot does not hold exactly what it shows");

    drop(last);
    let store = root.stats().store;
    assert_eq!(store.live, 0);
    let held = held();
    let bound = RING * (HOT + 1) * page_size() * 15 / 100;
    assert!(held <= bound + (2 << 20), "{held} bytes held although no snapshot is left; {store:?}");
}

fn of_bytes(len: usize) -> Snapshot {
    Snapshot::from_slice(&noise(len, 1)).unwrap()
}

fn of_zeroes(len: usize) -> Snapshot {
    Snapshot::zeroed(len).unwrap()
}

#[test]
fn a_ring_with_hot_pages_in_one_place_holds_what_it_shows() {
    alone("a_ring_with_hot_pages_in_one_place_holds_what_it_shows", || ring(of_bytes, false, usize::MAX));
}

#[test]
fn a_ring_with_hot_pages_that_move_holds_what_it_shows() {
    alone("a_ring_with_hot_pages_that_move_holds_what_it_shows", || ring(of_zeroes, true, usize::MAX));
}

#[test]
fn snapshots_kept_for_good_hold_their_own_pages_and_no_others() {
    alone("snapshots_kept_for_good_hold_their_own_pages_and_no_others", || ring(of_bytes, false, 200));
}
