//! `Extract`: writes a snapshot to a sparse file.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::blocks::{Blocks, in_batches};
use crate::chain::{check_lengths, differences, open_listed};
use crate::error::{Error, Result};
use crate::format::BLOCK;
use crate::id::{Id, Reference};
use crate::index::ManifestRow;
use crate::inner::Inner;
use crate::map::cache_path;
use crate::progress::{Observer, Progress};

/// Options of extracting a snapshot. Call [`run`](Extract::run) to write the file.
///
/// [`Repository::extract`](crate::Repository::extract) returns it.
#[must_use = "nothing is written until `run` is called"]
#[derive(Debug)]
pub struct Extract<'a> {
    inner: &'a Inner,
    id: Reference,
    to: PathBuf,
    observer: Observer<'a>,
}

impl<'a> Extract<'a> {
    pub(crate) fn new(inner: &'a Inner, id: Reference, to: &Path) -> Self {
        Self { inner, id, to: to.to_owned(), observer: Observer::none() }
    }

    /// Sets a function that is called with the progress.
    pub fn progress(mut self, tell: impl FnMut(Progress) + Send + 'a) -> Self {
        self.observer = Observer::new(tell);
        self
    }

    /// Writes the content of the snapshot to the file, without the padding of the last page.
    ///
    /// Blocks of zeroes become holes, if the file system supports holes. On Linux, if the snapshot or one of its
    /// ancestors is in the cache (see [`Repository::map`](crate::Repository::map)), and if the file system can clone
    /// files (Btrfs, XFS), the file shares equal blocks with the file in the cache.
    ///
    /// If a file of this name exists, it is replaced when the new file is complete and synced. After an error, it is as
    /// it was.
    ///
    /// # Errors
    ///
    /// Those of [`Load::run`](crate::Load::run); [`Error::File`] if the file cannot be written.
    pub fn run(mut self) -> Result<Extracted> {
        let (id, row) = self.inner.resolve(&self.id)?;
        let to = self.to.clone();
        let failed = || Error::file("cannot write", &to);
        let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::Builder::new().prefix(".extract-").tempfile_in(folder).map_err(failed())?;
        let (written, shared) = match self.clone_ancestor(file.as_file(), id, &row)? {
            Some(written) => (written, true),
            None => (write_image(self.inner, file.as_file(), &to, id, &row, &mut self.observer)?, false),
        };
        file.as_file().set_len(row.content_len).map_err(failed())?;
        make_usual(file.as_file(), &to).map_err(failed())?;
        file.as_file().sync_all().map_err(failed())?;
        file.persist(&to).map_err(|error| failed()(error.error))?;
        Ok(Extracted { len: row.content_len, written, shared })
    }

    /// Clones the file of the snapshot or of an ancestor in the cache, and writes the blocks that differ.
    fn clone_ancestor(&mut self, file: &File, id: Id, row: &ManifestRow) -> Result<Option<u64>> {
        for ancestor in ancestors(self.inner, id)? {
            let Ok(cached) = File::open(cache_path(self.inner, &ancestor)) else { continue };
            if !is_whole(self.inner, &cached, ancestor)? || !clone_file(&cached, file) {
                continue;
            }
            let failed = || Error::file("cannot write", &self.to);
            check_lengths(&*self.inner.storage, id, row)?;
            file.set_len(row.len).map_err(failed())?;
            let found = differences(&*self.inner.storage, ancestor, id, false)?;
            let writer = Writer { inner: self.inner, file, path: &self.to };
            return writer.write(found, row.len, true, &mut self.observer).map(Some);
        }
        Ok(None)
    }
}

/// The result of extracting a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Extracted {
    /// The length of the file in bytes.
    pub len: u64,
    /// The bytes that were written. The others are holes, or are shared with a file in the cache.
    pub written: u64,
    /// Whether the file shares blocks with a file in the cache.
    pub shared: bool,
}

/// Returns those of a snapshot and its ancestors that are in the cache. Looks at 64 of them at most.
fn ancestors(inner: &Inner, id: Id) -> Result<Vec<Id>> {
    inner.read(|index| {
        let mut ids = vec![id];
        while let Some(row) = ids.last().map(|id| index.manifest(id)).transpose()?.flatten()
            && let Some(parent) = row.parent.filter(|parent| !ids.contains(parent) && ids.len() < 64)
        {
            ids.push(parent);
        }
        ids.retain(|id| cache_path(inner, id).exists());
        Ok(ids)
    })
}

/// Returns whether a file in the cache was compared with its manifest, and was not changed since.
fn is_whole(inner: &Inner, file: &File, id: Id) -> Result<bool> {
    let Some(row) = inner.read(|index| index.manifest(&id))? else { return Ok(false) };
    Ok(crate::map::is_checked(file, &cache_path(inner, &id), &row))
}

/// Makes `to` share all blocks of `from`. Returns `false` if the file system cannot do that.
#[cfg(target_os = "linux")]
fn clone_file(from: &File, to: &File) -> bool {
    rustix::fs::ioctl_ficlone(to, from).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn clone_file(_: &File, _: &File) -> bool {
    false
}

/// Gives a file the permissions of the file that it replaces, or those of a new file.
fn make_usual(file: &File, replaced: &Path) -> io::Result<()> {
    let permissions = match fs::metadata(replaced) {
        Ok(metadata) => metadata.permissions(),
        Err(_) => {
            let folder =
                replaced.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            // The permissions of a new file depend on the umask, which cannot be read without setting it.
            let probe = folder.join(format!(".extract-{:032x}", rand::random::<u128>()));
            let permissions = File::create_new(&probe)?.metadata()?.permissions();
            fs::remove_file(&probe)?;
            permissions
        }
    };
    file.set_permissions(permissions)
}

/// Writes a snapshot to an empty file.
///
/// Errors name it `path`. Returns the number of bytes that were written.
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

struct Writer<'a> {
    inner: &'a Inner,
    file: &'a File,
    path: &'a Path,
}

impl Writer<'_> {
    /// Writes blocks to the file. Skips blocks of zeroes unless `zeroes` is set.
    fn write(
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
