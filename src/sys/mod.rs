//! What memsnap requires of an operating system (the contract), and the choice of a backend that provides it.
//!
//! Only this folder and the public extras for one system (`interop/os`) depend on the operating system. The layers
//! above decide which files are made and what is mapped where. `conformance` tests each item of the contract.
//!
//! A backend provides the items below. Sizes are in pages unless the item says otherwise. Page n of a mapping shows
//! page n of its file.
//!
//! | item | contract |
//! |---|---|
//! | `page_size()` | the number of bytes in a page: a power of two, at most 64 KiB |
//! | `MemoryFile` | a file whose pages can be mapped; see the next table |
//! | `Mapping` | an owned address range ([`Span`]); see the next table |
//! | `replaces_unseen()` | whether other threads can read a mapping, and see no difference, while `replace` maps the same bytes in its place |
//! | `writes_in_place()` | whether each page of a [`Source::Shared`] mapping is sure to get memory when it is written; if not, a write may end the process for lack of memory |
//! | `RUNS_CODE` | whether `set_access` can make pages executable; the processor then executes the bytes that the pages have at that moment |
//! | `Tracker` | finds written pages; see the next table |
//! | `huge_region()` | the number of pages in a huge page, or `None` if parts of a file cannot be moved into huge pages while they are mapped. If it is not `None`, a mapping of at least [`LARGE`] bytes of a file gets an address that is a multiple of this size, unless `Placement` says otherwise or no such address is free |
//! | `copy_of` | a file with the bytes that another file has now |
//! | `borrowed` | another file itself, to be mapped in place |
//! | `received` | the file of a `Handle` that another process sent, to be mapped in place |
//! | `stream` | a file with all bytes that a reader returns |
//! | `available_memory` | the number of bytes that can be allocated without swapping, if known |
//! | `file_limit` | the number of files that the process may have open |
//!
//! | method | contract |
//! |---|---|
//! | `MemoryFile::create`, `set_pages` | makes a file of zeroes with room to become longer; sets its length |
//! | `write_at`, `write_pages` | writes bytes; writes whole pages |
//! | `punch` | zeroes pages and gives back their memory |
//! | `finish` | makes the file immutable; the file was never mapped for writing |
//! | `may_be_sealed`, `seal` | does the same for a file that was mapped for writing. `seal` returns whether the system guarantees that nothing writes to the file any more: neither a mapping, nor a descriptor, nor a device that pinned one of its pages |
//! | `share` | a `Handle` by which other processes can read the file; none if anything could still write to the file |
//! | `data` | all pages that contain bytes other than zero, and possibly more |
//! | `allocated` | the number of bytes of memory or disk that the file takes, or more; 0 only if all bytes are zero |
//! | `holes` | the number of pages in a range of a mapping for which the file has no memory; `None` for files on a disk and files of others |
//! | `MemoryFile::collapse` | asks for huge pages for the whole file; best effort |
//! | `Mapping::new`, `placed` | maps a source at a new address; `placed` also reserves the inaccessible pages around it that `Placement` asks for |
//! | `replace`, `replace_part` | maps another source in place of all or some pages |
//! | `discard` | drops private pages, which then show their source again |
//! | `give_back` | gives back the memory of pages whose bytes nothing needs |
//! | `extend`, `truncate` | makes inaccessible pages behind the last page accessible; makes the last pages inaccessible |
//! | `set_access` | sets what may be done with the bytes of pages |
//! | `populate` | prepares pages in advance so that they take no page faults later |
//! | `entries` | how many pages are in huge pages, if the system reports that |
//! | `inaccessible` | the numbers of inaccessible pages before and behind |
//! | `check_owner` | fails in a forked child if the mapping stays with the parent |
//! | `check_usable` | fails if a failed call left pages that cannot be both read and written |
//! | `Tracker::new`, `switch` | makes a tracker for a mapping; changes its tracking method. Fails with `Unsupported` if the method cannot work |
//! | `Tracker::find` | lists every page of a private mapping that may differ from the mapping's source there, or from what the page showed when it was write-protected. It may list more pages, never fewer |
//! | `arm`, `write_protect` | write-protects the pages of a [`Scope`]; best effort |
//! | `renewed`, `disarm` | must be called after other memory was mapped in a part of the mapping; in all of it |
//! | `of_pinned` | makes a tracker for a mapping whose pages may be written without a page fault |
//! | `Tracker::collapse` | moves `huge_region()` pages of a file into one huge page if none of them is private. No byte changes, and no later write is missed. [`Collapsed::unprotected`] says whether pages may have lost their write-protection |
//!
//! # Failures
//!
//! A failed call changes nothing, with the exceptions below. A call that fails with `Unsupported` never changes
//! anything.
//!
//! - After a failed `replace` or `replace_part`, the bytes of the pages that were to be replaced are unspecified. These
//!   pages still belong to the mapping, and can be read and written unless `check_usable` fails. It fails if there was
//!   no memory even for zeroes (Windows). Then the bytes of the mapping must not be accessed until `replace` has
//!   succeeded.
//! - After a failed `discard` or `give_back`, the bytes of these pages are unspecified. The pages can be written.
//! - After a failed `set_access`, the access of each of these pages is unspecified.
//! - If a failed call leaves addresses of a mapping unmapped, and they cannot be mapped again, the backend aborts the
//!   process.
//!
//! # Forks
//!
//! In a forked child every inherited object stays usable, with two exceptions: mappings of [`Source::Shared`], and
//! files that are neither finished nor sealed. Those stay with the parent, and their methods return an error in the
//! child.
//!
//! # Descriptors
//!
//! If other code closed the descriptor of a file, the methods of the file return an error. They never read or change
//! another file.

use std::ffi::CStr;
use std::fmt::Display;
use std::io;
use std::num::NonZeroUsize;
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

// With `--cfg memsnap_unix`, Linux uses the backend of all other Unix systems, so that it can be tested.
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

/// What pages of a mapping show. Page n of the mapping shows page n of the file.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// Zeroes; writes are private.
    ///
    /// They are in huge pages only if `Placement` asks for that. Otherwise one written byte would take 2 MiB.
    Zero,
    /// The file; writes are private.
    Private(&'a MemoryFile),
    /// The file; writes go into it. Forked children do not get the mapping.
    Shared(&'a MemoryFile),
    /// The file, read-only.
    ReadOnly(&'a MemoryFile),
}

/// A mapping of a file that has at least this many bytes gets an address that suits huge pages.
///
/// It is smaller in unit tests, which use smaller files.
pub(crate) const LARGE: usize = if cfg!(test) { 4 << 20 } else { 32 << 20 };

/// Another source for some of the pages of a mapping.
///
/// If several name the same page, the last one counts.
pub(crate) type Overlay<'a> = (PageRange, Source<'a>);

/// What a new mapping needs around it, and how its pages are used.
#[derive(Clone, Default)]
pub(crate) struct Placement {
    /// The least number of inaccessible pages before the first page.
    pub(crate) before: usize,
    /// The least number of inaccessible pages behind the last page.
    pub(crate) behind: usize,
    /// The address of the first page. If it is `None`, the system picks one.
    ///
    /// It is a multiple of the page size. If other memory is in the way, mapping fails with
    /// [`address_in_use`](crate::error::address_in_use).
    pub(crate) address: Option<NonZeroUsize>,
    /// Whether to ask for huge pages.
    #[allow(dead_code, reason = "some systems ignore this request")]
    pub(crate) huge_pages: HugePages,
    /// Whether pages may be made executable later.
    #[allow(dead_code, reason = "some systems need not know this in advance")]
    pub(crate) executable: bool,
    /// A name for the memory, shown by tools that list the mappings of a process.
    #[allow(dead_code, reason = "some systems ignore this request")]
    pub(crate) name: Option<Arc<CStr>>,
}

/// Which pages [`Tracker::find`] looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Search {
    /// Private pages.
    ///
    /// A write-protected page counts only while it is in memory. If the system cannot write-protect pages, the search
    /// may leave out private pages that are not in memory. So only an armed mapping can be restored by this search
    /// alone.
    Private,
    /// Pages that may have been written since they were write-protected.
    ///
    /// A page that was never write-protected counts if it may have been written since it was mapped. This includes
    /// pages that were swapped out, written by the kernel, or inherited through a fork.
    Written,
    /// The same pages, which are write-protected in the same step if the system can do that.
    ///
    /// The next search does not list them again, so the caller has to remember them. After an error, any page may have
    /// been written.
    WrittenAndProtect,
}

/// Which pages an armed tracker write-protects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scope {
    /// All pages.
    ///
    /// The kernel then makes page tables for the whole mapping. For each page-table entry, a search takes a third of
    /// the time that it takes with `InMemory`.
    All,
    /// Pages in memory or swapped out.
    ///
    /// A page whose first use comes later counts as written until it is write-protected as well.
    InMemory,
}

/// How the pages of a range are mapped.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Entries {
    /// The number of pages in huge pages.
    pub(crate) huge: usize,
    /// The number of other pages that are in memory, swapped out or write-protected.
    ///
    /// Each has a page-table entry.
    pub(crate) small: usize,
}

/// What [`Tracker::collapse`] did.
pub(crate) struct Collapsed {
    /// Whether the pages are in a huge page now, and if not, why.
    pub(crate) moved: io::Result<()>,
    /// Whether pages that were write-protected before may not be now.
    pub(crate) unprotected: bool,
}

/// Which pages a tracker write-protected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WriteProtected {
    /// None: the tracker was not asked to, must not, or failed to.
    Nothing,
    /// Those in memory or swapped out.
    InMemory,
    /// All pages.
    All,
}

/// The result of a search.
pub(crate) struct Found {
    /// The pages that the search lists.
    pub(crate) pages: PageSet,
    /// Whether the kernel reported each of these pages as private or written.
    ///
    /// Otherwise they are all pages that the kernel did not report as unwritten.
    pub(crate) known: bool,
    /// Whether these are only the pages written since pages were write-protected.
    ///
    /// If so, other pages may be private.
    pub(crate) since_protected: bool,
    /// Whether `pages` contains all private pages, including those that are swapped out.
    pub(crate) complete: bool,
    /// The pages that the search write-protected.
    pub(crate) write_protected: WriteProtected,
    /// The number of pages that the search looked at and that are neither write-protected nor private.
    pub(crate) unwritten: usize,
    /// The number of pages in memory that are not private, if the search counted them.
    pub(crate) others: Option<usize>,
}

impl Found {
    /// Returns the result of a search that found that `pages` are the private pages of the mapping.
    pub(crate) fn all_private(pages: PageSet) -> Self {
        let (known, complete) = (true, true);
        Self {
            pages,
            known,
            since_protected: false,
            complete,
            write_protected: WriteProtected::Nothing,
            unwritten: 0,
            others: None,
        }
    }
}

/// Returns the tracking method that tests choose in place of the automatic one.
///
/// Returns `None` without reading the environment unless the library was built with `MEMSNAP_TESTING` set.
#[allow(dead_code, reason = "a system that compares all pages has no choice")]
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

/// Returns the error for a tracking method that cannot work here because of `obstacle`.
///
/// `needs` says what the method needs.
fn cannot_track(tracking: Tracking, obstacle: impl Display, needs: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        format!(
            "tracking by {tracking:?} cannot work here ({obstacle}): it needs {needs}; \
             Tracking::Auto chooses a method that works"
        ),
    )
}

/// Returns the error for [`Tracking::Logged`], which only logged views have.
fn cannot_be_chosen() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "Tracking::Logged cannot be chosen; to report the written pages of a view, open it with ViewOptions::logged",
    )
}

/// Counts a call into the operating system, and returns an error if a test makes that call fail.
///
/// Backends call this function before each call that can fail in tests.
#[inline]
fn call(_name: &'static str) -> io::Result<()> {
    #[cfg(test)]
    fault::check(_name)?;
    Ok(())
}
