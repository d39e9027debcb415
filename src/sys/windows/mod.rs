//! The Windows backend: sections of the page file, mapped into placeholders, and the working set to find written pages.
//!
//! | what | mechanism | why | without it |
//! |---|---|---|---|
//! | address ranges | placeholders (`VirtualAlloc2`, `MapViewOfFile3`) | other code cannot map anything in a range, whatever fails | a program does not load |
//! | files that can be mapped | sections of the page file | only memsnap has handles that can write to them | no snapshot can be made |
//! | finding written pages | `GetWriteWatch` and `QueryWorkingSetEx` | they report written pages without a driver or a privilege | pages that the system does not keep track of are compared |
//!
//! The placeholders need Windows 10 1803, which is the lowest version. An address range is reserved once, as a
//! placeholder, and stays reserved until it is dropped. The call that unmaps memory in it also turns the addresses back
//! into a placeholder.
//!
//! Windows counts memory when it is mapped: all memory that may be written privately counts against the commit limit
//! (the size of memory and page file together) from then on. Reserved addresses and read-only memory do not count.

mod file;
mod memory;
mod section;
mod source;
mod tracker;

use std::sync::OnceLock;

/// What is sent to another process to share a file with it.
pub(crate) use std::os::windows::io::OwnedHandle as Handle;

pub(crate) use file::MemoryFile;
pub(crate) use memory::Mapping;
pub(crate) use source::{borrowed, copy_of, received, stream};
pub(crate) use tracker::Tracker;

/// Always returns `false`: between unmapping and mapping, the range cannot be read for a moment.
pub(crate) fn replaces_unseen() -> bool {
    false
}

/// Always returns `true`: the pages of a section are committed before they are mapped.
pub(crate) fn writes_in_place() -> bool {
    true
}

/// Always returns `None`: mapped pages cannot be moved into huge pages.
pub(crate) fn huge_region() -> Option<usize> {
    None
}

/// Views can be executable: `FlushInstructionCache` makes the processor execute what was written.
pub(crate) const RUNS_CODE: bool = true;

/// Returns the number of bytes in a page.
#[inline]
pub(crate) fn page_size() -> usize {
    static PAGE_SIZE: OnceLock<usize> = OnceLock::new();
    *PAGE_SIZE.get_or_init(section::page_size)
}

/// Returns the number of bytes of free memory, or of what can still be committed if that is less.
pub(crate) fn available_memory() -> Option<usize> {
    section::available_memory()
}

/// Returns the number of files that the process may have open.
///
/// A process can have 16 million handles; memory limits it before that.
pub(crate) fn file_limit() -> usize {
    1 << 24
}
