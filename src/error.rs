//! Errors that say what was tried, and on how much.

use std::fmt;
use std::io;

use crate::page_size;
use crate::sys::limits::LIMITS;

/// What was tried, and the operating system's answer.
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

/// The same sentence: an error that `main` returns is printed in this way.
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

/// For a file that is a character device.
pub(crate) fn endless_device() -> io::Error {
    invalid(
        "it is a character device, which may never end; read as much as is needed by \
         `Snapshot::from_reader(file.take(len))`"
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `main` returns is printed by `Debug`, which once showed the parts of the error, and not what to do about it.
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
