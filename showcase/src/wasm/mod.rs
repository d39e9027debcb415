#![doc = include_str!("README.md")]

mod audit;
mod contenders;
pub mod instance;
pub mod measure;
pub mod memory;
mod requests;
pub mod saved;
pub mod warm;

pub use instance::{Instance, Program, State};
pub use memory::{Memories, MemoryView};

/// A key-value store, in the text format of WebAssembly.
pub const KV: &str = include_str!("kv.wat");
