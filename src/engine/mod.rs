//! What is inside a view.
//!
//! `worktree.rs` has the states of a view, and calls the others.

mod adapt;
mod adaptation;
mod capture;
mod checkout;
pub(crate) mod cost;
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
