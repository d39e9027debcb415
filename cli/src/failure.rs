//! `Failure`: the error of a command.

use std::fmt;
use std::io;
use std::path::Path;

/// The error of a command, as a message for the user.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    /// The exit code of all failures. Wrong usage has another one, which clap sets.
    pub(crate) const EXIT_CODE: u8 = 1;

    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// Returns a function that turns the error of a file operation into a failure.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self(format!("cannot {action} {}: {source}", path.display()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<memsnap_store::Error> for Failure {
    fn from(error: memsnap_store::Error) -> Self {
        Self(error.to_string())
    }
}
