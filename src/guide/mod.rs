//! The guide: how to use memsnap, a chapter for each kind of program.
//!
//! Each chapter says what you can do, shows complete programs, gives the costs and the limits, and names what to read
//! next. The programs are tested.
//!
//! | chapter | for |
//! |---|---|
//! | [`embedding`] | interpreters, runtimes and other engines whose memory is a view |
//! | [`sandboxes`] | servers that roll an instance back after each request, and pools of instances |
//! | [`fuzzing`] | fuzzers and other programs that run one target many times |
//! | [`virtual_machines`] | guest memory, with vm-memory or with the dirty log of a hypervisor |
//! | [`databases`] | in-memory databases, consistent backups, and data for tests |
//! | [`undo`] | undo histories, rollback in games, search over states |
//! | [`sharing`] | snapshots for several threads and several processes |
//! | [`tuning`] | what each call costs, which option changes it, and how to measure |
//! | [`platforms`] | what differs between operating systems |
//! | [`failure`] | errors, what they leave behind, and all limits |
//!
//! Read [`embedding`] first if other code (a runtime, a library in C, a device) uses the memory of a view.
//!
//! # Terms
//!
//! A [`Snapshot`](crate::Snapshot) is an immutable image of memory. It is a handle: to clone it copies no memory.
//!
//! A [`View`](crate::View) is a range of memory that shows a snapshot and can be written. Its writes are private: they
//! change neither the snapshot nor any other view. A view keeps its address for life.
//!
//! To *take* a snapshot is to make a new one of what a view shows now ([`take_snapshot`](crate::View::take_snapshot)).
//! To *restore* a view is to make it show a snapshot again ([`restore`](crate::View::restore),
//! [`restore_to`](crate::View::restore_to)).
//!
//! A *page* is the unit of memory management, [`page_size`](crate::page_size()) bytes long: 4 KiB on most machines. A
//! *changed* page is one whose bytes differ from the snapshot that was last taken of the view or restored to it. A
//! *private* page is one of which the view has a copy of its own. A *captured* page is one that a taken snapshot copied
//! from a view.
//!
//! # Figures
//!
//! The figures in this guide come from records in the repository: `bench/record/results.md` (2026-11-28) and
//! `results.md` in the folders of `showcase/` (2026-11-23). All were measured on Linux 6.18 with 2 virtual cores and
//! pages of 4 KiB. Each record names its processor and the command that made it. [`tuning`] explains how to measure on
//! your machine.

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

#[doc = include_str!("tuning.md")]
pub mod tuning {}

#[doc = include_str!("platforms.md")]
pub mod platforms {}

#[doc = include_str!("failure.md")]
pub mod failure {}
