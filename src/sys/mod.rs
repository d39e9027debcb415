//! The seam: what memsnap needs of an operating system, and the choice of one.
//!
//! A platform provides, with these meanings (sizes in pages, offsets equal on both sides: page n of
//! a mapping shows page n of its file):
//!
//! | item | contract |
//! |---|---|
//! | `page_size()` | bytes a page, a power of two of at most 64 KiB |
//! | `MemoryFile` | memory that can be mapped: `create` (with room to become longer by `set_pages`), `write_at`, `write_pages`, `punch`, `finish` (immutable from then on; the file was never mapped for writing), `may_be_sealed` and `seal` (the same for one that was: whether the system guarantees that nobody writes to it any more, by a mapping, a descriptor or a page that it pinned), `share` (a `Handle` on it for other processes, only where nobody can write to it by any means; none elsewhere), `data` (at least the pages that are other than zero), `allocated` (bytes held, at least; 0 only if all is zero), `holes` (the number of pages in a range of a mapping for which the file has no memory; `None` for a file on a disk or somebody else's), `collapse` |
//! | `Mapping` | an owned address range ([`Span`]), with inaccessible pages around it as `Placement` says: `new`, `placed`, `replace`, `replace_part`, `discard` private pages, `give_back` the memory of pages that nobody needs, `extend` and `truncate`, `set_access`, `populate`, `entries` (how many pages are in huge pages, if the system says), `inaccessible`, `check_owner`, `check_usable` |
//! | `replaces_unseen()` | whether `replace` with the bytes that are there already goes unnoticed by threads that read them |
//! | `writes_in_place()` | whether each page of `Source::Shared` has memory when it is written: elsewhere the process would be stopped for lack of it |
//! | `RUNS_CODE` | whether `set_access` can make pages executable, which are then run as they are at that moment |
//! | `Tracker` | `find`: every page of a private mapping that may differ from what it shows, or showed when it was closed; more is allowed, fewer never. `arm`, `close`: best effort, for the pages of a `Scope`. `of_pinned`: for a mapping whose pages may be written past the page table |
//! | `huge_region()` | the number of pages in a huge page; `None` if parts of a file cannot be moved into huge pages while they are mapped. If it is not `None`, a mapping of at least `LARGE` bytes of a file gets an address that is a multiple of this size, as far as `Placement` and free addresses allow |
//! | `Tracker::collapse` | moves as many pages of a file as `huge_region()` says into a huge page, if none of them is private. No byte changes, and no later write is missed. `Collapsed::opened` says whether closed pages may be open now |
//! | `copy_of`, `borrowed` | a file's bytes as they are now, and a file mapped in place |
//! | `received` | a `Handle` that another process sent, as a file in place |
//! | `stream` | all that a reader gives |
//! | `available_memory` | bytes that can be had without pushing anything out, if known |
//! | `file_limit` | files that the process may have open |
//!
//! A failed call changes nothing, except that after a failed `replace` or `replace_part` the pages that were to be
//! replaced show anything. They are still the mapping's own, and can be read and written unless `check_usable`
//! fails: there was no memory even for zeroes (Windows). Then nothing may touch the mapping's bytes until `replace`
//! has succeeded. Where a system leaves addresses that may be somebody else's by now, the process is aborted. In a forked child every inherited object stays usable, but for mappings that are
//! `Source::Shared` and files that are neither finished nor sealed: those stay with the parent, and say so. A file whose
//! descriptor was closed by other code says so as well, and never shows or changes another one.

use std::ffi::CStr;
use std::fmt::Display;
use std::io;
use std::sync::Arc;

use crate::pages::{PageRange, PageSet};

#[cfg(test)]
mod conformance;
#[cfg(test)]
pub(crate) mod fault;

mod blocks;
#[cfg(miri)]
mod boxed;
#[cfg(miri)]
pub(crate) use boxed::Boxed;

pub(crate) mod limits;
mod span;
mod vocabulary;
pub(crate) use span::Span;
pub use vocabulary::{HugePages, Populate, Tracking, WhyNotFaster};

#[cfg(unix)]
mod unix;

// `--cfg memsnap_unix` has Linux use the backend of all other Unix systems, to test that.
#[cfg(all(target_os = "linux", not(memsnap_unix)))]
mod linux;
#[cfg(all(target_os = "linux", not(memsnap_unix)))]
use linux as system;
#[cfg(all(unix, any(not(target_os = "linux"), memsnap_unix)))]
mod posix;
#[cfg(all(unix, any(not(target_os = "linux"), memsnap_unix)))]
use posix as system;
#[cfg(windows)]
mod windows;
#[cfg(windows)]
use windows as system;

#[cfg(not(any(unix, windows)))]
compile_error!("memsnap needs a backend for this system in src/sys/");

#[allow(unused_imports, reason = "not every system has a module in `os`")]
pub(crate) use system::received;
pub(crate) use system::{
    Handle, Mapping, MemoryFile, RUNS_CODE, Tracker, available_memory, borrowed, copy_of, file_limit,
    huge_region, page_size, replaces_unseen, stream, writes_in_place,
};

/// What a range of addresses shows. Page n of the mapping shows page n of the file.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// Zeroes; writes are private. In huge pages only if asked for: one byte would cost 2 MiB.
    Zero,
    /// The file; writes are private.
    Private(&'a MemoryFile),
    /// The file; writes go into it. Kept out of forked children.
    Shared(&'a MemoryFile),
    /// The file, read-only.
    ReadOnly(&'a MemoryFile),
}

/// A mapping of at least so many bytes of a file gets an address at which huge pages can be mapped.
///
/// Unit tests use smaller files.
pub(crate) const LARGE: usize = if cfg!(test) { 4 << 20 } else { 32 << 20 };

/// Another source for some of the pages of a mapping. Of several for one page the last counts.
pub(crate) type Overlay<'a> = (PageRange, Source<'a>);

/// What is wanted of the place of a mapping.
#[derive(Clone, Default)]
pub(crate) struct Placement {
    /// Inaccessible pages before the first and behind the last.
    pub(crate) before: usize,
    pub(crate) behind: usize,
    #[allow(dead_code, reason = "a wish, which not every system can grant")]
    pub(crate) huge_pages: HugePages,
    /// Pages may be made executable.
    #[allow(dead_code, reason = "only some systems have to know in advance")]
    pub(crate) executable: bool,
    /// For those who look at the process.
    #[allow(dead_code, reason = "a wish, which not every system can grant")]
    pub(crate) name: Option<Arc<CStr>>,
}

/// What to look for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Search {
    /// Pages that have a frame of their own. Those closed count only while they are in memory, and where pages cannot
    /// be closed, those not in memory need not count: only an armed mapping can be restored by it.
    Private,
    /// Pages that may differ from what they showed when they were closed or, if they never were, before they
    /// were written. Pages swapped out, written by the kernel, or inherited through a fork are among them.
    Written,
    /// The same, and closes them in the same step, where pages can be closed. They will not be reported again, so
    /// the caller remembers them; after an error any page may have been written.
    WrittenAndClose,
}

/// Which pages an armed tracker closes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scope {
    /// All pages. The kernel makes page tables for the whole mapping, but searches take a third of the time for each
    /// entry.
    All,
    /// Pages in memory or swapped out. A page that is first used later counts as written until it is closed as well.
    InMemory,
}

/// How the pages of a range are mapped.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Entries {
    /// The number of pages in huge pages.
    pub(crate) huge: usize,
    /// The number of other pages that are in memory, swapped out or closed. Each has a page-table entry.
    pub(crate) small: usize,
}

/// What [`Tracker::collapse`] did.
pub(crate) struct Collapsed {
    pub(crate) moved: io::Result<()>,
    /// Whether pages that were closed before may be open now.
    pub(crate) opened: bool,
}

/// What an armed tracker closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Closed {
    /// Nothing: closing was not asked for, is not allowed or failed.
    Nothing,
    /// Pages in memory or swapped out.
    InMemory,
    /// All pages.
    All,
}

/// What a tracker found.
pub(crate) struct Found {
    pub(crate) pages: PageSet,
    /// Whether the kernel named them; otherwise they are all that there are.
    pub(crate) known: bool,
    /// Whether they are those written since all were closed, so that others may have a frame of their own.
    pub(crate) since_closed: bool,
    /// Whether no other page has a frame of its own, in memory or swapped out.
    pub(crate) complete: bool,
    pub(crate) closed: Closed,
    /// Pages that were looked at and found to be neither closed nor written.
    pub(crate) unwritten: usize,
    /// Pages in memory that are not the mapping's own, where they were counted.
    pub(crate) others: Option<usize>,
}

impl Found {
    pub(crate) fn all_private(pages: PageSet) -> Self {
        let (known, complete) = (true, true);
        Self {
            pages,
            known,
            since_closed: false,
            complete,
            closed: Closed::Nothing,
            unwritten: 0,
            others: None,
        }
    }
}

/// What tests want in place of the automatic choice. A library that was not built with `MEMSNAP_TESTING` set does not
/// look at its environment.
#[allow(dead_code, reason = "where all pages are compared there is no choice")]
fn forced_tracking() -> Option<Tracking> {
    option_env!("MEMSNAP_TESTING")?;
    let name = std::env::var("MEMSNAP_TIER").ok()?;
    Some(match &*name {
        "armed" => Tracking::Armed,
        "scan" => Tracking::Scan,
        "pagemap" => Tracking::Pagemap,
        "working-set" => Tracking::WorkingSet,
        "compare" => Tracking::Compare,
        _ => panic!("MEMSNAP_TIER={name} is none of armed, scan, pagemap, working-set and compare"),
    })
}

/// Of a way to find written pages that cannot work here, because of `obstacle`.
fn cannot_track(tracking: Tracking, obstacle: impl Display, needs: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        format!(
            "tracking by {tracking:?} cannot work here ({obstacle}): it needs {needs}; Tracking::Auto takes what works"
        ),
    )
}

/// The error if [`Tracking::Logged`] is chosen, which is for logged views alone.
fn cannot_be_chosen() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "Tracking::Logged cannot be chosen; to report the written pages of a view, open it with ViewOptions::logged",
    )
}

/// The place where tests make the n-th call into the operating system fail.
#[inline]
fn call(_name: &'static str) -> io::Result<()> {
    #[cfg(test)]
    fault::check(_name)?;
    Ok(())
}
