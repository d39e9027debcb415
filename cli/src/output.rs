//! `Output`: results on the standard output, as text or as JSON, and messages on the standard error.

use std::fmt::Write as _;
use std::io::{self, BufWriter, ErrorKind, Read, Stdout, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use bytesize::ByteSize;
use serde::Serialize;

use crate::failure::Failure;

/// The standard output.
///
/// If its reader has closed the pipe, further output is dropped, and the command continues.
pub(crate) struct Output {
    json: bool,
    stdout: BufWriter<Stdout>,
    closed: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, stdout: BufWriter::new(io::stdout()), closed: false }
    }

    /// Returns whether the results are printed as JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints the result of a command: the document if `--json` is given, or else the text.
    pub(crate) fn result(
        &mut self,
        document: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        let mut text = if self.json {
            serde_json::to_string(document)
                .map_err(|error| Failure::new(format!("cannot print the result as JSON: {error}")))?
        } else {
            text()
        };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        self.bytes(text.as_bytes())
    }

    /// Prints bytes.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if self.closed {
            return Ok(());
        }
        let written = self.stdout.write_all(bytes);
        self.wrote(written)
    }

    /// Prints the bytes of `reader`, until it ends or the reader of the standard output closes the pipe.
    pub(crate) fn copy(&mut self, reader: &mut impl Read) -> Result<(), Failure> {
        let mut buffer = vec![0; 1 << 20];
        while !self.closed {
            match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => self.bytes(&buffer[..read])?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::new(format!("cannot read the extracted file: {error}"))),
            }
        }
        Ok(())
    }

    /// Writes the rest of the buffer.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        let written = if self.closed { Ok(()) } else { self.stdout.flush() };
        let result = self.wrote(written);
        // A `BufWriter` that is dropped would write its buffer again.
        let _ = self.stdout.into_parts();
        result
    }

    fn wrote(&mut self, written: io::Result<()>) -> Result<(), Failure> {
        match written {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            Err(error) => {
                self.closed = true;
                Err(Failure::new(format!("cannot write to the standard output: {error}")))
            }
            Ok(()) => Ok(()),
        }
    }
}

/// Prints a message to the standard error.
pub(crate) fn note(message: &str) {
    // An error of the standard error cannot be reported anywhere.
    let _ = writeln!(io::stderr(), "memsnap: {}", plain(message));
}

/// Replaces control characters, so that text from a repository cannot control the terminal.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            plain.extend(character.escape_default());
        } else {
            plain.push(character);
        }
    }
    plain
}

/// Formats a number of bytes with a unit: `1.5 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// Formats a number with its noun: `1 block`, `2 blocks`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Formats a time in UTC, to seconds: `2026-11-29T08:50:35Z`. Returns `?` after the year 9999.
pub(crate) fn utc(time: SystemTime) -> String {
    rfc3339(time, humantime::format_rfc3339_seconds).unwrap_or_else(|| "?".to_owned())
}

/// Formats a time in UTC, to milliseconds. Returns `None` after the year 9999.
pub(crate) fn utc_millis(time: SystemTime) -> Option<String> {
    rfc3339(time, humantime::format_rfc3339_millis)
}

/// Formats a time.
///
/// A manifest can contain any time. humantime panics for times before 1970, and returns an error for those after 9999.
fn rfc3339(time: SystemTime, format: fn(SystemTime) -> humantime::Rfc3339Timestamp) -> Option<String> {
    let mut text = String::new();
    (time >= UNIX_EPOCH && write!(text, "{}", format(time)).is_ok()).then_some(text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(3 << 19), "1.5 MiB");
        assert_eq!(count(1, "block"), "1 block");
        assert_eq!(count(0, "block"), "0 blocks");
    }

    #[test]
    fn times_are_in_utc_and_hostile_ones_are_no_panic() {
        assert_eq!(utc(UNIX_EPOCH), "1970-01-01T00:00:00Z");
        let time = UNIX_EPOCH + Duration::from_millis(1_700_000_000_999);
        assert_eq!(utc(time), "2023-11-14T22:13:20Z");
        assert_eq!(utc_millis(time).unwrap(), "2023-11-14T22:13:20.999Z");
        let year_10000 = UNIX_EPOCH + Duration::from_secs(253_402_300_800);
        for hostile in [UNIX_EPOCH - Duration::from_secs(1), year_10000] {
            assert_eq!(utc(hostile), "?");
            assert_eq!(utc_millis(hostile), None);
        }
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(plain("a\x1b[2Jb\u{9b}c\td"), "a\\u{1b}[2Jb\\u{9b}c\\td");
        assert_eq!(plain("größe 1\nzwei"), "größe 1\\nzwei");
    }
}
