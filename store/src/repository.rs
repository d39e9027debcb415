//! `Repository`: the interface of the store. Each longer operation has its own file.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use memsnap::Snapshot;
use serde::{Deserialize, Serialize};

use crate::chain::{check_lengths, checked_header, differences};
use crate::collect::{Collect, Collected, collect};
use crate::error::{Error, Result};
use crate::extract::Extract;
use crate::format::BLOCK;
use crate::id::{Id, Reference};
use crate::index::{self, Index, ManifestRow};
use crate::inner::{FILES, INDEX, Inner, TURN, WAIT, WRITER, WRITER_TURN, is_temporary, resolve, time};
use crate::load::Load;
use crate::manifest::{Manifest, Summary};
use crate::map;
use crate::name::{check_name, has_file};
use crate::repair::{Repaired, repair};
use crate::save::{Save, write_name};
use crate::saved::Saved;
use crate::sink::write_file;
use crate::storage::folder::{Folder, folder_of, sync_names};
use crate::storage::{Lock, Storage};
use crate::verify::{Depth, Verified, verify};

const CONFIG: &str = "config";

/// The newest format of a folder that this version reads. It writes this format.
const FORMAT: u32 = 1;

/// The folders of a repository that always exist.
pub(crate) const FOLDERS: [&str; 4] = ["packs", "manifests", "names", "tmp"];

#[derive(Serialize, Deserialize)]
struct Config {
    format: u32,
    repository: String,
}

/// The field of `config` that all formats have.
#[derive(Deserialize)]
struct Version {
    format: u32,
}

/// A repository: a folder with saved snapshots.
///
/// Threads can share a `Repository`. Any number of threads and processes can read a repository while one of them writes.
/// Other writers wait; see [`set_wait`](Self::set_wait). Pushes, pulls and [`verify`](Self::verify) run at the same time as
/// a writer, except [`collect`](Self::collect) and [`repair`](Self::repair).
///
/// # Examples
///
/// ```
/// use memsnap::Snapshot;
/// use memsnap_store::Repository;
///
/// # fn main() -> memsnap_store::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("repository");
/// let repository = Repository::create(&path)?;
/// let snapshot = Snapshot::from_slice(b"Hello, World!").unwrap();
/// let id = repository.save(&snapshot).name("hello").run()?.id();
///
/// let saved = repository.load("hello").run()?;
/// assert_eq!(saved.id(), id);
/// assert_eq!(saved.snapshot().view().unwrap().content(), b"Hello, World!");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Repository {
    pub(crate) inner: Inner,
    path: PathBuf,
}

/// Creating and opening.
impl Repository {
    /// Makes an empty repository in a folder, and the folder if it does not exist.
    ///
    /// If an earlier call failed or its process ended, the folder is not a repository. Another call completes it.
    ///
    /// # Errors
    ///
    /// - [`Error::NotEmpty`] if the folder contains anything else.
    /// - [`Error::File`] or [`Error::Index`] if a file cannot be made.
    ///
    /// # Examples
    ///
    /// ```
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("repository");
    /// let repository = memsnap_store::Repository::create(&path)?;
    /// assert!(repository.list()?.is_empty());
    /// # Ok::<(), memsnap_store::Error>(())
    /// ```
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        make_folders(path).map_err(Error::file("cannot make the folder", path))?;
        if !has_only_left_overs(path).map_err(Error::file("cannot read the folder", path))? {
            return Err(Error::NotEmpty { place: path.display().to_string() });
        }
        Self::create_in(Arc::new(Folder::new(path)))
    }

    /// Opens the repository in a folder.
    ///
    /// # Errors
    ///
    /// - [`Error::NoRepository`] if the folder is not a repository.
    /// - [`Error::Newer`] if a newer version made the repository.
    /// - [`Error::Mixed`] if the index belongs to another repository.
    /// - [`Error::Damaged`] if the configuration or the index is damaged.
    /// - [`Error::File`], [`Error::Index`] or [`Error::Busy`] if they cannot be read.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap_store::Repository;
    ///
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("repository");
    /// Repository::create(&path)?;
    /// let repository = Repository::open(&path)?;
    /// assert_eq!(repository.path(), path);
    /// # Ok::<(), memsnap_store::Error>(())
    /// ```
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_in(Arc::new(Folder::new(path.as_ref())))
    }

    pub(crate) fn create_in(storage: Arc<dyn Storage>) -> Result<Self> {
        let path = storage.path("");
        let id = format!("{:032x}", rand::random::<u128>());
        let inner = Inner { storage, id, wait: WAIT, began: None };
        let failed = || Error::file("cannot make a repository in", &path);
        for folder in FOLDERS {
            inner.storage.create_folder(folder).map_err(failed())?;
        }
        for lock in [INDEX, TURN, FILES, WRITER_TURN] {
            inner.storage.lock(lock, Lock::Exclusive, inner.wait).map_err(failed())?;
        }
        let _lock = inner.lock_writer()?;
        match inner.storage.open(CONFIG) {
            // Another process made the repository while this one waited.
            Ok(_) => return Err(Error::NotEmpty { place: path.display().to_string() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::file("cannot open", inner.path(CONFIG))(error)),
        }
        match inner.storage.remove(index::PATH) {
            // An earlier call ended before the folder was a repository. Nothing was saved there.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed()(error)),
            _ => {}
        }
        Index::create(&*inner.storage, index::PATH, &inner.id)?;
        // A folder with this file is a repository, so all other files are made durable first.
        inner.storage.sync_folder("").map_err(failed())?;
        let config = Config { format: FORMAT, repository: inner.id.clone() };
        write_file(&inner, "", |out| {
            serde_json::to_writer(out, &config).map_err(|error| failed()(error.into()))?;
            Ok((CONFIG.to_owned(), ()))
        })?;
        Ok(Self { inner, path })
    }

    pub(crate) fn open_in(storage: Arc<dyn Storage>) -> Result<Self> {
        let inner = Self::read_config(storage)?;
        inner.read(|_| Ok(()))?;
        let path = inner.path("");
        Ok(Self { inner, path })
    }

    fn read_config(storage: Arc<dyn Storage>) -> Result<Inner> {
        let path = storage.path(CONFIG);
        let file = storage.open(CONFIG).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                Error::NoRepository { place: storage.path("").display().to_string(), missing: CONFIG }
            }
            _ => Error::file("cannot open", &path)(error),
        })?;
        let len = file.len().map_err(Error::file("cannot read", &path))?;
        let mut bytes = vec![0; usize::try_from(len.min(4096)).unwrap_or(0)];
        file.read_exact_at(&mut bytes, 0).map_err(Error::file("cannot read", &path))?;
        let damaged = |error: serde_json::Error| Error::damaged(CONFIG, error.to_string());
        // A newer format may have other fields.
        let Version { format } = serde_json::from_slice(&bytes).map_err(damaged)?;
        if format > FORMAT {
            return Err(Error::Newer { object: CONFIG.to_owned(), found: format, known: FORMAT });
        }
        let config: Config = serde_json::from_slice(&bytes).map_err(damaged)?;
        Ok(Inner { storage, id: config.repository, wait: WAIT, began: None })
    }

    /// Returns the path of the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets how long an operation waits for others that use the repository. The default is one minute.
    ///
    /// After this time, the operation fails with [`Error::Busy`]. A push, a pull or a verification that has run for longer
    /// waits for as long as it has run, so that it does not lose what it has done.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("repository");
    /// let mut repository = memsnap_store::Repository::create(&path)?;
    /// repository.set_wait(Duration::from_secs(5));
    /// # Ok::<(), memsnap_store::Error>(())
    /// ```
    pub fn set_wait(&mut self, wait: Duration) {
        self.inner.wait = wait;
    }
}

/// Saving and loading.
impl Repository {
    /// Saves a snapshot.
    ///
    /// Set a parent, a name and more with the methods of [`Save`], and then call [`run`](Save::run).
    pub fn save<'a>(&'a self, snapshot: &'a Snapshot) -> Save<'a, &'a Snapshot> {
        Save::new(&self.inner, snapshot)
    }

    /// Saves the contents of a file, without loading all of them into memory.
    ///
    /// Set a parent, a name and more with the methods of [`Save`], and then call [`run`](Save::run).
    pub fn save_file<'a>(&'a self, file: &'a File) -> Save<'a, &'a File> {
        Save::new(&self.inner, file)
    }

    /// Loads a snapshot into memory when [`Load::run`] is called.
    pub fn load(&self, id: impl Into<Reference>) -> Load<'_> {
        Load::new(&self.inner, id.into())
    }

    /// Maps a snapshot from a file in the cache. Pages are read when they are first accessed.
    ///
    /// The first call for a snapshot writes it to a sparse file in the cache, reads the file back, and compares it with
    /// the manifest. On Unix, only the owner can read the file. Later calls, in this process and in others, map the file
    /// without reading it. If the times or the identity of the file have changed since it was compared, the call reads
    /// and compares the file again. [`collect`](Self::collect) deletes files of the cache.
    ///
    /// # Errors
    ///
    /// Those of [`Load::run`].
    ///
    /// # Safety
    ///
    /// As long as the snapshot exists, or a view or a snapshot that descends from it, nothing may write to its file in
    /// the folder `cache` of the repository, or make the file shorter, in this process or another one. The store itself
    /// never does this. It makes each file read-only before it renames it to its final name. But the owner of the file
    /// can make it writable again. [`Snapshot::map_file`] describes what happens if the file changes.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::Snapshot;
    ///
    /// # fn main() -> memsnap_store::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("repository");
    /// let repository = memsnap_store::Repository::create(&path)?;
    /// repository.save(&Snapshot::from_slice(b"guest").unwrap()).name("guest").run()?;
    /// // SAFETY: nothing writes to the files in the folder `cache`.
    /// let saved = unsafe { repository.map("guest") }?;
    /// assert_eq!(saved.snapshot().view().unwrap().content(), b"guest");
    /// # Ok(())
    /// # }
    /// ```
    #[allow(unsafe_code)]
    pub unsafe fn map(&self, id: impl Into<Reference>) -> Result<Saved> {
        // SAFETY: the caller promises the same.
        unsafe { map::map(&self.inner, &id.into()) }
    }

    /// Writes a snapshot to a sparse file when [`Extract::run`] is called.
    pub fn extract(&self, id: impl Into<Reference>, to: impl AsRef<Path>) -> Extract<'_> {
        Extract::new(&self.inner, id.into(), to.as_ref())
    }
}

/// Lookup.
impl Repository {
    /// Returns the id of a snapshot, given by a name or by the first digits of its id.
    ///
    /// # Errors
    ///
    /// - [`Error::NotFound`] if there is no such snapshot.
    /// - [`Error::Ambiguous`] if the ids of several snapshots begin with these digits.
    /// - [`Error::Index`], [`Error::Damaged`] or [`Error::Busy`] if the index cannot be read.
    pub fn resolve(&self, id: impl Into<Reference>) -> Result<Id> {
        Ok(self.inner.resolve(&id.into())?.0)
    }

    /// Reads the manifest of a snapshot, with its labels and attachments.
    ///
    /// # Errors
    ///
    /// - Those of [`resolve`](Self::resolve).
    /// - [`Error::Damaged`] if the manifest is missing, or if its hash is not its id.
    /// - [`Error::Newer`] if a newer version wrote it; [`Error::File`] if it cannot be read.
    pub fn manifest(&self, id: impl Into<Reference>) -> Result<Manifest> {
        let id = id.into();
        let (id, row, names) = self.inner.read(|index| {
            let (id, row) = resolve(index, &id)?;
            Ok((id, row, index.names()?))
        })?;
        let header = checked_header(&*self.inner.storage, id);
        let header = header.map_err(|error| self.inner.or_removed(id, error))?;
        Ok(Manifest {
            id,
            names: names.into_iter().filter(|(_, named)| *named == id).map(|(name, _)| name).collect(),
            parent: header.parent,
            base: header.base,
            len: header.len,
            content_len: header.content_len,
            created: time(header.created),
            labels: header.labels,
            attachments: header.attachments,
            blocks: header.entries,
            stored: row.stored,
        })
    }

    /// Lists the snapshots, from the oldest to the newest.
    ///
    /// # Errors
    ///
    /// [`Error::Index`], [`Error::Damaged`] or [`Error::Busy`] if the index cannot be read.
    pub fn list(&self) -> Result<Vec<Summary>> {
        let (mut rows, names) = self.inner.read(|index| Ok((index.manifests()?, index.names()?)))?;
        rows.retain(|(_, row)| row.listed);
        rows.sort_by_key(|(id, row)| (row.created, *id));
        let summary = |(id, row): (Id, ManifestRow)| Summary {
            id,
            names: names.iter().filter(|(_, named)| *named == id).map(|(name, _)| name.clone()).collect(),
            parent: row.parent,
            len: row.len,
            content_len: row.content_len,
            created: time(row.created),
            stored: row.stored,
        };
        Ok(rows.into_iter().map(summary).collect())
    }

    /// Lists the names in ascending order, with the snapshots that they stand for.
    ///
    /// # Errors
    ///
    /// Those of [`list`](Self::list).
    pub fn names(&self) -> Result<Vec<(String, Id)>> {
        self.inner.read(|index| index.names())
    }

    /// Returns the byte ranges in which two snapshots differ, in ascending order. Reads no blocks.
    ///
    /// The ranges begin and end at multiples of 4,096 bytes. If the lengths differ, the shorter snapshot counts as if it
    /// were followed by zeroes.
    ///
    /// # Errors
    ///
    /// Those of [`manifest`](Self::manifest).
    pub fn diff(&self, a: impl Into<Reference>, b: impl Into<Reference>) -> Result<Vec<Range<u64>>> {
        let (a, b) = (a.into(), b.into());
        let ((a, first), (b, second)) =
            self.inner.read(|index| Ok((resolve(index, &a)?, resolve(index, &b)?)))?;
        let gone = |error| self.inner.or_removed(b, self.inner.or_removed(a, error));
        self.differing((a, &first), (b, &second)).map_err(gone)
    }

    fn differing(
        &self,
        (a, first): (Id, &ManifestRow),
        (b, second): (Id, &ManifestRow),
    ) -> Result<Vec<Range<u64>>> {
        let storage = &*self.inner.storage;
        check_lengths(storage, a, first)?;
        check_lengths(storage, b, second)?;
        // The list ends at the length of the second one.
        let (short, long) = if first.len > second.len { (b, a) } else { (a, b) };
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for entry in differences(storage, short, long, true)? {
            let start = entry?.0 * BLOCK as u64;
            match ranges.last_mut().filter(|last| last.end == start) {
                Some(last) => last.end += BLOCK as u64,
                None => ranges.push(start..start + BLOCK as u64),
            }
        }
        Ok(ranges)
    }
}

/// Names and removal.
impl Repository {
    /// Gives a snapshot a name, or moves the name if it exists. Returns the id of the snapshot.
    ///
    /// # Errors
    ///
    /// Those of [`resolve`](Self::resolve); [`Error::Invalid`] if the text cannot be a name (see [`Save::name`]).
    pub fn set_name(&self, name: &str, id: impl Into<Reference>) -> Result<Id> {
        check_name(name)?;
        let _lock = self.inner.lock_writer()?;
        self.inner.read(|index| index.check_case(name))?;
        let (id, _) = self.inner.resolve(&id.into())?;
        write_name(&self.inner, name, id)?;
        self.inner.change(|index| index.set_name(name, Some(&id)))?;
        Ok(id)
    }

    /// Removes a name. The snapshot stays.
    ///
    /// # Errors
    ///
    /// - [`Error::NotFound`] if there is no such name.
    /// - [`Error::Index`], [`Error::Damaged`] or [`Error::Busy`] if the index cannot be read or changed.
    /// - [`Error::File`] if the file in `names/` cannot be deleted. In this case, the name may have been removed, and the
    ///   next [`collect`](Self::collect) deletes the file.
    pub fn remove_name(&self, name: &str) -> Result<()> {
        let _lock = self.inner.lock_writer()?;
        if self.inner.read(|index| index.name(name))?.is_none() {
            return Err(Error::NotFound { kind: "name", reference: name.to_owned() });
        }
        self.inner.change(|index| index.set_name(name, None))?;
        remove_name_files(&self.inner, &[name.to_owned()])
    }

    /// Removes a snapshot and all its names. Returns its id. [`collect`](Self::collect) frees the space.
    ///
    /// Snapshots that were made from it stay as they are. If one of their manifests has the manifest of this snapshot in
    /// its chain, this manifest and its blocks stay in the repository, but the snapshot is not listed any more.
    ///
    /// # Errors
    ///
    /// - Those of [`resolve`](Self::resolve).
    /// - [`Error::File`] if a file in `names/` cannot be deleted. In this case, the snapshot may have been removed, and
    ///   the next [`collect`](Self::collect) deletes the file.
    pub fn remove(&self, id: impl Into<Reference>) -> Result<Id> {
        let _lock = self.inner.lock_writer()?;
        let (id, mut row) = self.inner.resolve(&id.into())?;
        row.listed = false;
        let mut names = self.inner.read(|index| index.names())?;
        names.retain(|(_, named)| *named == id);
        let names: Vec<String> = names.into_iter().map(|(name, _)| name).collect();
        self.inner.change(|index| {
            for name in &names {
                index.set_name(name, None)?;
            }
            index.put_manifest(&id, &row)
        })?;
        remove_name_files(&self.inner, &names)?;
        Ok(id)
    }
}

/// Makes a folder, and those above it that do not exist. Their names are durable.
fn make_folders(path: &Path) -> io::Result<()> {
    let missing = path.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
    let missing: Vec<&Path> = missing.collect();
    fs::create_dir_all(path)?;
    missing.into_iter().try_for_each(|folder| sync_names(folder_of(folder)))
}

/// Whether a folder has only what a call of `create` leaves that ends before the folder is a repository.
fn has_only_left_overs(path: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        let (entry, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        let name = name.to_str().unwrap_or_default();
        let mut left_over = [WRITER, WRITER_TURN, FILES, INDEX, TURN, index::PATH].contains(&name);
        if FOLDERS.contains(&name) && entry.is_dir() {
            let files: Vec<_> = fs::read_dir(&entry)?.collect::<io::Result<_>>()?;
            let is_ours = |file: &fs::DirEntry| file.file_name().to_str().is_some_and(is_temporary);
            left_over = files.iter().all(|file| name == "tmp" && is_ours(file));
        }
        if !left_over {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Deletes the files that tell `repair` about names.
fn remove_name_files(inner: &Inner, names: &[String]) -> Result<()> {
    for name in names.iter().filter(|name| has_file(name)) {
        let path = format!("names/{name}");
        match inner.storage.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::file("cannot remove", inner.path(&path))(error));
            }
            _ => {}
        }
    }
    inner.storage.sync_folder("names").map_err(Error::file("cannot sync", inner.path("names")))
}

/// Maintenance.
impl Repository {
    /// Deletes the files that no snapshot needs and that are older than the grace time.
    ///
    /// The call reads all manifests that are needed, and the lists of blocks of the packs with blocks of these. If
    /// less than half of the blocks of a pack are needed, the call writes them to a new pack and deletes the old one.
    /// Writers, pushes, pulls and verifications wait meanwhile. Readers do not. The call waits for the end of all
    /// pushes, pulls and verifications. If it waits for longer than [`set_wait`](Self::set_wait) allows, it fails with
    /// [`Error::Busy`]. So it should not be called from a function that is told the progress of a push or a pull.
    ///
    /// # Errors
    ///
    /// - [`Error::Damaged`] if a manifest, the index or a block is damaged. In this case, nothing is deleted.
    /// - [`Error::File`] if a file cannot be read, written or deleted. In this case, some files may have been deleted,
    ///   but none that a snapshot needs. The next call deletes the rest.
    /// - [`Error::Busy`] if a push, a pull, a verification or a writer does not end in time; [`Error::Index`].
    pub fn collect(&self, options: &Collect) -> Result<Collected> {
        collect(&self.inner, options)
    }

    /// Checks the repository. The result lists all problems.
    ///
    /// [`Depth::Structure`] reads all manifests, and the lists of blocks of all packs. [`Depth::Data`] also reads all
    /// blocks. Snapshots that are saved or pulled meanwhile may be left out. Collections and repairs wait; saves do not.
    ///
    /// # Errors
    ///
    /// An error says nothing about the files that were not checked yet.
    ///
    /// - [`Error::Index`] or [`Error::Damaged`] if the index cannot be read at all.
    /// - [`Error::Busy`] if a collection, a repair or a change of the index does not end in time.
    /// - [`Error::File`] if a file exists and cannot be read; [`Error::Memory`].
    pub fn verify(&self, depth: Depth) -> Result<Verified> {
        verify(&self.inner, depth)
    }

    /// Rebuilds the index of the repository in a folder from its packs, manifests and names.
    ///
    /// Use this if the index is damaged or lost, or if [`verify`](Self::verify) has found damaged packs. The call reads
    /// everything. Blocks that are damaged are left out of the index, so the next save that has them stores them again.
    /// Snapshots that lack blocks stay listed, and loading them is an error. [`collect`](Self::collect) deletes nothing
    /// until they are complete again or removed. Packs and manifests that cannot be read at all are moved to the folder
    /// `damaged`. The old index is replaced when the new one is complete.
    ///
    /// A snapshot that was removed, but not yet collected, is listed again.
    ///
    /// # Errors
    ///
    /// - [`Error::NoRepository`] if the folder is not a repository.
    /// - [`Error::File`] if a file cannot be read, or [`Error::Newer`] if a newer version wrote it. In this case, the old
    ///   index stays, because the new one would lack the file. Damaged files are no error: the result lists them.
    /// - [`Error::Index`] if the new index cannot be written; [`Error::Busy`] if an operation that excludes a repair does
    ///   not end in time: a push, a pull, a verification or a writer.
    pub fn repair(path: impl AsRef<Path>) -> Result<Repaired> {
        Self::repair_in(Arc::new(Folder::new(path.as_ref())))
    }

    pub(crate) fn repair_in(storage: Arc<dyn Storage>) -> Result<Repaired> {
        repair(&Self::read_config(storage)?)
    }
}
