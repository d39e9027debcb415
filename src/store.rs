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
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use crate::options::Populate;
use crate::page_size;
use crate::pages::PageSet;
#[cfg(miri)]
use crate::sys::Boxed as Mapping;
#[cfg(not(miri))]
use crate::sys::Mapping;
use crate::sys::Source;

/// Pages in a segment: a store starts small and grows by half of what it has.
const SEGMENT_PAGES: RangeInclusive<usize> = 64..=16_384;

/// Frames of freed slots are kept up to the largest recent capture, and at least this share of the
/// captured pages.
const KEPT_SHARE: usize = 32;

/// Freed slots over the limit before any are returned: at least this many go back in one sweep.
const SWEEP: usize = 64;

/// The most slots that are reserved at a time.
const BATCH: usize = 64;

/// The largest page that any platform has.
static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// What captured pages are that hold nothing but zeroes, of all stores.
static ZERO_PAGE: LazyLock<Arc<Page>> = LazyLock::new(|| {
    let start = NonNull::from(&ZEROES).cast();
    Arc::new(Page { slot: Slot { segment: usize::MAX, start }, store: None })
});

/// One page of zeroes.
pub(crate) fn zeroes() -> &'static [u8] {
    &ZEROES[..page_size()]
}

/// Whether `page`, one page long, holds nothing but zeroes.
pub(crate) fn is_zero(page: &[u8]) -> bool {
    page == &ZEROES[..page.len()]
}

/// The memory of captured pages; see the module.
pub(crate) struct Store {
    slots: Mutex<Slots>,
    /// Images that keep their pages here.
    pub(crate) images: AtomicUsize,
}

/// Invariant: each slot of each segment is in exactly one place: in one `Page`, in `kept`, in `bare`, or with a
/// thread that is about to put it into one of these.
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

/// One page of a segment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    segment: usize,
    start: NonNull<u8>,
}

// SAFETY: a slot is an address; who may read or write there is decided by those who have it.
unsafe impl Send for Slot {}

/// A page that may have to be captured: what it shows now, and what it showed before, to be compared with.
pub(crate) struct Candidate<'a> {
    pub(crate) page: usize,
    pub(crate) now: &'a [u8],
    pub(crate) before: Option<&'a [u8]>,
}

/// Slots taken out and not used yet, which go back in the end. All of them have frames.
struct Reserved<'a> {
    store: &'a Store,
    slots: Vec<Slot>,
}

impl Reserved<'_> {
    /// The next slot; if there is none, up to `count` are reserved.
    fn next(&mut self, count: usize) -> io::Result<Slot> {
        if let Some(slot) = self.slots.pop() {
            return Ok(slot);
        }
        let bare;
        (self.slots, bare) = self.store.lock().take(count)?;
        for (segment, pages) in &bare {
            // A wish: where it cannot be granted, the first writes make the frames.
            pages.ranges().iter().for_each(|&range| drop(segment.populate(range, Populate::Write)));
        }
        self.slots.pop().ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.slots.drain(..).for_each(|slot| self.store.free(slot));
    }
}

/// Pages of segments.
type Places = Vec<(Arc<Mapping>, PageSet)>;

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
    slot: Slot,
    /// `None` of the page of zeroes, which is nobody's.
    store: Option<Arc<Store>>,
}

// SAFETY: a page gives out nothing but shared references to bytes that do not change.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Page {
    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the slot is `ZEROES`, or one page of a segment, which the store keeps mapped, written in full
        // by `capture`, and by nobody as long as this page exists.
        unsafe { std::slice::from_raw_parts(self.slot.start.as_ptr(), page_size()) }
    }

    /// Whether it is the page of zeroes, which takes no memory.
    pub(crate) fn is_zero(&self) -> bool {
        self.store.is_none()
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        if let Some(store) = &self.store {
            store.free(self.slot);
        }
    }
}

impl Store {
    pub(crate) fn new() -> Self {
        Self { slots: Mutex::default(), images: AtomicUsize::new(0) }
    }

    /// Copies those of `candidates` that changed into pages of this store: all or none. What is zero now takes
    /// no page.
    ///
    /// Compared and copied in one go, since a page that was just compared is in the processor's cache.
    pub(crate) fn capture<'a>(
        self: &Arc<Self>,
        candidates: impl ExactSizeIterator<Item = Candidate<'a>>,
    ) -> io::Result<Vec<(usize, Arc<Page>)>> {
        let len = page_size();
        let (mut captured, mut copied) = (Vec::new(), 0_usize);
        let mut reserved = Reserved { store: self, slots: Vec::new() };
        let mut left = candidates.len();
        for Candidate { page, now, before } in candidates {
            assert_eq!(now.len(), len, "a page is one page long");
            left -= 1;
            if before == Some(now) {
                continue;
            }
            if is_zero(now) {
                captured.push((page, Arc::clone(&ZERO_PAGE)));
            } else {
                let slot = reserved.next(copied.clamp(1, (left + 1).min(BATCH)))?;
                // SAFETY: the slot was taken from the store just now, so that nobody else reads or writes its
                // page, which is as long as the source and cannot overlap with it.
                unsafe { slot.start.copy_from_nonoverlapping(NonNull::from(now).cast(), len) };
                captured.push((page, Arc::new(Page { slot, store: Some(Arc::clone(self)) })));
                copied += 1;
            }
        }
        if copied > 0 {
            let mut slots = self.lock();
            slots.recent = copied.max(slots.recent - slots.recent / 8);
        }
        Ok(captured)
    }

    pub(crate) fn usage(&self) -> Usage {
        let slots = self.lock();
        Usage { live: slots.live(), kept: slots.kept.len() }
    }

    fn free(&self, slot: Slot) {
        let mut slots = self.lock();
        slots.kept.push(slot);
        let Some((excess, places)) = slots.excess() else { return };
        // Others go on meanwhile: nobody else knows of these slots.
        drop(slots);
        let returned = places.iter().all(|(segment, pages)| {
            // SAFETY: these slots are free, so that no page refers to their bytes.
            unsafe { segment.give_back(pages) }.is_ok()
        });
        let mut slots = self.lock();
        if returned {
            slots.bare.extend(excess);
        } else {
            // A slot counted as kept may have lost its frame, which costs a fault when it is reused.
            slots.pinned = true;
            slots.kept.extend(excess);
        }
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

    /// Hands out up to `count` slots: recycled ones or, if there are none, some without a frame, and where
    /// those are.
    fn take(&mut self, count: usize) -> io::Result<(Vec<Slot>, Places)> {
        if !self.kept.is_empty() {
            let first = self.kept.len() - count.min(self.kept.len());
            return Ok((self.kept.drain(first..).collect(), Places::new()));
        }
        if self.bare.is_empty() {
            self.grow(count)?;
        }
        let first = self.bare.len() - count.min(self.bare.len());
        let slots: Vec<_> = self.bare.drain(first..).collect();
        let places = self.by_segment(slots.clone());
        Ok((slots, places))
    }

    fn grow(&mut self, missing: usize) -> io::Result<()> {
        let (least, most) = SEGMENT_PAGES.into_inner();
        let wanted = missing.max((self.total / 2).clamp(least, most));
        let segment = Mapping::new(wanted, Source::Zero).or_else(|_| Mapping::new(missing, Source::Zero))?;
        let added = segment.pages();
        let number = self.segments.len();
        self.total += added;
        self.kept.reserve(self.total - self.kept.len());
        self.bare.reserve(self.total - self.bare.len());
        // Slots are taken from the end, so the first pages go last.
        let slot = |page| Slot { segment: number, start: segment.page_ptr(page) };
        self.bare.splice(0..0, (0..added).rev().map(slot));
        self.segments.push(Arc::new(segment));
        Ok(())
    }

    /// Takes out the slots whose frames are too many, those freed longest ago, and tells where they are.
    fn excess(&mut self) -> Option<(Vec<Slot>, Places)> {
        let limit = self.recent.max(self.live() / KEPT_SHARE);
        if self.kept.len() <= limit + (limit / 4).max(SWEEP) || self.pinned {
            return None;
        }
        let excess: Vec<_> = self.kept.drain(..self.kept.len() - limit).collect();
        let places = self.by_segment(excess.clone());
        Some((excess, places))
    }

    fn by_segment(&self, mut slots: Vec<Slot>) -> Places {
        slots.sort_unstable();
        slots
            .chunk_by(|a, b| a.segment == b.segment)
            .map(|slots| {
                let segment = &self.segments[slots[0].segment];
                let first = segment.as_ptr().addr().get();
                let pages = slots.iter().map(|slot| (slot.start.addr().get() - first) / page_size());
                (Arc::clone(segment), pages.collect())
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(store: &Arc<Store>, count: usize, byte: u8) -> Vec<Arc<Page>> {
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
    fn one_cold_page_does_not_pin_the_hot_ones() {
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
    fn frames_beyond_the_recent_demand_go_back() {
        let store = Arc::new(Store::new());
        let large = pages(&store, if cfg!(miri) { 300 } else { 10_000 }, 1);
        for _ in 0..100 {
            pages(&store, 1, 2);
        }
        drop(large);
        let usage = store.usage();
        assert!(usage.kept <= 2 * SWEEP, "{usage:?}");
    }
}
