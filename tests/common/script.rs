//! Runs all operations in an order that a seed determines, and compares the results with byte vectors.

use std::ops::Range;
use std::sync::Arc;

use memsnap::{ArcView, Snapshot, Tracking, page_size};

use super::{assert_same, pattern};

/// Enough pages for long runs, which are mapped rather than copied.
const PAGES: usize = 100;

/// The number of snapshots that are kept at a time.
const HELD: usize = 10;

/// Snapshots and views of one length, with the bytes that they must show.
pub(crate) struct Script {
    random: Random,
    snapshots: Vec<(Arc<Snapshot>, Vec<u8>)>,
    views: Vec<Tree>,
}

struct Tree {
    view: ArcView,
    bytes: Vec<u8>,
    root: Vec<u8>,
    synced: Vec<u8>,
}

/// A `SplitMix64` generator.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((bits ^ (bits >> 31)) % limit as u64).unwrap()
    }

    fn edit(&mut self, bytes: &mut [u8]) -> (Range<usize>, u8) {
        let start = self.below(bytes.len());
        let longest = [1, 100, 3 * page_size(), 80 * page_size()][self.below(4)];
        let range = start..bytes.len().min(start + 1 + self.below(longest));
        let value = self.below(4).to_le_bytes()[0];
        bytes[range.clone()].fill(value);
        (range, value)
    }
}

impl Script {
    pub(crate) fn new(seed: u64) -> Self {
        let mut script = Self { random: Random(seed), snapshots: Vec::new(), views: Vec::new() };
        let bytes = pattern(PAGES, 1);
        script.add(Snapshot::from_slice(&bytes).unwrap(), bytes);
        let zeroes = vec![0; PAGES * page_size()];
        script.add(Snapshot::zeroed(zeroes.len()).unwrap(), zeroes);
        script.open(0);
        script.open(1);
        script
    }

    /// Continues with the same snapshots and views, but in another order.
    pub(crate) fn reseed(&mut self, seed: u64) {
        self.random = Random(seed);
    }

    /// Sets the tracking method of the open views, if it can work.
    pub(crate) fn track(&mut self, tracking: Tracking) {
        self.views.iter_mut().for_each(|tree| drop(tree.view.set_tracking(tracking)));
    }

    pub(crate) fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            self.step();
        }
        self.check();
    }

    /// Returns the tracking method of the first view.
    ///
    /// It searches for written pages first, since the method is unknown before.
    pub(crate) fn tracker(&self) -> Tracking {
        self.views[0].view.changes().unwrap();
        self.views[0].view.stats().tracker
    }

    /// Like `tracker`, but returns `Scan` for `Armed`, which a view in tier `scan` changes to after a while.
    pub(crate) fn scanner(&self) -> Tracking {
        match self.tracker() {
            Tracking::Armed => Tracking::Scan,
            tracker => tracker,
        }
    }

    pub(crate) fn check(&self) {
        for tree in &self.views {
            assert_same("view", &tree.view, &tree.bytes);
            assert_eq!(tree.view.changes().unwrap().ranges(), differing(&tree.bytes, &tree.synced));
        }
        for (snapshot, bytes) in &self.snapshots {
            assert_same("view of a snapshot", &snapshot.view().unwrap(), bytes);
            assert_same("snapshot", &read(snapshot), bytes);
        }
    }

    fn add(&mut self, snapshot: Snapshot, bytes: Vec<u8>) {
        if self.snapshots.len() >= HELD {
            let dropped = self.random.below(HELD);
            self.snapshots.swap_remove(dropped);
        }
        self.snapshots.push((Arc::new(snapshot), bytes));
    }

    fn open(&mut self, snapshot: usize) {
        let (snapshot, bytes) = &self.snapshots[snapshot];
        let view = snapshot.view_arc().unwrap();
        assert_same("new view", &view, bytes);
        self.views.push(Tree { view, bytes: bytes.clone(), root: bytes.clone(), synced: bytes.clone() });
    }

    fn step(&mut self) {
        let snapshot = self.random.below(self.snapshots.len());
        let view = self.random.below(self.views.len());
        let tree = &mut self.views[view];
        let address = tree.view.as_ptr();
        match self.random.below(40) {
            0..12 => {
                let (range, value) = self.random.edit(&mut tree.bytes);
                tree.view[range].fill(value);
            }
            12..19 => {
                let taken = tree.view.take_snapshot().unwrap();
                tree.synced.clone_from(&tree.bytes);
                let bytes = tree.bytes.clone();
                assert_same("taken", &read(&taken), &bytes);
                self.add(taken, bytes);
            }
            19..23 => {
                tree.view.restore().unwrap();
                tree.synced.clone_from(&tree.root);
                tree.bytes.clone_from(&tree.root);
            }
            23..29 => {
                let (snapshot, bytes) = &self.snapshots[snapshot];
                tree.view.restore_to(snapshot).unwrap();
                tree.synced.clone_from(bytes);
                tree.bytes.clone_from(bytes);
            }
            29..31 => {
                assert_eq!(tree.view.changes().unwrap().ranges(), differing(&tree.bytes, &tree.synced));
            }
            31..33 => {
                let other = self.random.below(self.snapshots.len());
                let ((one, left), (other, right)) = (&self.snapshots[snapshot], &self.snapshots[other]);
                assert_eq!(one.diff(other).unwrap().ranges(), differing(left, right));
            }
            33 if view > 0 => {
                self.views.swap_remove(view);
                self.open(snapshot);
                return;
            }
            34 => {
                let (snapshot, bytes) = &self.snapshots[snapshot];
                for _ in 0..70 {
                    snapshot.view().unwrap();
                }
                assert_same("often viewed", &snapshot.view().unwrap(), bytes);
            }
            _ => {
                self.mutate(snapshot);
                return;
            }
        }
        let tree = &self.views[view];
        assert_eq!(tree.view.as_ptr(), address);
        assert_same("view after a step", &tree.view, &tree.bytes);
    }

    /// Writes through a mutable view of a clone of a snapshot.
    fn mutate(&mut self, snapshot: usize) {
        let (snapshot, mut bytes) = self.snapshots[snapshot].clone();
        let mut snapshot = Snapshot::clone(&snapshot);
        let mut taken = None;
        let mut view = snapshot.view_mut().unwrap();
        for _ in 0..3 {
            let (range, value) = self.random.edit(&mut bytes);
            view[range].fill(value);
            if self.random.below(3) == 0 {
                taken = Some((view.take_snapshot().unwrap(), bytes.clone()));
            }
            assert_same("mutable view", &view, &bytes);
        }
        match self.random.below(2) {
            0 => view.commit().unwrap(),
            _ => drop(view),
        }
        assert_same("mutated", &read(&snapshot), &bytes);
        self.add(snapshot, bytes);
        if let Some((snapshot, bytes)) = taken {
            self.add(snapshot, bytes);
        }
    }
}

/// Returns all bytes of a snapshot, without opening a view.
pub(crate) fn read(snapshot: &Snapshot) -> Vec<u8> {
    let mut bytes = vec![0xA5; snapshot.len()];
    assert_eq!(snapshot.read_at(&mut bytes, 0).unwrap(), bytes.len());
    bytes
}

/// Returns the ranges of whole pages in which two slices differ.
///
/// If one slice is longer, the pages that only this one has count as different.
pub(crate) fn differing(left: &[u8], right: &[u8]) -> Vec<Range<usize>> {
    let page = page_size();
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for at in (0..left.len().max(right.len())).step_by(page) {
        if page_at(left, at) != page_at(right, at) {
            match ranges.last_mut() {
                Some(last) if last.end == at => last.end += page,
                _ => ranges.push(at..at + page),
            }
        }
    }
    ranges
}

/// Returns the page of `bytes` at `at`, if there is one. The last page may be shorter.
fn page_at(bytes: &[u8], at: usize) -> Option<&[u8]> {
    bytes.get(at..bytes.len().min(at + page_size()))
}
