//! The code that the test files share.
//!
//! It makes distinguishable bytes, runs operations on snapshots of every kind, runs tests in processes of
//! their own, and reports skipped tests.
//!
//! Code for some systems only is in modules named `unix` and `linux`, here and in the tests.
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

/// Stands in for the module `linux` on systems that do not report these values.
#[cfg(not(all(target_os = "linux", not(memsnap_unix))))]
mod linux {
    pub(crate) fn memory_file_bytes() -> Option<u64> {
        None
    }

    /// Other systems do not report this.
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

/// Whether these tests use the backend for Linux.
pub(crate) const LINUX: bool = cfg!(all(target_os = "linux", not(memsnap_unix)));

/// Returns the tracking tier that replaces the automatic choice, by its name in `CONTRIBUTING.md`.
pub(crate) fn forced_tier() -> Option<String> {
    option_env!("MEMSNAP_TESTING")?;
    env::var("MEMSNAP_TIER").ok()
}

/// Prints why a test cannot run here, in a line that CI counts.
pub(crate) fn skip(test: &str, reason: impl Display) {
    tell(&format!("skipped: {test}: {reason}"));
}

/// Returns the value. If the system does not support it (`Unsupported`), skips the test and returns `None`.
///
/// Any other error fails the test, which would test nothing otherwise.
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

/// Writes a line to the real standard error, even if the output of the test is captured.
pub(crate) fn tell(line: &str) {
    let _ = io::stderr().write_all(format!("\n{line}\n").as_bytes());
}

/// Makes other tests of this file wait until the guard is dropped.
pub(crate) fn serial() -> MutexGuard<'static, ()> {
    static SERIAL: Mutex<()> = Mutex::new(());
    SERIAL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns `pages` pages, each of which starts with its number.
///
/// The other bytes of a page differ from those of the next 15 pages, and from those of the same page with
/// another seed.
pub(crate) fn pattern(pages: usize, seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; pages * page_size()];
    for (page, bytes) in bytes.chunks_exact_mut(page_size()).enumerate() {
        bytes.fill(page.to_le_bytes()[0].wrapping_mul(16).wrapping_add(seed));
        bytes[..8].copy_from_slice(&(page as u64).to_le_bytes());
    }
    bytes
}

/// Returns `len` bytes in which no two pages are equal.
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

/// Returns `bytes` with zeroes appended, up to a whole number of pages.
pub(crate) fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(page_size()), 0);
    bytes
}

/// Compares two slices without printing them whole.
#[track_caller]
pub(crate) fn assert_same(what: &str, real: &[u8], expected: &[u8]) {
    assert_eq!(real.len(), expected.len(), "{what}: length");
    if real != expected {
        let at = real.iter().zip(expected).position(|(real, expected)| real != expected).unwrap_or(0);
        // This reads the byte again. If another thread writes to it, it may differ from what was compared.
        let (page, real, expected) = (at / page_size(), real[at], expected[at]);
        panic!("{what}: byte {at} (page {page}) is {real}, expected {expected}");
    }
}

/// Returns the message of an error and of all its sources.
pub(crate) fn message(error: &io::Error) -> String {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        message = format!("{message}: {error}");
        source = error.source();
    }
    message
}

/// Returns the reading end of a pipe, to which a thread writes `bytes`.
pub(crate) fn pipe_of(bytes: Vec<u8>) -> PipeReader {
    let (reader, mut writer) = io::pipe().unwrap();
    thread::spawn(move || writer.write_all(&bytes));
    reader
}
