//! Recognizes the process that owns a mapping which forked children do not inherit.
//!
//! Each process has a number. A forked child replaces it by a greater one, in a `pthread_atfork` handler. So a process
//! and its descendants never have the same number. Siblings may have the same number, which does no harm: mappings that
//! a process inherited were made by an ancestor. The handler also closes the descriptors that children must not have,
//! which `unix/keys.rs` lists.
//!
//! If no handler ran in a child (`vfork`, `_Fork`, a bare `clone`), the child may only call `exec`. The C library
//! requires the same, for the state that it keeps. Such a child does not have the shared mappings either.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::unix::{MemoryFile, close_inherited, next_number};

/// The number of this process; 0 if no ancestor used memsnap before the fork.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// The number of the process that owns a mapping.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::sys) struct Owner(u64);

impl Owner {
    /// Returns the number of this process, in which a shared mapping of `file` has to stay.
    ///
    /// Fails with `Unsupported` if the file must not be mapped shared.
    pub(in crate::sys) fn of_shared(file: &MemoryFile) -> io::Result<Self> {
        // Files of a file system must not. All others are kept from children until they are finished.
        if !file.is_kept_from_children() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self(GENERATION.load(Ordering::Relaxed)))
    }

    pub(in crate::sys) fn is_current(self) -> bool {
        self.0 == GENERATION.load(Ordering::Relaxed)
    }
}

/// The `pthread_atfork` handler of a child.
pub(in crate::sys) extern "C" fn in_child() {
    let generation = next_number();
    GENERATION.store(generation, Ordering::Relaxed);
    close_inherited(generation);
}
