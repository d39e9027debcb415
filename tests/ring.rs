//! The memory of captured pages is precise: a page is held as long as a snapshot shows it, and no
//! longer, whatever was captured together with it.
//!
//! A ring of snapshots, of which the oldest goes with each new one. Each captures 99 hot pages, which
//! are soon written again, and a cold one, which is not. `MEMSNAP_RING_ROUNDS=100000 cargo test
//! --release --test ring` runs it for longer, and tells its figures.

mod common;

use std::collections::VecDeque;
use std::env;

use common::maps::memory;
use common::{alone, memory_file_bytes, noise, tell};
use memsnap::{Snapshot, Tracking, page_size};

/// Snapshots in the ring.
const RING: usize = 64;
/// Hot pages a round.
const HOT: usize = 99;
/// Where the hot pages move about; all pages behind are cold.
const REGION: usize = 1000;

/// Which versions of which pages the snapshots show that are held.
struct Model {
    /// The round in which the newest version of each page was captured, if it was.
    newest: Vec<Option<usize>>,
    captured: usize,
    /// Of older versions: the round in which they were captured, and the one in which they were replaced.
    past: Vec<(usize, usize)>,
}

impl Model {
    fn new(pages: usize) -> Self {
        // Memory of the model's own is not to be taken for the library's.
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

    /// The versions that the snapshots of these rounds show; the last of them is the newest round.
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

/// The hot pages of a round.
fn hot(round: usize, moving: bool) -> impl Iterator<Item = usize> {
    let start = if moving { round * 131 } else { 0 };
    let step = if moving { 7 } else { 1 };
    (0..HOT).map(move |i| (start + i * step) % REGION)
}

fn cold(round: usize, pages: usize) -> usize {
    REGION + round % (pages - REGION)
}

/// What a page holds that was written in `round`.
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

/// `keep_every`: each so many rounds the snapshot is kept for good.
fn ring(base: impl FnOnce(usize) -> Snapshot, moving: bool, keep_every: usize) {
    let tracker = Snapshot::zeroed(1).unwrap().view().unwrap().stats().tracker;
    // Trackers that look at every page of the view each time get a smaller one.
    let (len, rounds) = match tracker {
        Tracking::Scan => (256 << 20, 1000),
        Tracking::Pagemap => (32 << 20, 500),
        _ => (32 << 20, 200),
    };
    let asked = env::var("MEMSNAP_RING_ROUNDS").ok().map(|rounds| rounds.parse().unwrap());
    let rounds = asked.unwrap_or(rounds);
    let len = len.max(4 * REGION * page_size());

    let root = base(len);
    let pages = len / page_size();
    let mut view = root.view().unwrap();
    // The base counts as mapped from the start, and the kernel's tables as read.
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
            let (round, oldest) = ring.pop_front().unwrap();
            if round % keep_every == keep_every - 1 {
                kept.push((round, oldest));
            }
        }
        for page in hot(round, moving).chain([cold(round, pages)]) {
            write(&mut view, round, page);
            model.write(page, round);
        }
        ring.push_back((round, view.take_snapshot().unwrap()));

        let store = root.stats().store;
        let cold_pages = (round + 1).min(pages - REGION);
        // The oldest snapshot shows all places that the hot pages have come by.
        let behind = if moving { REGION - HOT } else { 0 };
        let bound = (RING * (HOT + 1) + cold_pages + kept.len() * HOT + behind) * page_size();
        assert!(
            store.live + store.recyclable <= bound + bound * 15 / 100,
            "round {round}: {store:?}, which is more than {bound} and 15 %"
        );
        if round % 100 != 99 && round != rounds - 1 {
            continue;
        }
        let held = kept.iter().chain(&ring).map(|(round, _)| *round);
        let live = model.live(held) * page_size();
        assert_eq!(store.live, live, "round {round}: not the pages that the held snapshots show");
        // The view's own pages: all that were ever written, each once.
        let private = model.captured * page_size();
        if tracker != Tracking::Compare {
            assert_eq!(view.stats().private, private, "round {round}");
        }
        let Some((now, before)) = memory().zip(before) else { continue };
        let held = now.anonymous.saturating_sub(before.anonymous + private);
        assert!(
            held <= bound + bound * 15 / 100,
            "round {round}: the system says {held} bytes, which is more than {bound} and 15 %"
        );
        assert!(held >= live, "round {round}: {held} bytes for {live} live ones; the measure is off");
        assert_eq!(memory_file_bytes(), files, "round {round}: captured pages in memory files");
        assert!(Some(now.shared as u64) <= files.map(|files| files + (1 << 20)), "round {round}: {now:?}");
        #[allow(clippy::cast_precision_loss)] // Megabytes.
        let ratio = held as f64 / bound as f64;
        if ratio > worst.1 {
            worst = (round, ratio);
        }
        if asked.is_some() && (round + 1) % (rounds / 10).max(100) == 0 {
            tell(&format!(
                "note: round {}: live {} recyclable {} bound {} system {held} private {private} (bytes)",
                round + 1,
                store.live,
                store.recyclable,
                bound
            ));
        }
    }
    if asked.is_some() {
        tell(&format!("note: at most {:.1} % of the bound, in round {}", 100.0 * worst.1, worst.0 + 1));
    }

    for (round, snapshot) in kept.iter().chain(&ring) {
        for page in hot(*round, moving).chain([cold(*round, pages), cold(round / 2, pages)]) {
            let written = if page >= REGION && page != cold(*round, pages) {
                // A cold page of an earlier round, or of a later one if that came round already.
                let lap = pages - REGION;
                (round / lap).checked_sub(usize::from(page - REGION > round % lap)).unwrap() * lap + page
                    - REGION
            } else {
                *round
            };
            assert_shows(snapshot, written, page);
        }
    }

    // Of each capture only the cold page is still shown, its 99 neighbours are not.
    let (newest, last) = ring.pop_back().unwrap();
    ring.clear();
    kept.clear();
    let live = model.live([newest].into_iter()) * page_size();
    assert_eq!(root.stats().store.live, live);
    let hot_pages = if moving { REGION.min(rounds * HOT) } else { HOT };
    assert!(live <= (hot_pages + rounds.min(pages - REGION)) * page_size());
    drop(view);
    let store = root.stats().store;
    // What is not known is taken for nothing.
    let held =
        || memory().zip(before).map_or(0, |(now, before)| now.anonymous.saturating_sub(before.anonymous));
    let now = held();
    assert!(now <= live + live * 15 / 100 + store.recyclable + (2 << 20), "{now} bytes held for {live}");
    assert_eq!(store.live, live, "the snapshot holds what it shows without the view, too");

    drop(last);
    let store = root.stats().store;
    assert_eq!(store.live, 0);
    let held = held();
    let bound = RING * (HOT + 1) * page_size() * 15 / 100;
    assert!(held <= bound + (2 << 20), "{held} bytes held for nothing; {store:?}");
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
