//! A view, the bytes that it must show, and all calls on it.

use std::ops::Range;
use std::slice;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use memsnap::{Snapshot, Tracking, View, WhyNotFaster, page_size};

use crate::account::{Kind, done, publish};
use crate::common::assert_same;
use crate::common::script::{Random, differing};
use crate::nuisances;

/// The bytes that one view must show, and how they came about.
///
/// The bytes of a view and this value change only while the lock is held for writing.
#[derive(Clone, Default)]
pub(crate) struct Shown {
    pub(crate) address: usize,
    pub(crate) bytes: Vec<u8>,
    /// The latest writes, with the kind of each.
    pub(crate) writes: Vec<(Range<usize>, Kind)>,
}

impl Shown {
    /// Returns bytes of the view itself.
    ///
    /// The caller holds the lock, so that the view exists and nobody writes to it.
    pub(crate) fn slice(&self, range: Range<usize>) -> &[u8] {
        assert!(range.end <= self.bytes.len());
        let start = std::ptr::with_exposed_provenance(self.address + range.start);
        // SAFETY: the range is within the view, whose bytes nobody writes to while the lock is held.
        unsafe { slice::from_raw_parts(start, range.len()) }
    }
}

/// The bytes that each view must show.
pub(crate) type AllShown = Arc<RwLock<Vec<Shown>>>;

/// The index of a view among all views. Dropping the value frees the index.
struct Place {
    index: usize,
    all: AllShown,
}

impl Drop for Place {
    fn drop(&mut self) {
        write(&self.all)[self.index] = Shown::default();
    }
}

pub(crate) fn read(shown: &RwLock<Vec<Shown>>) -> RwLockReadGuard<'_, Vec<Shown>> {
    shown.read().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn write(shown: &RwLock<Vec<Shown>>) -> RwLockWriteGuard<'_, Vec<Shown>> {
    shown.write().unwrap_or_else(PoisonError::into_inner)
}

/// A snapshot and its bytes.
pub(crate) type Held = (Snapshot, Arc<[u8]>);

/// A view that the owning thread calls.
pub(crate) struct Subject<S> {
    /// This field is dropped before the view, so that no other thread uses the view after its end.
    place: Place,
    pub(crate) name: &'static str,
    pub(crate) view: View<S>,
    /// The bytes that the view was opened on.
    root: Arc<[u8]>,
    /// The bytes at the last snapshot or restore of the view.
    synced: Arc<[u8]>,
    pub(crate) held: Vec<Held>,
    most_held: usize,
    /// Whether the memory of the view may have been replaced.
    pub(crate) replaced: bool,
}

impl<S> Subject<S> {
    /// Announces the view to all other threads and processes. It shows `root`.
    pub(crate) fn new(
        (index, name): (usize, &'static str),
        mut view: View<S>,
        root: Arc<[u8]>,
        most_held: usize,
        shown: &AllShown,
    ) -> Self {
        let place = Place { index, all: Arc::clone(shown) };
        let address = view.as_mut_ptr().expose_provenance();
        write(shown)[index] = Shown { address, bytes: root.to_vec(), writes: Vec::new() };
        nuisances::unlocked(|| publish(index, address, view.len()));
        let (synced, held) = (Arc::clone(&root), Vec::new());
        Self { place, name, view, root, synced, held, most_held, replaced: false }
    }

    /// Makes all other threads and processes forget the view.
    pub(crate) fn retire(self) -> View<S> {
        nuisances::unlocked(|| publish(self.index(), 0, 0));
        self.view
    }

    /// Returns whether the view is written in place, so that a forked child must not use it.
    pub(crate) fn is_in_place(&self) -> bool {
        self.view.stats().why_not_faster == Some(WhyNotFaster::InPlace)
    }

    pub(crate) fn index(&self) -> usize {
        self.place.index
    }

    /// Returns the bytes that the view must show.
    pub(crate) fn bytes(&self) -> Arc<[u8]> {
        read(&self.place.all)[self.index()].bytes.as_slice().into()
    }

    /// Checks the bytes of the view.
    pub(crate) fn check(&self, what: &str) {
        let shown = read(&self.place.all);
        let shown = &shown[self.index()];
        if self.view[..] != shown.bytes[..] {
            let (writes, stats) = (&shown.writes, self.view.stats());
            println!(
                "{}, {what}: {:?} differ after {writes:?}; {stats:?}",
                self.name,
                differing(&self.view, &shown.bytes)
            );
        }
        assert_same(&format!("{}, {what}", self.name), &self.view, &shown.bytes);
    }

    pub(crate) fn check_held(&self, random: &mut Random) {
        for held in &self.held {
            check_held(self.name, held, random);
        }
    }

    /// Makes a random call on the view, and checks the view.
    pub(crate) fn act(&mut self, random: &mut Random, strangers: &[Held]) {
        let (all_shown, index) = (Arc::clone(&self.place.all), self.index());
        let all = self.view.len();
        if self.view.stats().tracker == Tracking::Armed {
            done(Kind::Armed);
        }
        let what = match random.below(21) {
            0..7 => {
                let in_place = self.is_in_place();
                self.take(random);
                if in_place { Kind::TakeInPlace } else { Kind::Take }
            }
            7..9 => {
                let shown = read(&all_shown);
                let ranges = self.view.changes().unwrap().ranges();
                assert_eq!(ranges, differing(&shown[index].bytes, &self.synced), "{}", self.name);
                Kind::Changes
            }
            9..12 => {
                self.shows(Arc::clone(&self.root), |view| view.restore().unwrap());
                Kind::Restore
            }
            12..16 => {
                let from = if self.held.is_empty() || random.below(10) == 0 { strangers } else { &self.held };
                let Some((snapshot, bytes)) = from.get(random.below(from.len().max(1))) else { return };
                // A small view has no room for a snapshot of a large one.
                if bytes.len() != all {
                    return;
                }
                let (snapshot, bytes) = (snapshot.clone(), Arc::clone(bytes));
                self.shows(bytes, |view| view.restore_to(&snapshot).unwrap());
                Kind::RestoreTo
            }
            16..18 => {
                let mut shown = write(&all_shown);
                let bytes = &mut shown[index].bytes;
                let ranges: Vec<_> = (0..1 + random.below(3)).map(|_| some_range(random, all)).collect();
                self.view.restore_excluding(&ranges).unwrap();
                let mut restored = self.root.to_vec();
                ranges
                    .iter()
                    .for_each(|range| restored[range.clone()].copy_from_slice(&bytes[range.clone()]));
                *bytes = restored;
                (self.synced, self.replaced) = (Arc::clone(&self.root), true);
                Kind::Exclude
            }
            18 => {
                let mut shown = write(&all_shown);
                let range = some_range(random, all);
                self.view.discard(range.clone()).unwrap();
                shown[index].bytes[range.clone()].copy_from_slice(&self.synced[range]);
                self.replaced = true;
                Kind::Discard
            }
            _ => {
                let mut shown = write(&all_shown);
                let range = some_range(random, all);
                self.view.zero(range.clone()).unwrap();
                shown[index].bytes[range].fill(0);
                self.replaced = true;
                Kind::Zero
            }
        };
        done(what);
        self.check(what.name());
    }

    /// Writes with plain stores.
    pub(crate) fn fill(&mut self, range: Range<usize>, value: u8) {
        let mut shown = write(&self.place.all);
        self.view[range.clone()].fill(value);
        shown[self.place.index].bytes[range].fill(value);
    }

    fn take(&mut self, random: &mut Random) {
        let shown = read(&self.place.all);
        let taken = self.view.take_snapshot().unwrap();
        let bytes: Arc<[u8]> = shown[self.place.index].bytes.as_slice().into();
        drop(shown);
        self.synced = Arc::clone(&bytes);
        if self.held.len() == self.most_held {
            self.held.swap_remove(random.below(self.most_held));
        }
        self.held.push((taken, bytes));
    }

    fn shows(&mut self, bytes: Arc<[u8]>, restore: impl FnOnce(&mut View<S>)) {
        let mut shown = write(&self.place.all);
        restore(&mut self.view);
        shown[self.place.index].bytes.copy_from_slice(&bytes);
        (self.synced, self.replaced) = (bytes, true);
    }
}

/// Checks the bytes of a snapshot, by reading it or through a view.
pub(crate) fn check_held(name: &str, (snapshot, bytes): &Held, random: &mut Random) {
    if random.below(2) == 0 {
        let mut read = vec![0xA5; bytes.len()];
        assert_eq!(snapshot.read_at(&mut read, 0).unwrap(), bytes.len());
        assert_same(&format!("{name}, a snapshot that was read"), &read, bytes);
    } else {
        assert_same(&format!("{name}, a snapshot that was viewed"), &snapshot.view().unwrap(), bytes);
    }
}

/// Returns a random range within `len` bytes: some bytes, some pages, or many pages.
pub(crate) fn some_range(random: &mut Random, len: usize) -> Range<usize> {
    let start = match random.below(3) {
        0 => random.below(len),
        // The start is at a page boundary. Some pages are used again and again.
        1 => random.below(len / page_size()) * page_size(),
        _ => (random.below(8) * 7 + 1) % (len / page_size()) * page_size(),
    };
    let most = [100, page_size(), 3 * page_size(), 40 * page_size()][random.below(4)];
    let end = len.min(start + 1 + random.below(most));
    match random.below(2) {
        0 => start..end,
        _ => start..len.min(end.next_multiple_of(page_size())),
    }
}
