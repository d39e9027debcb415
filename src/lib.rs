// README.md defines these links too, for readers on the web. The first definition of a link counts, so rustdoc uses
// these, which lead to the guide of this version.
//! [databases]: guide::databases
//! [embedding]: guide::embedding
//! [failure]: guide::failure
//! [fuzzing]: guide::fuzzing
//! [heaps]: guide::heaps
//! [platforms]: guide::platforms
//! [sandboxes]: guide::sandboxes
//! [saving]: guide::saving
//! [sharing]: guide::sharing
//! [tuning]: guide::tuning
//! [undo]: guide::undo
//! [virtual machines]: guide::virtual_machines
//!
// Rustdoc runs the examples of the README, and they need the Linux backend. `--cfg memsnap_unix` selects another one.
#![cfg_attr(not(memsnap_unix), doc = include_str!("../README.md"))]
#![cfg_attr(memsnap_unix, doc = "Memory snapshots with copy-on-write views.")]
#![deny(unsafe_code)]

mod access;
mod changes;
mod engine;
mod error;
pub mod guide;
mod image;
mod interop;
mod pages;
mod snapshot;
mod stats;
mod sys;
mod trace;
mod view;
mod zero;

#[cfg(test)]
mod fault_script;
#[cfg(test)]
mod fault_tests;

pub use access::Access;
pub use changes::{Change, Changes, PageChange};
pub use interop::os;
#[cfg(feature = "vm-memory")]
pub use interop::vm_memory;
pub use snapshot::Snapshot;
pub use snapshot::options::SnapshotOptions;
pub use stats::{SnapshotStats, StoreStats, ViewCosts, ViewStats};
pub use sys::{HugePages, Populate, Tracking, WhyNotFaster};
pub use view::kind::{Logged, Open, Protected, Readable};
pub use view::options::ViewOptions;
pub use view::{ArcView, CowView, LoggedView, MutView, OwnedView, ProtectedView, View};

/// Returns the size of a page in bytes.
///
/// A page is the unit in which memory is mapped, tracked, captured and compared. Its size depends on the running
/// system: 4 KiB, 16 KiB and 64 KiB are common. It is a power of two.
///
/// # Examples
///
/// Rounding a length up to whole pages:
///
/// ```
/// let len = 10_000_usize.next_multiple_of(memsnap::page_size());
/// assert!(len >= 10_000 && len.is_multiple_of(memsnap::page_size()));
/// ```
#[inline]
#[must_use]
pub fn page_size() -> usize {
    sys::page_size()
}
