//! `Extract`: writes a snapshot to a sparse file.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::cache::{CACHE, WRITING, cache_path, cached_file, is_checked, open_cached};
use crate::chain::{check_lengths, differences};
use crate::error::{Error, Result};
use crate::id::{Id, Reference};
use crate::image::{Writer, write_image};
use crate::index::ManifestRow;
use crate::inner::Inner;
use crate::progress::{Observer, Progress};
use crate::storage::folder::{folder_of, sync_names};

/// Options of extracting a snapshot. Call [`run`](Extract::run) to write the file.
///
/// [`Repository::extract`](crate::Repository::extract) returns it.
#[must_use = "nothing is written until `run` is called"]
#[derive(Debug)]
pub struct Extract<'a> {
    inner: &'a Inner,
    id: Reference,
    to: PathBuf,
    share: bool,
    observer: Observer<'a>,
}

impl<'a> Extract<'a> {
    pub(crate) fn new(inner: &'a Inner, id: Reference, to: &Path) -> Self {
        Self { inner, id, to: to.to_owned(), share: false, observer: Observer::none() }
    }

    /// Writes the snapshot to the cache first, so that the file can share its blocks.
    ///
    /// This is of use if the snapshot or ones that descend from it are extracted more than once: the first call writes
    /// the blocks twice, and later ones only those that differ. Nothing is written to the cache if the snapshot or one
    /// that it descends from is there, or if the file systems cannot clone a file of the cache to the new file.
    /// [`collect`](crate::Repository::collect) deletes files of the cache.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::Snapshot;
    ///
    /// # fn main() -> memsnap_store::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("repository");
    /// # let file = folder.path().join("file");
    /// let repository = memsnap_store::Repository::create(&path)?;
    /// repository.save(&Snapshot::from_slice(b"guest").unwrap()).name("guest").run()?;
    /// let extracted = repository.extract("guest", &file).share().run()?;
    /// println!("{} bytes, shared: {}", extracted.len, extracted.shared);
    /// # assert_eq!(std::fs::read(&file).unwrap(), b"guest");
    /// # Ok(())
    /// # }
    /// ```
    pub fn share(mut self) -> Self {
        self.share = true;
        self
    }

    /// Sets a function that is called with the progress.
    pub fn progress(mut self, tell: impl FnMut(Progress) + Send + 'a) -> Self {
        self.observer = Observer::new(tell);
        self
    }

    /// Writes the content of the snapshot to the file, without the padding of the last page.
    ///
    /// Blocks of zeroes become holes, if the file system has holes. If the snapshot or one that it descends from is in
    /// the cache (see [`Repository::map`](crate::Repository::map)) and the file system can clone files (Btrfs, XFS),
    /// the file shares the blocks that are equal. The file replaces a file of the same name when it is complete and
    /// durable. After an error, that file is as it was, unless the folder could not be synced: then the new file is there.
    ///
    /// # Errors
    ///
    /// Those of [`Load::run`](crate::Load::run); [`Error::File`] if the file cannot be written.
    pub fn run(mut self) -> Result<Extracted> {
        let (id, row) = self.inner.resolve(&self.id)?;
        let to = self.to.clone();
        let failed = || Error::file("cannot write", &to);
        let folder = folder_of(&to);
        let file = tempfile::Builder::new().prefix(".extract-").tempfile_in(folder).map_err(failed())?;
        let (written, shared) =
            self.write(file.as_file(), id, &row).map_err(|error| self.inner.or_removed(id, error))?;
        file.as_file().set_len(row.content_len).map_err(failed())?;
        make_usual(file.as_file(), &to).map_err(failed())?;
        file.as_file().sync_all().map_err(failed())?;
        file.persist(&to).map_err(|error| failed()(error.error))?;
        sync_names(folder).map_err(Error::file("cannot sync the folder", folder))?;
        Ok(Extracted { len: row.content_len, written, shared })
    }

    /// Writes the snapshot to an empty file. Returns the number of bytes that were written, and whether others are shared
    /// with a file of the cache.
    fn write(&mut self, file: &File, id: Id, row: &ManifestRow) -> Result<(u64, bool)> {
        match self.clone_ancestor(file, id, row) {
            Ok(Some(written)) => return Ok((written, true)),
            Ok(None) if self.share && can_clone(self.inner, file)? => {
                // It has all bytes, so the clone has nothing to write but its length.
                let cached = cached_file(self.inner, id, row, &mut self.observer)?;
                if clone_file(&cached, file) {
                    return Ok((0, true));
                }
                file.set_len(0).map_err(Error::file("cannot write", &self.to))?;
            }
            Ok(None) => {}
            // An ancestor that is damaged or gone says nothing about the snapshot. If it is the snapshot, this fails again.
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::NotFound) => {
                file.set_len(0).map_err(Error::file("cannot write", &self.to))?;
            }
            Err(error) => return Err(error),
        }
        Ok((write_image(self.inner, file, &self.to, id, row, &mut self.observer)?, false))
    }

    /// Clones the file of the snapshot or of an ancestor from the cache, and writes what differs.
    fn clone_ancestor(&mut self, file: &File, id: Id, row: &ManifestRow) -> Result<Option<u64>> {
        for ancestor in ancestors(self.inner, id)? {
            let Ok(cached) = open_cached(self.inner, &ancestor) else { continue };
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
    Ok(is_checked(inner, file, &cache_path(inner, &id), &row))
}

/// Whether a file of the cache can be cloned to this empty file.
fn can_clone(inner: &Inner, to: &File) -> Result<bool> {
    let folder = inner.path(CACHE);
    inner.storage.create_folder(CACHE).map_err(Error::file("cannot make", &folder))?;
    let empty = tempfile::Builder::new().prefix(WRITING).tempfile_in(&folder);
    Ok(clone_file(empty.map_err(Error::file("cannot write to", &folder))?.as_file(), to))
}

/// Makes `to` share all blocks of `from`; best effort.
#[cfg(all(target_os = "linux", not(test)))]
fn clone_file(from: &File, to: &File) -> bool {
    rustix::fs::ioctl_ficlone(to, from).is_ok()
}

#[cfg(not(any(target_os = "linux", test)))]
fn clone_file(_: &File, _: &File) -> bool {
    false
}

/// Copies the file, so that tests of what follows run on all file systems.
#[cfg(test)]
fn clone_file(from: &File, to: &File) -> bool {
    io::copy(&mut &*from, &mut &*to).is_ok()
}

/// Gives a file the rights that other new files have, or those of the file that it replaces.
fn make_usual(file: &File, replaced: &Path) -> io::Result<()> {
    let permissions = match fs::metadata(replaced) {
        Ok(metadata) => metadata.permissions(),
        Err(_) => {
            let folder = folder_of(replaced);
            // The system gives a new file the rights that the user's mask allows.
            let probe = folder.join(format!(".extract-{:032x}", rand::random::<u128>()));
            let permissions = File::create_new(&probe)?.metadata()?.permissions();
            fs::remove_file(&probe)?;
            permissions
        }
    };
    file.set_permissions(permissions)
}
