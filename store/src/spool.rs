//! `Spool`: a list of blocks, in memory while it is short and in a file when it is long.

use std::io::{self, Read, Write};
use std::mem;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format::Sequential;
use crate::format::runs::{Entry, RunReader, RunWriter};
use crate::storage::{Storage, WriteFile};

/// The longest list in memory, in bytes.
///
/// It has the hashes of 1 GiB of adjacent blocks, or of less if they are scattered.
const MEMORY: usize = 8 << 20;

/// A list of blocks to which blocks are added.
pub(crate) struct Spool {
    runs: RunWriter<Buffer>,
}

impl Spool {
    /// Returns an empty list, which uses the file `path` if it becomes long.
    pub(crate) fn new(storage: &Arc<dyn Storage>, path: String) -> Self {
        let buffer = Buffer { storage: Arc::clone(storage), path, bytes: Vec::new(), file: None };
        Self { runs: RunWriter::new(buffer) }
    }

    /// Adds a block. Its number must be higher than those of the blocks before.
    pub(crate) fn push(&mut self, entry: Entry) -> Result<()> {
        self.runs.push(entry).map_err(Error::memory("cannot keep the list of blocks"))
    }

    /// Ends the list.
    pub(crate) fn finish(self) -> Result<Spooled> {
        let entries = self.runs.entries();
        let buffer = self.runs.finish().map_err(Error::memory("cannot keep the list of blocks"))?;
        Ok(Spooled { buffer, entries })
    }
}

/// A complete list of blocks.
pub(crate) struct Spooled {
    buffer: Buffer,
    entries: u64,
}

impl Spooled {
    /// Returns the number of blocks in the list.
    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    /// Reads the list.
    pub(crate) fn read(&self) -> Result<impl Iterator<Item = Result<Entry>> + use<'_>> {
        let storage = &self.buffer.storage;
        let path = storage.path(&self.buffer.path);
        let input: Box<dyn Read> = if self.buffer.file.is_some() {
            let file = storage.open(&self.buffer.path).and_then(Sequential::new);
            Box::new(io::BufReader::new(file.map_err(Error::file("cannot open", path))?))
        } else {
            Box::new(&self.buffer.bytes[..])
        };
        let mut runs = RunReader::new(input, u64::MAX);
        Ok(std::iter::from_fn(move || runs.next().map_err(|wrong| wrong.of(&self.buffer.path)).transpose()))
    }
}

struct Buffer {
    storage: Arc<dyn Storage>,
    path: String,
    bytes: Vec<u8>,
    file: Option<Box<dyn WriteFile>>,
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.file.is_none() && self.bytes.len() + bytes.len() <= MEMORY {
            self.bytes.extend(bytes);
            return Ok(bytes.len());
        }
        if self.file.is_none() {
            self.file = Some(self.storage.create(&self.path)?);
        }
        if self.bytes.len() + bytes.len() > MEMORY {
            self.spill()?;
        }
        self.bytes.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.spill()
    }
}

impl Buffer {
    fn spill(&mut self) -> io::Result<()> {
        match &mut self.file {
            Some(file) => {
                file.write_all(&mem::take(&mut self.bytes))?;
                file.flush()
            }
            None => Ok(()),
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // If this fails, a collection removes the file.
            let _ = self.storage.remove(&self.path);
        }
    }
}
