//! Error messages that name the attempt, the number of bytes, and the limit that may be the reason.
//!
//! Callers describe the attempt. `sys/limits.rs` describes the limits of the system.

use std::fmt;
use std::io;

use crate::page_size;
use crate::sys::limits::LIMITS;

/// A description of what was tried, with the error of the operating system.
struct Context {
    attempt: String,
    source: io::Error,
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { attempt, source } = self;
        let of_number = |number| LIMITS.iter().find(|(shortage, _)| *shortage == number);
        match source.raw_os_error().and_then(of_number) {
            Some((_, limits)) => write!(f, "{attempt}: {source}; {limits}"),
            None => write!(f, "{attempt}: {source}"),
        }
    }
}

/// Prints the same text as `Display`, because an error that `main` returns is printed by `Debug`.
impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Context {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

fn wrap(attempt: String, source: io::Error) -> io::Error {
    io::Error::new(source.kind(), Context { attempt, source })
}

/// For `map_err`: adds to an error that `attempt` failed, on `pages` pages.
pub(crate) fn context(attempt: &'static str, pages: usize) -> impl FnOnce(io::Error) -> io::Error {
    on(attempt, pages.saturating_mul(page_size()) as u64)
}

/// For `map_err`: adds to an error that `attempt` failed, on `bytes` bytes.
pub(crate) fn on(attempt: &'static str, bytes: u64) -> impl FnOnce(io::Error) -> io::Error {
    move |source| wrap(format!("{attempt} ({bytes} bytes)"), source)
}

/// Adds to an error that the changes of a mutable view could not be captured and are kept.
pub(crate) fn kept(source: io::Error) -> io::Error {
    let attempt = "capturing the changes of a mutable view; they are kept, and the next call on the snapshot \
                   tries again";
    wrap(attempt.to_owned(), source)
}

/// Returns an `InvalidInput` error for an argument that is not valid.
pub(crate) fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

/// Returns the error for a view that cannot be at `address`, because one of the `len` bytes that it takes is in use.
pub(crate) fn address_in_use(address: usize, len: usize) -> io::Error {
    let message = format!(
        "opening a view at address {address:#x} ({len} bytes with its guards and reserved addresses): other memory is in \
         the way; drop the view that is there, or pass another address to `ViewOptions::at`"
    );
    io::Error::new(io::ErrorKind::AddrInUse, message)
}

/// Returns the error for a file that is a character device.
pub(crate) fn endless_device() -> io::Error {
    invalid(
        "it is a character device, which may never end; limit its length by \
         `Snapshot::from_reader(file.take(len))`"
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error that `main` returns is printed by `Debug`, so that must print the limits too.
    #[test]
    fn both_ways_of_printing_an_error_say_what_was_tried_and_what_the_limits_are() {
        for (number, limits) in LIMITS {
            let source = io::Error::from_raw_os_error(*number);
            let reason = source.to_string();
            let error = context("trying", 3)(source);
            for text in [error.to_string(), format!("{error:?}"), format!("{error:#?}")] {
                let attempt = format!("trying ({} bytes)", 3 * page_size());
                for part in [&attempt, &reason, *limits] {
                    assert!(text.contains(part), "{text:?} lacks {part:?}");
                }
            }
        }
    }
}
