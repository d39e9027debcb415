//! Windows 10 1803 and later: sections of the page file, mapped page by page into placeholders, and the working set
//! to see which pages were written.
//!
//! An address range is reserved once, as a placeholder, and stays taken until it is dropped: what is mapped in it turns
//! back into a placeholder in the step that unmaps it, so that nobody else's memory can come to lie there.
//! `VirtualAlloc2` and `MapViewOfFile3`, which can do that, are what needs 1803.
//!
//! Windows promises memory when it is mapped: all that may be written privately counts against the commit limit (the
//! size of memory and page file together) from then on. A reserved range does not, nor does what is read-only.

mod file;
mod memory;
mod section;
mod source;
mod tracker;

use std::sync::OnceLock;

/// What another process can be given to have a file.
pub(crate) use std::os::windows::io::OwnedHandle as Handle;

pub(crate) use file::MemoryFile;
pub(crate) use memory::Mapping;
pub(crate) use source::{borrowed, copy_of, received, stream};
pub(crate) use tracker::Tracker;

/// Between unmapping and mapping there is a moment in which the range cannot be read.
pub(crate) fn replaces_unseen() -> bool {
    false
}

/// Pages of a section are promised before they are mapped.
pub(crate) fn writes_in_place() -> bool {
    true
}

/// Always `None`: there are no huge pages.
pub(crate) fn huge_region() -> Option<usize> {
    None
}

/// `FlushInstructionCache` makes what was written run.
pub(crate) const RUNS_CODE: bool = true;

/// Bytes in a page.
#[inline]
pub(crate) fn page_size() -> usize {
    static PAGE_SIZE: OnceLock<usize> = OnceLock::new();
    *PAGE_SIZE.get_or_init(section::page_size)
}

/// What is free of memory, or of what may be committed, whichever is less.
pub(crate) fn available_memory() -> Option<usize> {
    section::available_memory()
}

/// Files that the process may have open: handles number 16 million, and are bounded by memory before that.
pub(crate) fn file_limit() -> usize {
    1 << 24
}
