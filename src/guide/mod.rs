//! The guide: how to use memsnap, with one chapter for each kind of program.
//!
//! Each chapter says what you can do, shows complete programs, gives the costs and the limits, and names related
//! chapters. All programs are tested.
//!
//! | chapter | for |
//! |---|---|
//! | [`embedding`] | interpreters, runtimes and other engines that use a view as their memory |
//! | [`sandboxes`] | servers that roll an instance back after each request, and pools of instances |
//! | [`fuzzing`] | fuzzers and other programs that run one target many times |
//! | [`virtual_machines`] | guest memory, with vm-memory or with the dirty log of a hypervisor |
//! | [`databases`] | in-memory databases, consistent backups, and data for tests |
//! | [`undo`] | undo histories, rollback in games, search over states |
//! | [`sharing`] | snapshots for several threads and several processes |
//! | [`heaps`] | vectors, hash maps and other Rust values that can be rolled back, with the crate `memsnap-heap` |
//! | [`saving`] | snapshots on disk and on other machines, with the crate `memsnap-store` |
//! | [`tuning`] | what each call costs, which option changes it, and how to measure |
//! | [`platforms`] | differences between operating systems |
//! | [`failure`] | errors, their effects, and all limits |
//!
//! Read [`embedding`] first if other code (a runtime, a C library, a device) uses the memory of a view.
//!
//! # Terms
//!
//! A [`Snapshot`](crate::Snapshot) is an immutable image of memory. It is a handle: cloning it copies no memory.
//!
//! A [`View`](crate::View) is a range of memory that shows a snapshot and can be written. Its writes are private: they
//! change neither the snapshot nor any other view. The address of a view never changes.
//!
//! A view to which the program reports what it writes is a [logged view](crate::LoggedView). In all other views,
//! memsnap finds the written pages itself.
//!
//! *Taking a snapshot* of a view makes a new snapshot of what the view shows
//! ([`take_snapshot`](crate::View::take_snapshot)). *Restoring* a view makes it show a snapshot again
//! ([`restore`](crate::View::restore), [`restore_to`](crate::View::restore_to)).
//!
//! A *page* is the unit of memory management. It has [`page_size`](crate::page_size()) bytes: 4 KiB on most machines.
//!
//! - A *dirty* page was written since the last snapshot or restore of the view.
//! - A *changed* page has other bytes than the snapshot that was last taken of the view or restored to it.
//! - A *private* page is a page of the view that the system copied when the view wrote to it. It is not shared with the
//!   snapshot.
//! - A *captured* page is a page that was copied from a view when a snapshot was taken.
//!
//! # Figures
//!
//! The figures in this guide come from records in the repository: `bench/record/results.md`, `heap/record/results.md`
//! and `showcase/src/kvm/results.md` (2026-11-29), and `results.md` in `showcase/src/sqlite` and `showcase/src/wasm`
//! (2026-11-23). All were measured on Linux 6.18 with 2 virtual cores and pages of 4 KiB. Each record names its
//! processor and the command that made it. [`tuning`] describes how to measure on your machine.

#[doc = include_str!("embedding.md")]
pub mod embedding {}

#[doc = include_str!("sandboxes.md")]
pub mod sandboxes {}

#[doc = include_str!("fuzzing.md")]
pub mod fuzzing {}

#[doc = include_str!("virtual_machines.md")]
///
/// [`GuestRegion`]: https://docs.rs/memsnap/latest/memsnap/vm_memory/struct.GuestRegion.html
pub mod virtual_machines {}

#[doc = include_str!("databases.md")]
pub mod databases {}

#[doc = include_str!("undo.md")]
pub mod undo {}

#[doc = include_str!("sharing.md")]
pub mod sharing {}

// The programs of this chapter need memsnap-heap, whose tests run them.
#[cfg_attr(not(doctest), doc = include_str!("heaps.md"))]
#[cfg_attr(doctest, doc = "Values that can be rolled back.")]
pub mod heaps {}

// The programs of this chapter need memsnap-store, whose tests run them.
#[cfg_attr(not(doctest), doc = include_str!("saving.md"))]
#[cfg_attr(doctest, doc = "Saving snapshots.")]
pub mod saving {}

#[doc = include_str!("tuning.md")]
pub mod tuning {}

#[doc = include_str!("platforms.md")]
pub mod platforms {}

#[doc = include_str!("failure.md")]
pub mod failure {}
