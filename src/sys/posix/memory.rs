//! Discards, prepares and gives back pages of mappings, and keeps mappings from forked children.
//!
//! Private pages are discarded by mapping the same pages of the source again. So each mapping records its sources
//! ([`Shown`]). `unix/mapping.rs` decides what is mapped where.
#![allow(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::mm::MapFlags;

use crate::pages::{PageRange, PageSet};
use crate::sys::unix::{Mapping, MemoryFile, page_size};
use crate::sys::{Entries, Source, call};
use crate::sys::{HugePages, Populate};

/// The flag for a mapping that counts against no limit before it is used, if the system has one.
#[cfg(not(any(target_os = "freebsd", target_os = "dragonfly")))]
pub(in crate::sys) const NO_RESERVE: MapFlags = MapFlags::NORESERVE;
#[cfg(any(target_os = "freebsd", target_os = "dragonfly"))]
pub(in crate::sys) const NO_RESERVE: MapFlags = MapFlags::empty();

/// The flags for a mapping that replaces no other.
///
/// Without such flags, the address is a hint, which is used if it is free.
#[cfg(target_os = "linux")]
pub(in crate::sys) const NO_REPLACE: MapFlags = MapFlags::FIXED_NOREPLACE;
#[cfg(target_os = "freebsd")]
pub(in crate::sys) const NO_REPLACE: MapFlags =
    MapFlags::FIXED.union(MapFlags::from_bits_retain(libc::MAP_EXCL.cast_unsigned()));
#[cfg(target_os = "netbsd")]
pub(in crate::sys) const NO_REPLACE: MapFlags =
    MapFlags::from_bits_retain(libc::MAP_TRYFIXED.cast_unsigned());
#[cfg(not(any(target_os = "linux", target_os = "freebsd", target_os = "netbsd")))]
pub(in crate::sys) const NO_REPLACE: MapFlags = MapFlags::empty();

/// The advice that gives back memory whose bytes are not needed.
///
/// Linux takes the memory at once, other systems when they need it.
const GIVE_BACK: libc::c_int =
    if cfg!(any(target_os = "linux", target_os = "android")) { libc::MADV_DONTNEED } else { libc::MADV_FREE };

/// The most ranges that discards map again before the whole mapping has to be mapped again.
///
/// Each of them can take one more mapping of the process, because not every system joins neighbouring mappings.
const MAX_PIECES: usize = 1024;

/// Always returns 0: any address will do, because huge pages are not asked for.
pub(in crate::sys) fn alignment(_huge_pages: HugePages, _pages: usize, _source: Source<'_>) -> usize {
    0
}

/// What the pages of a mapping show where they are not private.
#[derive(Default)]
pub(in crate::sys) struct Shown {
    /// All pages, in ascending ranges.
    parts: Vec<(PageRange, Content)>,
    /// The number of ranges that discards mapped again.
    pieces: AtomicUsize,
}

/// A [`Source`] that owns its file.
enum Content {
    Zero,
    Private(MemoryFile),
    Shared(MemoryFile),
    ReadOnly(MemoryFile),
}

impl Content {
    fn of(source: Source<'_>) -> Self {
        match source {
            Source::Zero => Self::Zero,
            Source::Private(file) => Self::Private(file.again()),
            Source::Shared(file) => Self::Shared(file.again()),
            Source::ReadOnly(file) => Self::ReadOnly(file.again()),
        }
    }

    /// Returns another value for the same source.
    fn again(&self) -> Self {
        Self::of(self.source())
    }

    /// Returns whether both are the same source.
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Zero, Self::Zero) => true,
            (Self::Private(a), Self::Private(b))
            | (Self::Shared(a), Self::Shared(b))
            | (Self::ReadOnly(a), Self::ReadOnly(b)) => Arc::ptr_eq(&a.fd, &b.fd),
            _ => false,
        }
    }

    fn source(&self) -> Source<'_> {
        match self {
            Self::Zero => Source::Zero,
            Self::Private(file) => Source::Private(file),
            Self::Shared(file) => Source::Shared(file),
            Self::ReadOnly(file) => Source::ReadOnly(file),
        }
    }
}

impl Shown {
    /// Records that `range` shows `source`. The range must start within the recorded pages or at their end.
    pub(in crate::sys) fn set(&mut self, range: PageRange, source: Source<'_>) {
        let first = self.parts.partition_point(|(part, _)| part.end <= range.start);
        let behind = self.parts.partition_point(|(part, _)| part.start < range.end);
        let start = self.parts.get(first).map_or(range.start, |(part, _)| part.start.min(range.start));
        let end = self.parts[..behind].last().map_or(range.end, |(part, _)| part.end.max(range.end));
        let (mut before, mut after) = (None, None);
        if start < range.start {
            before = Some((PageRange::new(start, range.start), self.parts[first].1.again()));
        }
        if range.end < end {
            after = Some((PageRange::new(range.end, end), self.parts[behind - 1].1.again()));
        }
        let now = Some((range, Content::of(source)));
        self.parts.splice(first..behind, before.into_iter().chain(now).chain(after));
        self.parts.dedup_by(|(later, content), (part, same)| {
            let joined = content.is(same);
            if joined {
                part.end = later.end;
            }
            joined
        });
        if self.parts.len() == 1 {
            self.pieces = AtomicUsize::new(0);
        }
    }

    /// Removes the pages from `pages` on.
    pub(in crate::sys) fn truncate(&mut self, pages: usize) {
        self.parts.retain(|(part, _)| part.start < pages);
        if let Some((last, _)) = self.parts.last_mut() {
            last.end = last.end.min(pages);
        }
    }

    /// Returns the parts of `range` with their sources, in ascending order.
    fn within(&self, range: PageRange) -> impl Iterator<Item = (PageRange, Source<'_>)> {
        let first = self.parts.partition_point(|(part, _)| part.end <= range.start);
        self.parts[first..].iter().take_while(move |(part, _)| part.start < range.end).map(
            move |(part, content)| {
                (PageRange::new(part.start.max(range.start), part.end.min(range.end)), content.source())
            },
        )
    }
}

impl Mapping {
    /// Drops the private pages among `pages`, which then show their source again and can be written.
    ///
    /// Fails with `Unsupported` and changes nothing if this could take too many mappings. After another error the bytes
    /// of these pages are unspecified.
    ///
    /// # Safety
    ///
    /// No reference to bytes of these pages may exist.
    pub(crate) unsafe fn discard(&self, pages: &PageSet) -> io::Result<()> {
        let parts: Vec<_> = pages.ranges().iter().flat_map(|&range| self.shown.within(range)).collect();
        let pieces = if pages.len() == self.pages() {
            0
        } else {
            self.shown.pieces.load(Ordering::Relaxed) + parts.len()
        };
        if pieces > MAX_PIECES {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.shown.pieces.store(pieces, Ordering::Relaxed);
        let private = parts.into_iter().filter(|(_, source)| !matches!(source, Source::Shared(_)));
        private.into_iter().try_for_each(|(range, source)| {
            // SAFETY: the range is inside this mapping. The caller promises that no reference to its bytes exists. The
            // range is not shared, so a forked child has it too.
            unsafe { self.show(range, source) }
        })
    }

    /// Gives back the memory of `pages`, whose bytes are unspecified afterwards.
    ///
    /// Only for mappings of zeroes.
    ///
    /// # Safety
    ///
    /// No reference to bytes of these pages may exist.
    pub(crate) unsafe fn give_back(&self, pages: &PageSet) -> io::Result<()> {
        pages.ranges().iter().try_for_each(|range| {
            debug_assert!(range.end <= self.pages());
            call("madvise")?;
            let len = range.len() * page_size();
            // SAFETY: the range is inside this mapping. The caller promises that no reference to its bytes exists.
            check(unsafe { libc::madvise(self.address(range.start), len, GIVE_BACK) })
        })
    }

    /// Always fails with `Unsupported`: the system does not report which pages are in huge pages.
    pub(crate) fn entries(&self, _: PageRange) -> io::Result<Entries> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Fails with `Unsupported` unless `populate` is `No`: only an access prepares a page.
    pub(crate) fn populate(&self, _range: PageRange, populate: Populate) -> io::Result<()> {
        match populate {
            Populate::No => Ok(()),
            Populate::Read | Populate::Write => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Keeps pages that were just mapped shared from forked children.
    pub(in crate::sys) fn advise(&self, range: PageRange, source: Source<'_>) -> io::Result<()> {
        match source {
            Source::Shared(_) => self.keep_from_children(range),
            Source::Zero | Source::Private(_) | Source::ReadOnly(_) => Ok(()),
        }
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn keep_from_children(&self, range: PageRange) -> io::Result<()> {
        call("madvise")?;
        let len = range.len() * page_size();
        // SAFETY: the range is inside this mapping, and no byte of it changes in this process.
        check(unsafe { libc::madvise(self.address(range.start), len, libc::MADV_DONTFORK) })
    }

    #[cfg(target_os = "freebsd")]
    fn keep_from_children(&self, range: PageRange) -> io::Result<()> {
        call("minherit")?;
        let len = range.len() * page_size();
        // SAFETY: the range is inside this mapping, and no byte of it changes in this process.
        check(unsafe { libc::minherit(self.address(range.start), len, libc::INHERIT_NONE) })
    }

    /// Always fails with `Unsupported`, so that no file is mapped shared.
    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
    fn keep_from_children(&self, _range: PageRange) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Returns the result of a system call.
fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(pages: usize) -> MemoryFile {
        MemoryFile::create(pages, pages, None).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_shown_is_what_was_set_last(
            steps in prop::collection::vec((0_usize..30, 1_usize..12, 0_usize..4, any::<bool>()), 0..20),
            (at, len) in (0_usize..30, 0_usize..12),
        ) {
            let files = [file(1), file(1)];
            let sources =
                [Source::Zero, Source::Private(&files[0]), Source::Private(&files[1]), Source::ReadOnly(&files[0])];
            let number = |source: Source<'_>| {
                sources.iter().position(|other| Content::of(*other).is(&Content::of(source))).unwrap()
            };
            let (mut shown, mut model) = (Shown::default(), vec![0; 20]);
            shown.set(PageRange::new(0, 20), Source::Zero);
            for (start, len, source, truncate) in steps {
                if truncate {
                    let end = start.max(1);
                    shown.truncate(end);
                    model.truncate(end);
                } else {
                    let start = start.min(model.len());
                    shown.set(PageRange::new(start, start + len), sources[source]);
                    model.resize(model.len().max(start + len), 0);
                    model[start..start + len].fill(source);
                }
                let mut end = 0;
                for (part, content) in &shown.parts {
                    prop_assert!(part.start == end && part.len() > 0);
                    prop_assert!(model[part.iter()].iter().all(|&source| source == number(content.source())));
                    end = part.end;
                }
                prop_assert_eq!(end, model.len());
                prop_assert!(shown.parts.windows(2).all(|pair| !pair[0].1.is(&pair[1].1)));
            }
            let range = PageRange::new(at.min(model.len()), (at + len).min(model.len()));
            prop_assume!(range.len() > 0);
            let mut end = range.start;
            for (part, source) in shown.within(range) {
                prop_assert!(part.start == end && part.len() > 0);
                prop_assert!(model[part.iter()].iter().all(|&other| other == number(source)));
                end = part.end;
            }
            prop_assert_eq!(end, range.end);
        }
    }

    /// Discards stop before they take too many of the mappings that a process can have.
    #[test]
    fn discards_take_no_more_than_their_share_of_mappings() {
        let (pages, file) = (4 * MAX_PIECES, file(4 * MAX_PIECES));
        let mapping = Mapping::new(pages, Source::Private(&file)).unwrap();
        let half: PageSet = (0..MAX_PIECES).step_by(2).collect();
        let all = PageSet::all(pages);
        for _ in 0..2 {
            for allowed in [true, true, false, false] {
                // SAFETY: no reference to the mapping's bytes exists.
                let discarded = unsafe { mapping.discard(&half) };
                assert_eq!(discarded.is_ok(), allowed, "{discarded:?}");
            }
            // SAFETY: as above.
            unsafe { mapping.discard(&all) }.unwrap();
        }
    }

    /// A view that is written in place is never discarded, because its bytes are nowhere else.
    #[test]
    fn what_is_shared_is_not_discarded() {
        let file = file(2);
        let Ok(mapping) = Mapping::new(2, Source::Shared(&file)) else { return };
        let bytes = vec![7; page_size()];
        // SAFETY: the page is inside the mapping and writable, no reference to its bytes exists, and `bytes` is
        // elsewhere.
        unsafe { mapping.write(1, &bytes) };
        // SAFETY: no reference to the mapping's bytes exists.
        unsafe { mapping.discard(&PageSet::all(2)) }.unwrap();
        // SAFETY: the page is inside the mapping and readable, and nothing writes to it.
        assert_eq!(unsafe { mapping.page(1) }, bytes);
    }
}
