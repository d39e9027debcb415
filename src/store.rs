//! Where captured pages live.
//!
//! A store belongs to a snapshot and all its descendants. It hands out page-sized slots of private
//! anonymous memory and takes each back when the last image that refers to it goes. Private memory
//! because of `fork`: parent and child each get the kernel's own copy-on-write, so that neither can
//! recycle, overwrite or return a page that the other still reads; a shared file could not do that.
//!
//! Freed slots are kept with their frames for the next capture, as many as the recent captures took
//! at a time; the frames beyond go back to the system, the addresses stay for later.
#![allow(unsafe_code)]

use std::io;
use std::ops::RangeInclusive;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::page_size;
use crate::pages::PageSet;
use crate::sys::{Mapping, Source};

/// Pages in a segment: a store starts small and grows by half of what it has.
const SEGMENT_PAGES: RangeInclusive<usize> = 64..=16_384;

/// Frames of freed slots are kept up to the largest recent capture, and at least this share of the
/// captured pages.
const KEPT_SHARE: usize = 32;

/// Freed slots over the limit before any are returned: at least this many go back in one sweep.
const SWEEP: usize = 64;

/// The memory of captured pages; see the module.
pub(crate) struct Store {
    slots: Mutex<Slots>,
}

/// Invariant: each slot of each segment is in exactly one place: in one `Page`, in `kept`, or in `bare`.
#[derive(Default)]
struct Slots {
    segments: Vec<Arc<Mapping>>,
    total: usize,
    /// Free, with a frame; the last freed is the first reused. Has room for all slots, so that
    /// freeing never allocates.
    kept: Vec<Slot>,
    /// Free, without a frame.
    bare: Vec<Slot>,
    /// The size of recent captures: the largest, fading by an eighth with each later one.
    recent: usize,
    /// The system refused to take frames back (locked memory, say), so it is not asked again.
    pinned: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    segment: usize,
    page: usize,
}

/// Slots handed out, not yet written.
struct Taken {
    slots: Vec<(Slot, NonNull<u8>)>,
    /// Those that have no frame yet.
    bare: Vec<(Arc<Mapping>, PageSet)>,
}

/// What a store holds, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Usage {
    /// Referred to by images.
    pub(crate) live: usize,
    /// Free, but with a frame, waiting for the next capture.
    pub(crate) kept: usize,
}

/// A captured page.
///
/// Invariant: its bytes do not change as long as it exists.
pub(crate) struct Page {
    bytes: NonNull<u8>,
    slot: Slot,
    store: Arc<Store>,
}

// SAFETY: a page gives out nothing but shared references to bytes that do not change.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Page {
    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the slot is one page of a segment, which the store keeps mapped, written in full by
        // `capture`, and by nobody as long as this page exists.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr(), page_size()) }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.store.lock().free(self.slot);
    }
}

impl Store {
    pub(crate) fn new() -> Self {
        Self { slots: Mutex::default() }
    }

    /// Copies `sources`, slices of one page each, into pages of this store: all or none.
    pub(crate) fn capture(self: &Arc<Self>, sources: &[&[u8]]) -> io::Result<Vec<Arc<Page>>> {
        let len = page_size();
        assert!(sources.iter().all(|source| source.len() == len), "a source is one page");
        let taken = self.lock().take(sources.len())?;
        for (segment, pages) in &taken.bare {
            pages.ranges().iter().for_each(|&range| segment.populate(range));
        }
        let pages = taken.slots.into_iter().zip(sources).map(|((slot, bytes), source)| {
            // SAFETY: the slot was taken from the store just now, so that nobody else reads or writes its
            // page, which is as long as the source and cannot overlap with it.
            unsafe { bytes.copy_from_nonoverlapping(NonNull::from(*source).cast(), len) };
            Arc::new(Page { bytes, slot, store: Arc::clone(self) })
        });
        Ok(pages.collect())
    }

    pub(crate) fn usage(&self) -> Usage {
        let slots = self.lock();
        Usage { live: slots.live(), kept: slots.kept.len() }
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        // Nothing under the lock panics half-way.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    fn live(&self) -> usize {
        self.total - self.kept.len() - self.bare.len()
    }

    /// Hands out `count` slots, recycled ones first, or changes nothing.
    fn take(&mut self, count: usize) -> io::Result<Taken> {
        if let Some(missing) = count.checked_sub(self.kept.len() + self.bare.len())
            && missing > 0
        {
            self.grow(missing)?;
        }
        self.recent = count.max(self.recent - self.recent / 8);
        let recycled = self.kept.len() - count.min(self.kept.len());
        let mut slots: Vec<_> = self.kept.drain(recycled..).collect();
        let bare = self.bare.len() - (count - slots.len());
        let bare: Vec<_> = self.bare.drain(bare..).rev().collect();
        slots.extend(&bare);
        Ok(Taken {
            slots: slots
                .into_iter()
                .map(|slot| (slot, self.segments[slot.segment].page_ptr(slot.page)))
                .collect(),
            bare: self.by_segment(bare),
        })
    }

    fn grow(&mut self, missing: usize) -> io::Result<()> {
        let (least, most) = SEGMENT_PAGES.into_inner();
        let wanted = missing.max((self.total / 2).clamp(least, most));
        let segment = Mapping::new(wanted, Source::Zero).or_else(|_| Mapping::new(missing, Source::Zero))?;
        let added = segment.pages();
        let number = self.segments.len();
        self.segments.push(Arc::new(segment));
        self.total += added;
        self.kept.reserve(self.total - self.kept.len());
        self.bare.reserve(self.total - self.bare.len());
        // Slots are taken from the end, so the first pages go last.
        self.bare.splice(0..0, (0..added).rev().map(|page| Slot { segment: number, page }));
        Ok(())
    }

    fn free(&mut self, slot: Slot) {
        self.kept.push(slot);
        let limit = self.recent.max(self.live() / KEPT_SHARE);
        if self.kept.len() > limit + (limit / 4).max(SWEEP) && !self.pinned {
            self.sweep(limit);
        }
    }

    /// Returns frames to the system until `limit` are kept; those freed longest ago go first.
    fn sweep(&mut self, limit: usize) {
        let excess = self.kept.len() - limit;
        let swept: Vec<_> = self.kept.drain(..excess).collect();
        for (segment, pages) in self.by_segment(swept.clone()) {
            // SAFETY: these slots are free, so that no page refers to their bytes.
            if unsafe { segment.discard(&pages) }.is_err() {
                // A slot counted as kept may have lost its frame, which costs a fault when it is reused.
                self.pinned = true;
                self.kept.extend(swept);
                return;
            }
        }
        self.bare.extend(swept);
    }

    fn by_segment(&self, mut slots: Vec<Slot>) -> Vec<(Arc<Mapping>, PageSet)> {
        slots.sort_unstable();
        slots
            .chunk_by(|a, b| a.segment == b.segment)
            .map(|slots| {
                let pages = slots.iter().map(|slot| slot.page).collect();
                (Arc::clone(&self.segments[slots[0].segment]), pages)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(store: &Arc<Store>, count: usize, byte: u8) -> Vec<Arc<Page>> {
        let source = vec![byte; page_size()];
        store.capture(&vec![source.as_slice(); count]).unwrap()
    }

    #[test]
    fn slots_are_recycled_and_live_bytes_stay() {
        let store = Arc::new(Store::new());
        let mut held = Vec::new();
        for round in 0..200_u8 {
            held.push((round, pages(&store, 10, round)));
            if held.len() > 5 {
                held.remove(usize::from(round) % 5);
            }
            for (byte, pages) in &held {
                assert!(pages.iter().all(|page| page.bytes().iter().all(|b| b == byte)));
            }
        }
        let total = store.lock().total;
        assert!(total <= 64 * 2, "{total} slots for at most 60 pages");
    }

    #[test]
    fn one_cold_page_does_not_pin_the_hot_ones() {
        let store = Arc::new(Store::new());
        let cold: Vec<_> = (0..100).map(|_| pages(&store, 100, 1).swap_remove(50)).collect();
        let usage = store.usage();
        assert_eq!(usage.live, 100);
        assert!(usage.kept <= 100 + SWEEP, "{usage:?}");
        assert!(store.lock().total <= 400);
        drop(cold);
        assert_eq!(store.usage().live, 0);
    }

    #[test]
    fn frames_beyond_the_recent_demand_go_back() {
        let store = Arc::new(Store::new());
        let large = pages(&store, 10_000, 1);
        for _ in 0..100 {
            pages(&store, 1, 2);
        }
        drop(large);
        let usage = store.usage();
        assert!(usage.kept <= 2 * SWEEP, "{usage:?}");
    }
}
