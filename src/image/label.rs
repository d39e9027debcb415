//! The name of an image's memory, and whether the memory may be in huge pages.
//!
//! This file has the data. `snapshot/options.rs` checks the name. The code that makes files and mappings passes both to
//! the system.

use std::ffi::CStr;
use std::sync::Arc;

use crate::sys::HugePages;

/// The name, and the choice about huge pages, for the memory of a snapshot, of its views, and of their snapshots.
#[derive(Clone, Default)]
pub(crate) struct Label {
    /// The name that `/proc/self/maps` shows on Linux, if the program gave one.
    pub(crate) name: Option<Arc<CStr>>,
    pub(crate) huge_pages: HugePages,
}
