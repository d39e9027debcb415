//! Which process a mapping belongs to that is not inherited by children.
//!
//! A number that each forked child counts up, by a handler of `pthread_atfork`. A process and its descendants never
//! have the same one, and nobody else knows of its mappings: those of a sibling were made after the fork.
//!
//! A child that no handler was run for (`vfork`, `_Fork`, a bare `clone`) may do no more than `exec`, as for all that the C
//! library keeps. The memory is not mapped there either.
#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::file::Kind;
use crate::sys::call;
use crate::sys::unix::MemoryFile;

/// Forks between the first process of memsnap and this one.
static GENERATION: AtomicUsize = AtomicUsize::new(0);

/// Whether forks are counted. No lock, which a child could inherit locked: to count each fork twice does no harm.
static COUNTED: AtomicBool = AtomicBool::new(false);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::sys) struct Owner(usize);

impl Owner {
    /// Of the process that a shared mapping of `file` has to stay in: this one. Fails with `Unsupported` for files that
    /// must not be mapped so.
    pub(in crate::sys) fn of_shared(file: &MemoryFile) -> io::Result<Self> {
        if file.kind != Kind::Memory {
            return Err(io::ErrorKind::Unsupported.into());
        }
        if !COUNTED.load(Ordering::Acquire) {
            call("pthread_atfork")?;
            // SAFETY: the handler does nothing but count an atomic up, which is allowed in any child.
            let error = unsafe { libc::pthread_atfork(None, None, Some(count)) };
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            COUNTED.store(true, Ordering::Release);
        }
        Ok(Self(GENERATION.load(Ordering::Relaxed)))
    }

    pub(in crate::sys) fn is_current(self) -> bool {
        self.0 == GENERATION.load(Ordering::Relaxed)
    }
}

extern "C" fn count() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}
