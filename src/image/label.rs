//! What the system is told of an image's memory.

use std::ffi::CStr;
use std::sync::Arc;

use crate::sys::HugePages;

/// What the system is told of the memory of a snapshot, of its relatives and of their views.
#[derive(Clone, Default)]
pub(crate) struct Label {
    pub(crate) name: Option<Arc<CStr>>,
    pub(crate) huge_pages: HugePages,
}
