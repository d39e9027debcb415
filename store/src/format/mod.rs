//! The formats of packs and manifests. `DESIGN.md` describes them byte by byte.

pub(crate) mod manifest;
pub(crate) mod pack;
pub(crate) mod runs;

use std::io::{self, Read};

use crate::error::Error;
use crate::storage::ReadFile;

/// The length of a block in bytes.
pub(crate) const BLOCK: usize = 4096;

/// The newest version of packs and manifests that this code reads. It writes this version.
const VERSION: u32 = 1;

/// Returns the number of blocks in `len` bytes, rounded up.
pub(crate) fn blocks(len: u64) -> u64 {
    len.div_ceil(BLOCK as u64)
}

/// Returns the offset of a block in memory. The block is in a snapshot in memory, so the offset fits.
pub(crate) fn position(block: u64) -> usize {
    usize::try_from(block).unwrap_or(usize::MAX).saturating_mul(BLOCK)
}

/// Why bytes are not a valid file.
#[derive(Debug)]
pub(crate) enum Wrong {
    /// The bytes do not agree with the format.
    Damaged(String),
    /// A newer version wrote the file.
    Newer(u32),
    /// Reading failed.
    Io(io::Error),
}

impl Wrong {
    /// Returns an error that names the object.
    pub(crate) fn of(self, object: &str) -> Error {
        match self {
            Self::Damaged(what) => Error::damaged(object, what),
            Self::Newer(found) => Error::Newer { object: object.to_owned(), found, known: VERSION },
            Self::Io(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
                Error::damaged(object, "it ends too early")
            }
            Self::Io(source) => Error::File { action: "cannot read", path: object.into(), source },
        }
    }
}

impl From<io::Error> for Wrong {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn damaged<T>(what: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong::Damaged(what.into()))
}

/// Checks the first 12 bytes of a file: its magic bytes and its version.
fn check_version(bytes: &[u8; 12], magic: &[u8; 8]) -> Result<(), Wrong> {
    let ([found @ .., _, _, _, _], version) = (bytes, u32_at(bytes, 8));
    if found != magic {
        return damaged(format!("it does not begin with {:?}", String::from_utf8_lossy(magic)));
    }
    match version {
        VERSION => Ok(()),
        0 => damaged("its version is 0"),
        newer => Err(Wrong::Newer(newer)),
    }
}

/// Returns the number at `at`. The caller passes bytes that are long enough.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

/// Returns the number at `at`. The caller passes bytes that are long enough.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

/// Reads a file from its first byte to the end that it had when it was opened.
pub(crate) struct Sequential {
    file: Box<dyn ReadFile>,
    offset: u64,
    end: u64,
}

impl Sequential {
    pub(crate) fn new(file: Box<dyn ReadFile>) -> io::Result<Self> {
        let end = file.len()?;
        Ok(Self { file, offset: 0, end })
    }
}

impl Read for Sequential {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.offset).unwrap_or(usize::MAX);
        let len = buffer.len().min(left);
        self.file.read_exact_at(&mut buffer[..len], self.offset)?;
        self.offset += len as u64;
        Ok(len)
    }
}
