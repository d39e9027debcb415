//! The allocator's state: where it is in the arena, and access to it.
//!
//! All fields are cells, so that one part of the state can be reached twice. All links are numbers of pages or segments.
//! The number 0 means none: page 0 and segment 0 are never in a list.

use super::super::HEADER;
use super::classes;
use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::NonNull;

/// The unit of allocation, whatever the system's page size is.
pub(super) const PAGE: usize = 4 << 10;
/// The length of a segment in bytes.
pub(super) const SEGMENT: usize = 4 << 20;
/// The length of a segment in pages.
pub(super) const PAGES: u32 = 1 << 10;
/// The bytes at the start of a segment that hold state: one entry for each page.
pub(super) const PREFIX: usize = size_of::<Entry>() * PAGES as usize;
/// The pages of the prefix. They need no entries, whose place holds the heads.
pub(super) const PREFIX_PAGES: u32 = 12;
/// The first page of segment 0 that can be allocated. Its prefix has more state, in place of the entries before.
const FIRST_PAGE: u32 = 20;
/// The largest number of segments: pages have 32-bit numbers.
pub(super) const MAX_SEGMENTS: u32 = (1 << 22) - 1;
/// How many bins there are for runs of pages.
pub(super) const RUN_BINS: usize = 35;
/// How many bins there are for rows of segments.
pub(super) const ROW_BINS: usize = 22;

const _: () = {
    assert!(PREFIX == PREFIX_PAGES as usize * PAGE);
    assert!(HEADER + size_of::<Segment>() <= PREFIX_PAGES as usize * size_of::<Entry>());
    assert!(HEAD + size_of::<Head>() <= FIRST_PAGE as usize * size_of::<Entry>());
    assert!(HEADER.is_multiple_of(16) && align_of::<Head>() <= 8 && align_of::<Entry>() == 8);
};

/// Where the head is in the arena.
const HEAD: usize = HEADER + size_of::<Segment>();

/// Bins of free runs or rows: of those that are all zero, and of those that have dirty pages.
pub(super) const CLEAN: usize = 0;
pub(super) const DIRTY: usize = 1;

/// The state of the whole arena.
#[repr(C)]
pub(super) struct Head {
    /// The length of the arena in segments.
    pub(super) segments: Cell<u32>,
    /// `!segments`, so that the check does not trust a damaged length.
    pub(super) not_segments: Cell<u32>,
    /// How many segments at the end of the arena are free.
    pub(super) last_free: Cell<u32>,
    /// The run of a segment that is entirely free and was not made a row, or 0.
    pub(super) spare: Cell<u32>,
    /// One bit for each bin of runs that is not empty.
    pub(super) run_bits: [Cell<u64>; 2],
    /// One bit for each bin of rows that is not empty.
    pub(super) row_bits: [Cell<u32>; 2],
    /// For each class, the chunk from which blocks are taken now.
    pub(super) current: [Cell<u32>; classes::COUNT],
    /// For each class, the list of the other chunks of which at least a quarter was free.
    pub(super) listed: [Cell<u32>; classes::COUNT],
    /// Lists of free runs, by length.
    pub(super) runs: [[Cell<u32>; RUN_BINS]; 2],
    /// Lists of free rows, by length.
    pub(super) rows: [[Cell<u32>; ROW_BINS]; 2],
}

/// What a segment is. Only the first segment of a row has this state: in the other ones, its place belongs to the block.
#[repr(C)]
pub(super) struct Segment {
    /// One of the constants below.
    pub(super) kind: Cell<u32>,
    /// The length of the row in segments.
    pub(super) len: Cell<u32>,
    /// The length of the free row before this segment.
    pub(super) before: Cell<u32>,
    /// The list of free rows.
    pub(super) next: Cell<u32>,
    pub(super) prev: Cell<u32>,
    /// The segments of a free row that may not be zero. The first one's state does not count.
    pub(super) dirty: [Cell<u32>; 2],
    /// Whether the rest of the prefix may not be zero. Nothing else says so of the first segment of a row.
    pub(super) stale: Cell<u32>,
}

impl Segment {
    /// A segment that is divided into pages.
    pub(super) const PAGED: u32 = 1;
    /// A row with one block.
    pub(super) const USED: u32 = 2;
    /// A free row.
    pub(super) const FREE: u32 = 3;
}

/// What a page is.
#[repr(C)]
pub(super) struct Entry {
    /// Of a chunk: one bit for each block, which is set if the block is free. Of a free run: see [`Entry::dirty`].
    pub(super) bits: [Cell<u64>; 4],
    /// The list of chunks or of free runs.
    pub(super) next: Cell<u32>,
    pub(super) prev: Cell<u32>,
    /// Of a chunk: how many blocks are free. Of a run: how many pages it has.
    pub(super) count: Cell<u16>,
    /// Of a chunk: see `chunks`.
    pub(super) trigger: Cell<u16>,
    /// Of the first page of a run or chunk: the length of the free run before it.
    pub(super) before: Cell<u16>,
    /// One of the constants below.
    pub(super) kind: Cell<u8>,
    /// Of a chunk: its class. Of a later page of a chunk: how far the first one is before it.
    pub(super) class: Cell<u8>,
}

impl Entry {
    /// Not the first page of a run. Also what zero bytes mean.
    pub(super) const INSIDE: u8 = 0;
    /// The first page of a free run.
    pub(super) const FREE: u8 = 1;
    /// The first page of a run with one block.
    pub(super) const RUN: u8 = 2;
    /// The first page of a chunk.
    pub(super) const CHUNK: u8 = 3;
    /// Another page of a chunk.
    pub(super) const PART: u8 = 4;

    /// The pages of a free run that may not be zero.
    #[inline]
    pub(super) fn dirty(&self) -> Span {
        let both = self.bits[0].get();
        Span { from: low_half(both), to: low_half(both >> 32) }
    }

    #[inline]
    pub(super) fn set_dirty(&self, dirty: Span) {
        self.bits[0].set(u64::from(dirty.from) | u64::from(dirty.to) << 32);
    }
}

#[allow(clippy::cast_possible_truncation, reason = "this is what it is for")]
fn low_half(value: u64) -> u32 {
    value as u32
}

/// A range of pages or segments. The empty one is from 0 to 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) from: u32,
    pub(super) to: u32,
}

impl Span {
    pub(super) const EMPTY: Self = Self { from: 0, to: 0 };

    pub(super) fn new(from: u32, to: u32) -> Self {
        if from < to { Self { from, to } } else { Self::EMPTY }
    }

    pub(super) fn is_empty(self) -> bool {
        self.to == 0
    }

    pub(super) fn contains(self, at: u32) -> bool {
        self.from <= at && at < self.to
    }

    /// What is in both.
    pub(super) fn within(self, from: u32, to: u32) -> Self {
        Self::new(self.from.max(from), self.to.min(to))
    }

    /// The smallest span with both.
    pub(super) fn join(self, other: Self) -> Self {
        if self.is_empty() {
            other
        } else if other.is_empty() {
            self
        } else {
            Self::new(self.from.min(other.from), self.to.max(other.to))
        }
    }

    /// The set of bins for a free run or row with these dirty pages.
    pub(super) fn set(self) -> usize {
        if self.is_empty() { CLEAN } else { DIRTY }
    }
}

/// Writes a value that changes. A page that is only read is not copied.
#[inline]
pub(super) fn put<T: Copy + PartialEq>(cell: &Cell<T>, value: T) {
    if cell.get() != value {
        cell.set(value);
    }
}

/// Returns the page at an offset in the arena.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "an arena has less than 2^32 pages: MAX_SEGMENTS")]
pub(super) fn page_at(offset: usize) -> u32 {
    (offset / PAGE) as u32
}

/// Returns the offset of a page in the arena.
#[inline]
pub(super) fn offset_of(page: u32) -> usize {
    page as usize * PAGE
}

/// Returns the number of pages in a segment that `pages` is less than or equal to.
#[inline]
#[allow(
    clippy::cast_possible_truncation,
    reason = "callers pass lengths of runs, which have less than 2^10 pages"
)]
pub(super) fn run_len(pages: u32) -> u16 {
    pages as u16
}

/// Returns the first page of a segment that can be allocated.
pub(super) fn first_page(segment: u32) -> u32 {
    if segment == 0 { FIRST_PAGE } else { segment * PAGES + PREFIX_PAGES }
}

/// Whether a page is the first one of a segment, or the end of the arena.
pub(super) fn starts_segment(page: u32) -> bool {
    page.is_multiple_of(PAGES)
}

/// Ends the process because of a bug: a panic would unwind through a caller that does not expect one.
#[cold]
#[inline(never)]
pub(super) fn bug(what: &str) -> ! {
    eprintln!(
        "memsnap-heap: {what}; the process is aborted, because memory is not what its owner believes it is"
    );
    std::process::abort();
}

/// An arena that was initialized.
#[derive(Clone, Copy)]
pub(super) struct Arena<'a> {
    base: NonNull<u8>,
    state: PhantomData<&'a Head>,
}

impl<'a> Arena<'a> {
    /// # Safety
    ///
    /// `base` is the start of an arena, which is valid for reads and writes of its length and aligned to a page. For
    /// `'a`, its state is only accessed with values made here, on one thread. At least the length in the head is right.
    #[inline]
    pub(super) unsafe fn new(base: NonNull<u8>) -> Self {
        Self { base, state: PhantomData }
    }

    #[inline]
    pub(super) fn head(self) -> &'a Head {
        // SAFETY: the head is in the first page of the arena (an assertion above), so the sum is inside of it.
        let head = unsafe { self.base.add(HEAD) };
        // SAFETY: `base` is aligned to a page and `HEAD` to the head. The bytes are initialized (an arena starts as zeros)
        // and all are valid. All fields are cells, and other references to them are of the same type.
        unsafe { head.cast::<Head>().as_ref() }
    }

    /// Returns the state of a segment that is the first one of a row, or divided into pages, or about to be either.
    pub(super) fn segment(self, segment: u32) -> &'a Segment {
        if segment >= self.head().segments.get() {
            bug("a segment behind the end of the arena");
        }
        // SAFETY: the segment is inside the arena, so the sum is, too.
        let state = unsafe { self.base.add(segment as usize * SEGMENT + HEADER) };
        // SAFETY: as in `head`. No block overlaps the first page of such a segment.
        unsafe { state.cast::<Segment>().as_ref() }
    }

    /// Returns the entry of a page of a segment that is divided into pages.
    #[inline]
    pub(super) fn entry(self, page: u32) -> &'a Entry {
        if page / PAGES >= self.head().segments.get() {
            bug("a page behind the end of the arena");
        }
        // SAFETY: just checked.
        unsafe { self.entry_unchecked(page) }
    }

    /// # Safety
    ///
    /// The page is inside the arena.
    #[inline]
    pub(super) unsafe fn entry_unchecked(self, page: u32) -> &'a Entry {
        let offset = (page / PAGES) as usize * SEGMENT + (page % PAGES) as usize * size_of::<Entry>();
        // SAFETY: the page is inside the arena (a condition), and so is the prefix of its segment.
        let entry = unsafe { self.base.add(offset) };
        // SAFETY: as in `head`: offsets of entries are multiples of 8. No block overlaps the prefix of such a segment.
        unsafe { entry.cast::<Entry>().as_ref() }
    }

    /// Makes the entries of a segment zero. Nothing in the segment is in use.
    pub(super) fn clear_entries(self, segment: u32) {
        let from = PREFIX_PAGES as usize * size_of::<Entry>();
        // SAFETY: callers pass a segment inside the arena: `segment` gave them its state.
        let entries = unsafe { self.base.add(segment as usize * SEGMENT + from) };
        // SAFETY: the prefix is inside the segment, and nothing refers to its entries now.
        unsafe { entries.write_bytes(0, PREFIX - from) };
    }

    /// Returns the address of a block.
    ///
    /// # Safety
    ///
    /// The offset is inside the arena.
    #[inline]
    pub(super) unsafe fn block(self, offset: usize) -> NonNull<u8> {
        // SAFETY: the condition is the caller's.
        unsafe { self.base.add(offset) }
    }

    /// Returns where a block is in the arena.
    #[inline]
    pub(super) fn offset(self, block: NonNull<u8>) -> usize {
        block.addr().get().wrapping_sub(self.base.addr().get())
    }

    /// Returns the length of the arena in bytes.
    pub(super) fn len(self) -> usize {
        self.head().segments.get() as usize * SEGMENT
    }

    /// Returns the address of the arena.
    pub(super) fn address(self) -> usize {
        self.base.addr().get()
    }
}
