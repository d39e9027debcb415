//! The seam: what memsnap needs of an operating system, and the choice of one.
//!
//! A platform provides, with these meanings (sizes in pages, offsets equal on both sides: page n of
//! a mapping shows page n of its file):
//!
//! | item | contract |
//! |---|---|
//! | `page_size()` | bytes a page, a power of two of at most 64 KiB |
//! | `MemoryFile` | memory that can be mapped: `create`, `write_at`, `write_pages`, `punch`, `finish` (immutable from then on), `share` (a `Handle` on it for other processes, only where nobody can write to it by any means; none elsewhere), `data` (pages that may be other than zero), `allocated` (bytes held) |
//! | `Mapping` | an owned address range, with inaccessible pages around it as `Placement` says: `new`, `placed`, `replace` all or a part, `discard` private pages, `extend` and `truncate`, `set_access`, `populate` |
//! | `Source` | what a mapping shows: zeroes, a file privately, a file shared, a file read-only |
//! | `Tracker` | `find`: every page of a private mapping that may differ from what it shows, or showed when it was closed; more is allowed, fewer never. `arm`, `close`: wishes |
//! | `copy_of`, `borrowed` | a file's bytes as they are now, and a file mapped in place |
//! | `received` | a `Handle` that another process sent, as a file in place; an error unless its bytes and length can never change, whatever that process does |
//! | `stream` | all that a reader gives |
//! | `available_memory` | bytes that can be had without pushing anything out, if known |
//! | `file_limit` | files that the process may have open |
//!
//! A failed call changes nothing, except that a failed `replace` may leave zeroes behind: whoever
//! called it assumes nothing about the range afterwards. In a forked child every inherited object
//! stays usable, but for mappings that are `Source::Shared`: those stay with the parent, and say so.

use std::ffi::CStr;
use std::sync::Arc;

use crate::options::HugePages;

#[cfg(test)]
pub(crate) mod fault;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub(crate) use linux::{
    Found, Handle, Mapping, MemoryFile, Search, Source, Tracker, available_memory, borrowed, copy_of,
    file_limit, page_size, received, stream,
};

#[cfg(not(target_os = "linux"))]
compile_error!("memsnap runs on Linux; other systems need a backend in src/sys/");

/// What is wanted of the place of a mapping.
#[derive(Clone, Default)]
pub(crate) struct Placement {
    /// Inaccessible pages before the first and behind the last.
    pub(crate) before: usize,
    pub(crate) behind: usize,
    pub(crate) huge_pages: HugePages,
    /// For those who look at the process.
    pub(crate) name: Option<Arc<CStr>>,
}

/// The place where tests make the n-th call into the operating system fail.
#[inline]
fn call(_name: &'static str) -> std::io::Result<()> {
    #[cfg(test)]
    fault::check(_name)?;
    Ok(())
}
