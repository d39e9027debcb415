//! Where captured pages live.
//!
//! A store belongs to a snapshot and all its descendants. It hands out page-sized slots of private
//! anonymous memory and takes each back when the last image that refers to it goes. Private memory
//! because of `fork`: parent and child each get the kernel's own copy-on-write, so that neither can
//! recycle, overwrite or return a page that the other still reads; a shared file could not do that.
//!
//! Freed slots keep their frames for the next captures, as many as the largest recent captures of all threads took
//! together. The frames of more slots go back to the system; their addresses stay reserved for later.
#![allow(unsafe_code)]

use std::io;
use std::ops::RangeInclusive;
use std::process;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::page_size;
use crate::pages::PageSet;
#[cfg(miri)]
use crate::sys::Boxed as Mapping;
#[cfg(not(miri))]
use crate::sys::Mapping;
use crate::sys::Populate;
use crate::sys::Source;
use crate::zero::{is_zero, zeroes};

/// Pages in a segment: a store starts small and grows by half of what it has.
const SEGMENT_PAGES: RangeInclusive<usize> = 64..=16_384;

/// The frames of freed slots are kept up to the sum of the largest recent captures of each thread, and at least up to
/// this share of the captured pages.
const KEPT_SHARE: usize = 32;

/// Freed slots over the limit before any are returned: at least this many go back in one sweep.
const SWEEP: usize = 64;

/// The most slots that are reserved or freed under one lock: enough that locking costs next to nothing for each slot,
/// few enough that other threads rarely wait for the lock.
const BATCH: usize = 64;

/// The number of slots with frames that a capture reserves first, if it does not know how many it needs.
const FEW: usize = 8;

/// The number of threads whose captures are counted separately.
const THREADS: usize = 8;

/// The memory of captured pages; see the module.
pub(crate) struct Store {
    slots: Mutex<Slots>,
    /// Images that keep their pages here.
    pub(crate) images: AtomicUsize,
}

/// Invariant: each slot of each segment is in exactly one place: in as many `Page`s as its head counts, in `kept`, in
/// `bare`, or in the hands of a thread that is about to put it into one of these.
#[derive(Default)]
struct Slots {
    segments: Vec<Arc<Segment>>,
    total: usize,
    /// Free, with a frame; the last freed is the first reused. Has room for all slots, so that
    /// freeing never allocates.
    kept: Vec<Slot>,
    /// Free, without a frame.
    bare: Vec<Slot>,
    /// The store itself, as long as any slot is live. So a `Page` needs no counted reference to its store, a counter
    /// that all threads would have to write to.
    alive: Option<Arc<Store>>,
    /// The largest recent capture of each thread, in pages. Each shrinks by an eighth with each later capture of any
    /// thread. Threads are counted separately, since threads that capture by turns need the frames of all of them.
    recent: [usize; THREADS],
    /// The system refused to take frames back (locked memory, say), so it is not asked again.
    pinned: bool,
}

/// Memory for pages.
///
/// Invariant: a segment exists as long as its store.
struct Segment {
    mapping: Mapping,
    /// One head for each page of the mapping.
    heads: Vec<Head>,
    store: Weak<Store>,
}

/// The record of one page of a segment.
struct Head {
    /// The number of `Page`s that refer to this page, if it is not free.
    pages: AtomicU32,
    /// The number of this page in its segment.
    index: u32,
    segment: *const Segment,
}

// SAFETY: `segment` is only used for shared references, and a `Segment` is `Sync`.
unsafe impl Send for Head {}
// SAFETY: as above.
unsafe impl Sync for Head {}

/// One page of a segment.
///
/// Invariant: the segment exists as long as the slot is used. The slot is either part of the store, or it was taken
/// from the store and not put back. In the second case it is live, and the store holds itself (`Slots::alive`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Slot(NonNull<Head>);

// SAFETY: a slot is an address. Whether its bytes may be read or written is decided where that is done.
unsafe impl Send for Slot {}

impl Slot {
    fn head(&self) -> &Head {
        // SAFETY: the head is part of its segment, which exists by the invariant of `Slot`. No mutable reference to the
        // heads exists once the segment is complete.
        unsafe { self.0.as_ref() }
    }

    fn segment(&self) -> &Segment {
        // SAFETY: the head is one of this segment's, which exists by the invariant of `Slot`.
        unsafe { &*self.head().segment }
    }

    fn index(&self) -> usize {
        self.head().index as usize
    }

    fn start(&self) -> NonNull<u8> {
        self.segment().mapping.page_ptr(self.index())
    }

    /// Counts one `Page` less. Returns whether it was the last one; then the caller has to free the slot.
    fn release(self) -> bool {
        let pages = &self.head().pages;
        // If the count is 1, the caller owns the last `Page`, and only it could make another. So the count need not be
        // written.
        pages.load(Ordering::Acquire) == 1 || pages.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Counts one `Page` less, and frees the slot if it was the last one.
    #[cold]
    fn release_and_free(self) {
        if self.release()
            && let Some(store) = self.segment().store.upgrade()
        {
            store.free(&[self], 0);
        }
    }
}

/// A page that may have to be captured: what it shows now, and what it showed before, to be compared with.
/// Without `before`, it is captured in any case.
pub(crate) struct Candidate<'a> {
    pub(crate) page: usize,
    pub(crate) now: &'a [u8],
    pub(crate) before: Option<&'a [u8]>,
}

/// Slots that are reserved for a capture. They have frames, unless making them failed. Those that are not used go back
/// to the store when this is dropped.
struct Reserved<'a> {
    store: &'a Arc<Store>,
    slots: Vec<Slot>,
    used: usize,
}

impl Reserved<'_> {
    /// The next slot. `left` pages are still to come, this one included; `certain` says that each of them needs a slot.
    /// Otherwise only about as many slots are reserved as were used: other threads may need the slots, and reserving a
    /// slot without a frame makes a frame for it.
    fn next(&mut self, left: usize, certain: bool) -> io::Result<Slot> {
        if self.slots.is_empty() {
            let most = left.min(BATCH);
            let count = |least: usize| if certain { most } else { self.used.max(least).min(most) };
            let (kept, bare) = (count(FEW), count(1));
            let bare = self.store.lock().take(self.store, kept, bare, &mut self.slots)?;
            if bare {
                for (slot, pages) in by_segment(self.slots.clone()) {
                    let populate = |&range| slot.segment().mapping.populate(range, Populate::Write);
                    // Best effort: without it, the first write to each slot takes a page fault.
                    pages.ranges().iter().for_each(|range| drop(populate(range)));
                }
            }
        }
        let slot = self.slots.pop().ok_or(io::ErrorKind::OutOfMemory)?;
        self.used += 1;
        Ok(slot)
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if self.used > 0 || !self.slots.is_empty() {
            self.store.free(&self.slots, self.used);
        }
    }
}

/// What a store holds, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Usage {
    /// Referred to by images.
    pub(crate) live: usize,
    /// Free, but with a frame, waiting for the next capture.
    pub(crate) kept: usize,
}

/// A captured page. A clone is the same page. A page of zeroes has no slot.
///
/// Invariant: the bytes do not change as long as the page or a clone of it exists.
#[derive(PartialEq, Eq, Default)]
pub(crate) struct Page(Option<Slot>);

// SAFETY: a page gives out nothing but shared references to bytes that do not change.
unsafe impl Sync for Page {}

impl Page {
    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        let Some(slot) = &self.0 else { return zeroes() };
        // SAFETY: the slot is one page of a segment, which the store keeps mapped. `capture` has written all of it, and
        // nothing writes to it as long as this page exists.
        unsafe { std::slice::from_raw_parts(slot.start().as_ptr(), page_size()) }
    }

    /// Whether this is a page of zeroes, which takes no memory.
    pub(crate) fn is_zero(&self) -> bool {
        self.0.is_none()
    }

    /// A value that identifies this page and its clones as long as one of them exists. `None` for a page of zeroes.
    pub(crate) fn id(&self) -> Option<NonNull<()>> {
        self.0.map(|slot| slot.0.cast())
    }
}

impl Clone for Page {
    fn clone(&self) -> Self {
        if let Some(slot) = &self.0 {
            let before = slot.head().pages.fetch_add(1, Ordering::Relaxed);
            // As in `Arc`: leaked pages could otherwise make the counter overflow, so that a slot is freed while it is
            // in use.
            if before > u32::MAX / 2 {
                process::abort();
            }
        }
        Self(self.0)
    }
}

impl Drop for Page {
    #[inline]
    fn drop(&mut self) {
        if let Some(slot) = self.0 {
            slot.release_and_free();
        }
    }
}

/// Drops pages of a store, and returns their slots many at a time.
pub(crate) struct Freed<'a> {
    store: &'a Arc<Store>,
    /// The first `count` are to be returned to the store.
    slots: [Slot; BATCH],
    count: usize,
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
    ) -> io::Result<Vec<(usize, Page)>> {
        let len = page_size();
        let mut left = candidates.len();
        let mut captured = Vec::with_capacity(left.min(BATCH));
        let mut reserved = Reserved { store: self, slots: Vec::new(), used: 0 };
        for Candidate { page, now, before } in candidates {
            assert_eq!(now.len(), len, "a page is one page long");
            if before == Some(now) {
                left -= 1;
                continue;
            }
            if is_zero(now) {
                captured.push((page, Page::default()));
            } else {
                let slot = reserved.next(left, before.is_none())?;
                // SAFETY: the slot was taken from the store just now, so that nobody else reads or writes its
                // page, which is as long as the source and cannot overlap with it.
                unsafe { slot.start().copy_from_nonoverlapping(NonNull::from(now).cast(), len) };
                slot.head().pages.store(1, Ordering::Relaxed);
                captured.push((page, Page(Some(slot))));
            }
            left -= 1;
        }
        Ok(captured)
    }

    pub(crate) fn usage(&self) -> Usage {
        let slots = self.lock();
        Usage { live: slots.live(), kept: slots.kept.len() }
    }

    /// Takes back the slots `free`, which are not in use any more. After a capture, `captured` is the number of slots
    /// that it used; otherwise it is 0.
    fn free(self: &Arc<Self>, free: &[Slot], captured: usize) {
        let mut slots = self.lock();
        slots.kept.extend_from_slice(free);
        if captured > 0 {
            slots.recent.iter_mut().for_each(|recent| *recent -= recent.div_ceil(8));
            let of_thread = &mut slots.recent[thread()];
            *of_thread = captured.max(*of_thread);
        }
        if let Some(excess) = slots.excess() {
            // No other thread can reach these slots, so the lock is not needed.
            drop(slots);
            let returned = by_segment(excess.clone()).iter().all(|(slot, pages)| {
                // SAFETY: these slots are free, so no page refers to their bytes.
                unsafe { slot.segment().mapping.give_back(pages) }.is_ok()
            });
            slots = self.lock();
            if returned {
                slots.bare.extend(excess);
            } else {
                // Some of these slots may have lost their frames. Each of those costs a fault when it is reused.
                slots.pinned = true;
                slots.kept.extend(excess);
            }
        }
        let last = if slots.live() == 0 { slots.alive.take() } else { None };
        drop(slots);
        drop(last);
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

    /// Moves up to `kept` free slots with frames into `taken` or, if there are none, up to `bare` slots without frames.
    /// Returns whether the slots have no frames. `store` is the store that these slots belong to.
    fn take(
        &mut self,
        store: &Arc<Store>,
        kept: usize,
        bare: usize,
        taken: &mut Vec<Slot>,
    ) -> io::Result<bool> {
        let are_bare = self.kept.is_empty();
        if are_bare && self.bare.is_empty() {
            self.grow(store, bare)?;
        }
        let (from, count) = if are_bare { (&mut self.bare, bare) } else { (&mut self.kept, kept) };
        taken.extend(from.drain(from.len() - count.min(from.len())..));
        self.alive.get_or_insert_with(|| Arc::clone(store));
        Ok(are_bare)
    }

    fn grow(&mut self, store: &Arc<Store>, missing: usize) -> io::Result<()> {
        let (least, most) = SEGMENT_PAGES.into_inner();
        let wanted = missing.max((self.total / 2).clamp(least, most));
        let mapping = Mapping::new(wanted, Source::Zero).or_else(|_| Mapping::new(missing, Source::Zero))?;
        let added = u32::try_from(mapping.pages()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let segment = Arc::new_cyclic(|segment| {
            let head = |index| Head { pages: AtomicU32::new(0), index, segment: segment.as_ptr() };
            Segment { mapping, heads: (0..added).map(head).collect(), store: Arc::downgrade(store) }
        });
        self.total += segment.heads.len();
        self.kept.reserve(self.total - self.kept.len());
        self.bare.reserve(self.total - self.bare.len());
        // Slots are taken from the end, so the first pages go last.
        self.bare.splice(0..0, segment.heads.iter().rev().map(|head| Slot(NonNull::from(head))));
        self.segments.push(segment);
        Ok(())
    }

    /// Takes out the kept slots that exceed the limit, those first that were freed longest ago.
    fn excess(&mut self) -> Option<Vec<Slot>> {
        let limit = self.recent.iter().sum::<usize>().max(self.live() / KEPT_SHARE);
        if self.kept.len() <= limit + (limit / 4).max(SWEEP) || self.pinned {
            return None;
        }
        Some(self.kept.drain(..self.kept.len() - limit).collect())
    }
}

impl<'a> Freed<'a> {
    pub(crate) fn new(store: &'a Arc<Store>) -> Self {
        Self { store, slots: [Slot(NonNull::dangling()); BATCH], count: 0 }
    }

    /// Drops `page`.
    pub(crate) fn add(&mut self, mut page: Page) {
        if page.0.is_some_and(|slot| !ptr::eq(slot.segment().store.as_ptr(), Arc::as_ptr(self.store))) {
            // The page is of another store, and its drop returns the slot there.
            return;
        }
        // Without its slot, the drop of `page` does nothing.
        let Some(slot) = page.0.take().filter(|slot| slot.release()) else { return };
        if self.count == BATCH {
            self.flush();
        }
        self.slots[self.count] = slot;
        self.count += 1;
    }

    fn flush(&mut self) {
        if self.count > 0 {
            self.store.free(&self.slots[..self.count], 0);
        }
        self.count = 0;
    }
}

impl Drop for Freed<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}

/// A number for the calling thread. With more than [`THREADS`] threads, some have the same.
fn thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    NUMBER.try_with(|number| number % THREADS).unwrap_or(0)
}

/// Groups the slots by segment. Returns one slot of each segment, and the numbers of all its slots' pages.
fn by_segment(mut slots: Vec<Slot>) -> Vec<(Slot, PageSet)> {
    // The heads of a segment are neighbours in memory, so sorting by address groups them.
    slots.sort_unstable();
    let same = |a: &Slot, b: &Slot| ptr::eq(a.segment(), b.segment());
    slots.chunk_by(same).map(|slots| (slots[0], slots.iter().map(Slot::index).collect())).collect()
}

#[cfg(test)]
mod tests;
