//! What the test files share: bytes that are told from others, what is done with snapshots of every kind, and
//! how a test is run on its own, or says that it was skipped.
//!
//! What only some systems have is in modules named `unix` and `linux`, here as in the tests.
#![allow(dead_code, unused_imports)] // Each test file is a crate of its own and uses a part.

pub(crate) mod alone;
#[cfg(target_os = "linux")]
pub(crate) mod keys;
pub(crate) mod kinds;
pub(crate) mod maps;
pub(crate) mod script;

#[cfg(all(target_os = "linux", not(memsnap_unix)))]
pub(crate) mod linux;
#[cfg(unix)]
pub(crate) mod unix;

/// What only Linux tells.
#[cfg(not(all(target_os = "linux", not(memsnap_unix))))]
mod linux {
    pub(crate) fn memory_file_bytes() -> Option<u64> {
        None
    }

    /// Not known.
    pub(crate) fn addresses_are_limited() -> bool {
        true
    }
}

use std::env;
use std::fmt::Display;
use std::io::{self, ErrorKind, PipeReader, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use memsnap::page_size;

pub(crate) use alone::alone;
pub(crate) use linux::{addresses_are_limited, memory_file_bytes};

/// Whether these are tests of the backend for Linux.
pub(crate) const LINUX: bool = cfg!(all(target_os = "linux", not(memsnap_unix)));

/// The way of finding written pages that takes the place of the automatic choice, by the name in `CONTRIBUTING.md`.
pub(crate) fn forced_tier() -> Option<String> {
    option_env!("MEMSNAP_TESTING")?;
    env::var("MEMSNAP_TIER").ok()
}

/// Says why a test cannot run here, in lines that CI counts.
pub(crate) fn skip(test: &str, reason: impl Display) {
    tell(&format!("skipped: {test}: {reason}"));
}

/// What was made; where this system is unable to (`Unsupported`), nothing, and the test is skipped. Any other error fails
/// the test, which would test nothing otherwise.
#[track_caller]
pub(crate) fn supported<T>(test: &str, made: io::Result<T>) -> Option<T> {
    match made {
        Ok(made) => Some(made),
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            skip(test, message(&error));
            None
        }
        Err(error) => panic!("{}", message(&error)),
    }
}

/// Writes a line to the real standard error, also where the test's output is captured.
pub(crate) fn tell(line: &str) {
    let _ = io::stderr().write_all(format!("\n{line}\n").as_bytes());
}

/// Lets only one test of the file run until the guard is dropped.
pub(crate) fn serial() -> MutexGuard<'static, ()> {
    static SERIAL: Mutex<()> = Mutex::new(());
    SERIAL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `pages` pages that are told from each other, and from those of another `seed`, by each byte.
pub(crate) fn pattern(pages: usize, seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; pages * page_size()];
    for (page, bytes) in bytes.chunks_exact_mut(page_size()).enumerate() {
        bytes.fill(page.to_le_bytes()[0].wrapping_mul(16).wrapping_add(seed));
        bytes[..8].copy_from_slice(&(page as u64).to_le_bytes());
    }
    bytes
}

/// `len` bytes, no two pages of them alike.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// `bytes`, and zeroes up to a whole number of pages.
pub(crate) fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(page_size()), 0);
    bytes
}

/// Compares without printing megabytes.
#[track_caller]
pub(crate) fn assert_same(what: &str, real: &[u8], expected: &[u8]) {
    assert_eq!(real.len(), expected.len(), "{what}: length");
    if real != expected {
        let at = real.iter().zip(expected).position(|(real, expected)| real != expected).unwrap_or(0);
        // Read again: a page that is torn may look different now.
        let (page, real, expected) = (at / page_size(), real[at], expected[at]);
        panic!("{what}: byte {at} (page {page}) is {real}, expected {expected}");
    }
}

/// The message of an error with all that it was caused by.
pub(crate) fn message(error: &io::Error) -> String {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        message = format!("{message}: {error}");
        source = error.source();
    }
    message
}

/// A pipe's reading end, to which a thread writes `bytes`.
pub(crate) fn pipe_of(bytes: Vec<u8>) -> PipeReader {
    let (reader, mut writer) = io::pipe().unwrap();
    thread::spawn(move || writer.write_all(&bytes));
    reader
}
