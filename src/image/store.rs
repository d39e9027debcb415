//! The store: the memory of captured pages.
//!
//! This file decides where the bytes of a captured page are, when a slot can be used again, and how much memory of free
//! slots is kept. Its caller (`image/mod.rs`) chooses the pages that may have changed, and decides which image refers
//! to the captured pages.
//!
//! A snapshot and all its descendants share a store. The store divides anonymous memory into *slots* of one page each.
//! When the last image that refers to a slot is dropped, the store can use the slot again. A slot *has a frame* if the
//! system has assigned memory to its address.
//!
//! **Private memory.** After `fork`, parent and child have separate copies of private memory, because the system copies
//! a page on a write. So each can reuse, overwrite or give back a slot, and the other one still reads the old bytes. If
//! they shared a file instead, neither could do so safely.
//!
//! **Memory that is kept.** Free slots keep their frames for later captures, up to the sum of the largest recent
//! captures of all threads. The frames of further free slots are given back to the system. The addresses of these slots
//! stay reserved.
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

/// The least and the most pages of a new segment. Within these bounds, it is half as large as the store.
///
/// If the system refuses that much memory, the new segment has only as many pages as are needed at once.
const SEGMENT_PAGES: RangeInclusive<usize> = 64..=16_384;

/// The number of free slots with frames may always be as large as the number of live slots divided by this.
///
/// The limit is higher if the recent captures of all threads together used more slots.
const KEPT_SHARE: usize = 32;

/// Frames are given back only if the free slots with frames exceed the limit by more than this number.
///
/// They also have to exceed it by more than a quarter. So frames are always given back many at a time.
const SWEEP: usize = 64;

/// The most slots that are reserved, or returned by a [`Freed`], while the lock is held once.
///
/// With so many slots, the time for locking is negligible. With more slots, other threads would wait for the lock more
/// often.
const BATCH: usize = 64;

/// The number of slots with frames that a capture reserves first if it does not know how many it needs.
const FEW: usize = 8;

/// The number of threads whose captures are counted separately. Further threads are counted together with others.
const THREADS: usize = 8;

/// The memory of captured pages. The documentation of the module describes it.
pub(crate) struct Store {
    slots: Mutex<Slots>,
    /// The number of images that keep their captured pages in this store. Counted by `Member`.
    pub(crate) images: AtomicUsize,
}

/// The slots of a store.
///
/// Invariant: each slot of each segment is in exactly one of four states. It is in `kept`; it is in `bare`; it is live,
/// which means that as many `Page`s refer to it as its head counts; or a thread has removed it from one of these states
/// and is about to put it into one of them.
#[derive(Default)]
struct Slots {
    segments: Vec<Arc<Segment>>,
    total: usize,
    /// The free slots with a frame. The slot that was freed last is used first.
    ///
    /// The vector has capacity for all slots, so freeing a slot does not allocate.
    kept: Vec<Slot>,
    /// The free slots without a frame.
    bare: Vec<Slot>,
    /// A reference to the store itself, as long as any slot is live.
    ///
    /// So a `Page` needs no counted reference to its store. All threads would have to write to the counter of such
    /// references.
    alive: Option<Arc<Store>>,
    /// The largest recent capture of each thread, in slots.
    ///
    /// Each number shrinks by an eighth with each later capture of any thread. Threads are counted separately because
    /// threads that take turns at capturing need the frames of all of them.
    recent: [usize; THREADS],
    /// Whether the system has refused to take frames back, for example because memory is locked.
    ///
    /// If so, the store does not try again.
    pinned: bool,
}

/// A mapping of anonymous memory that is divided into slots.
///
/// Invariant: a segment exists as long as its store.
struct Segment {
    mapping: Mapping,
    /// A head for each page of the mapping.
    heads: Vec<Head>,
    store: Weak<Store>,
}

/// The record of one page of a segment.
struct Head {
    /// The number of `Page`s that refer to this page, if its slot is live.
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
/// Invariant: the segment exists as long as the slot is used. Either the slot is in one of the lists of the store, or
/// it was removed from them and not put back. In the second case it counts as live, so the store holds a reference to
/// itself (`Slots::alive`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Slot(NonNull<Head>);

// SAFETY: a slot is an address. The code that reads or writes the bytes at this address proves that it may do so.
unsafe impl Send for Slot {}

impl Slot {
    fn head(&self) -> &Head {
        // SAFETY: the head is part of its segment, which exists by the invariant of `Slot`. There is no mutable
        // reference to the heads once the segment is complete.
        unsafe { self.0.as_ref() }
    }

    fn segment(&self) -> &Segment {
        // SAFETY: `segment` is the segment that the head is part of. It exists by the invariant of `Slot`.
        unsafe { &*self.head().segment }
    }

    fn index(&self) -> usize {
        self.head().index as usize
    }

    fn start(&self) -> NonNull<u8> {
        self.segment().mapping.page_ptr(self.index())
    }

    /// Decrements the number of `Page`s. Returns whether this was the last one; then the caller has to free the slot.
    fn release(self) -> bool {
        let pages = &self.head().pages;
        // If the number is 1, the caller owns the only `Page`, and no other thread can clone it. So the number need not
        // be written, which saves an atomic write.
        pages.load(Ordering::Acquire) == 1 || pages.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Decrements the number of `Page`s, and frees the slot if this was the last one.
    #[cold]
    fn release_and_free(self) {
        if self.release()
            && let Some(store) = self.segment().store.upgrade()
        {
            store.free(&[self], 0);
        }
    }
}

/// A page that is captured if it changed.
pub(crate) struct Candidate<'a> {
    pub(crate) page: usize,
    /// The bytes that the page has now.
    pub(crate) now: &'a [u8],
    /// The bytes that `now` is compared with. If this is `None`, the page counts as changed.
    pub(crate) before: Option<&'a [u8]>,
}

/// Slots that are reserved for a capture.
///
/// They have frames, except if the system had no memory for them. When this is dropped, the slots that were not used go
/// back to the store.
struct Reserved<'a> {
    store: &'a Arc<Store>,
    slots: Vec<Slot>,
    used: usize,
}

impl Reserved<'_> {
    /// Returns the next slot, and first reserves more if there is none.
    ///
    /// The capture has `left` pages left, including the page for this slot. `certain` is whether all of them count as
    /// changed. If so, each needs a slot unless it is zero. Otherwise this reserves only about as many slots as were
    /// used so far: other threads may need the slots, and the system has to provide a frame for each reserved slot
    /// without one.
    fn next(&mut self, left: usize, certain: bool) -> io::Result<Slot> {
        if self.slots.is_empty() {
            let most = left.min(BATCH);
            let count = |least: usize| if certain { most } else { self.used.max(least).min(most) };
            let (kept, bare) = (count(FEW), count(1));
            let bare = self.store.lock().take(self.store, kept, bare, &mut self.slots)?;
            if bare {
                for (slot, pages) in by_segment(self.slots.clone()) {
                    let populate = |&range| slot.segment().mapping.populate(range, Populate::Write);
                    // Best effort. If this fails, the first write to each slot takes a page fault.
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

/// A capture in progress.
///
/// If it is dropped before [`captured`](Self::captured) is called, no page is captured.
pub(crate) struct Capture<'a> {
    /// The most candidates that are still to be added.
    left: usize,
    reserved: Reserved<'a>,
    captured: Vec<(usize, Page)>,
}

impl Capture<'_> {
    /// Copies the page of `candidate` into a slot if it changed. A page that is zero now takes no slot.
    ///
    /// The page is copied right after it was compared, while it is in the processor's cache.
    #[inline]
    pub(crate) fn add(&mut self, candidate: Candidate<'_>) -> io::Result<()> {
        let Candidate { page, now, before } = candidate;
        let len = page_size();
        assert_eq!(now.len(), len, "the bytes of a page to capture are one page long");
        if before != Some(now) {
            if is_zero(now) {
                self.captured.push((page, Page::default()));
            } else {
                let slot = self.reserved.next(self.left, before.is_none())?;
                // SAFETY: the slot was removed from the store, so no other code reads or writes its page. The page is
                // as long as the source, and does not overlap with it.
                unsafe { slot.start().copy_from_nonoverlapping(NonNull::from(now).cast(), len) };
                slot.head().pages.store(1, Ordering::Relaxed);
                self.captured.push((page, Page(Some(slot))));
            }
        }
        self.left -= 1;
        Ok(())
    }

    /// Ends the capture. Returns the captured pages in the order in which they were added.
    pub(crate) fn captured(self) -> Vec<(usize, Page)> {
        self.captured
    }
}

/// The memory in use by a store, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Usage {
    /// The number of captured pages that an image refers to.
    pub(crate) live: usize,
    /// The number of free slots with a frame, which the next capture uses first.
    pub(crate) kept: usize,
}

/// A captured page: a counted reference to a slot, or a page of zeroes, which has no slot.
///
/// A clone refers to the same slot. Two pages are equal if they refer to the same slot, or if both are zeroes.
///
/// Invariant: the bytes do not change as long as the page or a clone of it exists.
#[derive(PartialEq, Eq, Default)]
pub(crate) struct Page(Option<Slot>);

// SAFETY: through a shared reference, a page lends only bytes that do not change, and its reference count is atomic.
unsafe impl Sync for Page {}

impl Page {
    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        let Some(slot) = &self.0 else { return zeroes() };
        // SAFETY: the slot is one page of a segment, which stays mapped by the invariant of `Slot`. `Capture::add`
        // has written all of it, and no code writes to it as long as this page exists.
        unsafe { std::slice::from_raw_parts(slot.start().as_ptr(), page_size()) }
    }

    /// Whether the page is all zeroes. Such a page takes no memory.
    pub(crate) fn is_zero(&self) -> bool {
        self.0.is_none()
    }

    /// Returns a value that identifies this page and its clones as long as one of them exists.
    ///
    /// Returns `None` for a page of zeroes.
    pub(crate) fn id(&self) -> Option<NonNull<()>> {
        self.0.map(|slot| slot.0.cast())
    }
}

impl Clone for Page {
    fn clone(&self) -> Self {
        if let Some(slot) = &self.0 {
            let before = slot.head().pages.fetch_add(1, Ordering::Relaxed);
            // `Arc` aborts in the same way. A program that leaks pages could otherwise make the counter overflow. The
            // slot would then be freed while it is in use.
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

/// Drops captured pages, and returns their slots to the store many at a time.
pub(crate) struct Freed<'a> {
    store: &'a Arc<Store>,
    /// The first `count` of them are still to be returned to the store.
    slots: [Slot; BATCH],
    count: usize,
}

impl Store {
    pub(crate) fn new() -> Self {
        Self { slots: Mutex::default(), images: AtomicUsize::new(0) }
    }

    /// Starts a capture of at most `candidates` pages.
    pub(crate) fn start_capture(self: &Arc<Self>, candidates: usize) -> Capture<'_> {
        Capture {
            left: candidates,
            reserved: Reserved { store: self, slots: Vec::new(), used: 0 },
            captured: Vec::with_capacity(candidates.min(BATCH)),
        }
    }

    /// Copies the changed pages of `candidates` into slots. Pages that are zero now take no slot.
    ///
    /// After an error, no page is captured.
    pub(crate) fn capture<'a>(
        self: &Arc<Self>,
        candidates: impl ExactSizeIterator<Item = Candidate<'a>>,
    ) -> io::Result<Vec<(usize, Page)>> {
        let mut capture = self.start_capture(candidates.len());
        for candidate in candidates {
            capture.add(candidate)?;
        }
        Ok(capture.captured())
    }

    pub(crate) fn usage(&self) -> Usage {
        let slots = self.lock();
        Usage { live: slots.live(), kept: slots.kept.len() }
    }

    /// Takes back the slots `free`, which no page refers to.
    ///
    /// At the end of a capture, `captured` is the number of slots that the capture used. Otherwise it is 0.
    fn free(self: &Arc<Self>, free: &[Slot], captured: usize) {
        let mut slots = self.lock();
        slots.kept.extend_from_slice(free);
        if captured > 0 {
            slots.recent.iter_mut().for_each(|recent| *recent -= recent.div_ceil(8));
            let of_thread = &mut slots.recent[thread()];
            *of_thread = captured.max(*of_thread);
        }
        if let Some(excess) = slots.excess() {
            // These slots are in no list, so no other thread can use them while the lock is not held.
            drop(slots);
            let returned = by_segment(excess.clone()).iter().all(|(slot, pages)| {
                // SAFETY: these slots are free, so there is no reference to their bytes.
                unsafe { slot.segment().mapping.give_back(pages) }.is_ok()
            });
            slots = self.lock();
            if returned {
                slots.bare.extend(excess);
            } else {
                // Some of these slots may have lost their frames. The next write to such a slot takes a page fault.
                slots.pinned = true;
                slots.kept.extend(excess);
            }
        }
        let last = if slots.live() == 0 { slots.alive.take() } else { None };
        drop(slots);
        drop(last);
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        // No code panics between two changes of the slots that belong together, so they are right even after a panic.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    fn live(&self) -> usize {
        self.total - self.kept.len() - self.bare.len()
    }

    /// Moves up to `kept` free slots with frames into `taken` or, if there are none, up to `bare` slots without frames.
    ///
    /// Returns whether the moved slots are without frames. `store` is the store that these slots belong to.
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

    /// Adds a segment with at least `missing` slots.
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
        // `take` removes slots from the end. So the order is reversed, and the first page of the segment is used first.
        self.bare.splice(0..0, segment.heads.iter().rev().map(|head| Slot(NonNull::from(head))));
        self.segments.push(segment);
        Ok(())
    }

    /// Removes the slots above the limit from `kept`. These are the slots that were freed longest ago.
    ///
    /// Returns `None` if there are too few of them, or if the system has refused to take frames back.
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

    /// Drops `page`, and keeps its slot for the next return if no other page refers to it.
    pub(crate) fn add(&mut self, mut page: Page) {
        if page.0.is_some_and(|slot| !ptr::eq(slot.segment().store.as_ptr(), Arc::as_ptr(self.store))) {
            // The slot belongs to another store. Dropping `page` returns it there.
            return;
        }
        // This takes the slot out of `page`, so dropping `page` does nothing.
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

/// Returns a number below [`THREADS`] for the calling thread. If there are more threads, some have the same number.
fn thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    NUMBER.try_with(|number| number % THREADS).unwrap_or(0)
}

/// Groups the slots by segment. Returns one slot of each segment, and the indices of all given slots of the segment.
fn by_segment(mut slots: Vec<Slot>) -> Vec<(Slot, PageSet)> {
    // The heads of a segment are neighbours in memory, so sorting by address groups them.
    slots.sort_unstable();
    let same = |a: &Slot, b: &Slot| ptr::eq(a.segment(), b.segment());
    slots.chunk_by(same).map(|slots| (slots[0], slots.iter().map(Slot::index).collect())).collect()
}

#[cfg(test)]
mod tests;
