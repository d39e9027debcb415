//! Which process a mapping belongs to that is not inherited by children.
//!
//! A number that each forked child replaces by a greater one, in a handler of `pthread_atfork`. A process and its descendants
//! never have the same one, and nobody else knows of its mappings: those of a sibling were made after the fork. The handler
//! also closes what children must not have; see `unix/keys.rs`.
//!
//! A child that no handler was run for (`vfork`, `_Fork`, a bare `clone`) may do no more than `exec`, as for all that the C
//! library keeps. The memory is not mapped there either.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::unix::{MemoryFile, close_inherited, next_number};

/// 0 in the first process of memsnap.
static GENERATION: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::sys) struct Owner(u64);

impl Owner {
    /// Of the process that a shared mapping of `file` has to stay in: this one. Fails with `Unsupported` for files that
    /// must not be mapped so.
    pub(in crate::sys) fn of_shared(file: &MemoryFile) -> io::Result<Self> {
        // Files of a file system are not, and all others are kept from children until they are finished.
        if !file.is_kept_from_children() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self(GENERATION.load(Ordering::Relaxed)))
    }

    pub(in crate::sys) fn is_current(self) -> bool {
        self.0 == GENERATION.load(Ordering::Relaxed)
    }
}

/// For `pthread_atfork`.
pub(in crate::sys) extern "C" fn in_child() {
    let generation = next_number();
    GENERATION.store(generation, Ordering::Relaxed);
    close_inherited(generation);
}
