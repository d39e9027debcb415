//! Errors that say what was tried, and on how much.

use std::fmt;
use std::io;

use crate::page_size;
use crate::sys::LIMITS;

/// What was tried, and the operating system's answer.
#[derive(Debug)]
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

impl std::error::Error for Context {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

fn wrap(attempt: String, source: io::Error) -> io::Error {
    io::Error::new(source.kind(), Context { attempt, source })
}

/// For `map_err`: says that `attempt`, on so many pages, is what failed.
pub(crate) fn context(attempt: &'static str, pages: usize) -> impl FnOnce(io::Error) -> io::Error {
    on(attempt, pages.saturating_mul(page_size()) as u64)
}

/// For `map_err`: says that `attempt`, on so many bytes, is what failed.
pub(crate) fn on(attempt: &'static str, bytes: u64) -> impl FnOnce(io::Error) -> io::Error {
    move |source| wrap(format!("{attempt} ({bytes} bytes)"), source)
}

/// For the changes of a mutable view that could not be captured.
pub(crate) fn kept(source: io::Error) -> io::Error {
    let attempt = "capturing the changes of a mutable view; they are kept, and the next call on the snapshot \
                   tries again";
    wrap(attempt.to_owned(), source)
}

/// Something that cannot be done with what was passed in.
pub(crate) fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}
