//! Images: files with the raw bytes of a snapshot.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::blocks::{Blocks, in_batches};
use crate::chain::open_listed;
use crate::error::{Error, Result};
use crate::format::BLOCK;
use crate::id::Id;
use crate::index::ManifestRow;
use crate::inner::Inner;
use crate::progress::{Observer, Progress};

/// Writes all of a snapshot to an empty file, which errors call `path`. Returns the number of bytes that were written.
pub(crate) fn write_image(
    inner: &Inner,
    file: &File,
    path: &Path,
    id: Id,
    row: &ManifestRow,
    observer: &mut Observer<'_>,
) -> Result<u64> {
    let chain = open_listed(&*inner.storage, id, row)?;
    file.set_len(row.len).map_err(Error::file("cannot write", path))?;
    Writer { inner, file, path }.write(chain.entries()?, row.len, false, observer)
}

/// Writes blocks to a file.
pub(crate) struct Writer<'a> {
    pub(crate) inner: &'a Inner,
    pub(crate) file: &'a File,
    /// What errors call the file.
    pub(crate) path: &'a Path,
}

impl Writer<'_> {
    /// Writes blocks to the file. Blocks of zeroes are written only if `zeroes` is set.
    pub(crate) fn write(
        &self,
        entries: impl Iterator<Item = Result<(u64, Option<Id>)>>,
        len: u64,
        zeroes: bool,
        observer: &mut Observer<'_>,
    ) -> Result<u64> {
        let mut blocks = Blocks::new(self.inner);
        let mut progress = Progress { total: len, ..Progress::default() };
        in_batches(entries, |batch| {
            let (numbers, hashes): (Vec<u64>, Vec<Id>) =
                batch.iter().filter_map(|(block, hash)| Some((*block, (*hash)?))).unzip();
            blocks.read(&hashes, |number, bytes| self.put(numbers[number], bytes))?;
            progress.written += (hashes.len() * BLOCK) as u64;
            for (block, _) in batch.iter().filter(|entry| zeroes && entry.1.is_none()) {
                self.put(*block, &[0; BLOCK])?;
                progress.written += BLOCK as u64;
            }
            progress.done = batch.last().map_or(0, |entry| (entry.0 + 1) * BLOCK as u64);
            observer.tell(progress);
            Ok(())
        })?;
        observer.tell(Progress { done: len, ..progress });
        Ok(progress.written)
    }

    fn put(&self, block: u64, bytes: &[u8]) -> Result<()> {
        write_all_at(self.file, bytes, block * BLOCK as u64).map_err(Error::file("cannot write", self.path))
    }
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(file, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => (bytes, offset) = (&bytes[written..], offset + written as u64),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
