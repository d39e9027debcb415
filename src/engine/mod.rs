//! The inside of a view: its working tree, and the decisions about tracking, restoring and mapping.
//!
//! `worktree.rs` is what the rest of the crate calls. `state.rs` draws the states of a view. The other files add
//! methods to that state, or keep a part of it.

mod adapt;
mod adaptation;
mod capture;
mod checkout;
pub(crate) mod cost;
mod decide;
pub(crate) mod dirty_log;
mod discard;
mod flat_files;
mod in_place;
mod known_pages;
pub(crate) mod layout;
mod logged_tree;
mod put_back;
mod rewritten;
mod search;
pub(crate) mod settings;
pub(crate) mod state;
pub(crate) mod worktree;

#[cfg(all(test, unix))]
mod adapt_tests;
