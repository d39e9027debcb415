// The README tells what Linux has, which the backend of other systems does not have when it is tested there.
#![cfg_attr(not(memsnap_unix), doc = include_str!("../README.md"))]
#![cfg_attr(memsnap_unix, doc = "Memory snapshots with copy-on-write views.")]
#![deny(unsafe_code)]

mod access;
mod adapt;
#[cfg(feature = "bytes")]
mod bytes;
mod changes;
mod checkout;
mod cost;
mod dirty_log;
mod discard;
mod error;
pub mod guide;
mod head;
mod image;
mod in_place;
mod layout;
mod logged;
mod logged_tree;
mod options;
pub mod os;
mod pages;
mod protected;
mod rewritten;
mod slice;
mod snapshot;
mod stats;
mod store;
mod sys;
mod table;
mod trace;
mod view;
#[cfg(feature = "vm-memory")]
pub mod vm_memory;
mod worktree;

#[cfg(all(test, unix))]
mod adapt_tests;
#[cfg(test)]
mod fault_script;
#[cfg(test)]
mod fault_tests;

pub use access::Access;
pub use changes::{Change, Changes, PageChange};
pub use options::{HugePages, Populate, SnapshotOptions, Tracking, ViewOptions};
pub use snapshot::Snapshot;
pub use stats::{SnapshotStats, StoreStats, ViewCosts, ViewStats, WhyNotFaster};
pub use view::{
    ArcView, CowView, Logged, LoggedView, MutView, Open, OwnedView, Protected, ProtectedView, Readable, View,
};

/// The size of a page in bytes: the unit in which memory is mapped, tracked, captured and compared.
///
/// A fact of the running system; 4 KiB, 16 KiB and 64 KiB are common.
///
/// # Examples
///
/// ```
/// assert!(memsnap::page_size().is_power_of_two());
/// ```
#[inline]
#[must_use]
pub fn page_size() -> usize {
    sys::page_size()
}
