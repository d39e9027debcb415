//! The file operations of a repository.
//!
//! Most code uses files only through [`Storage`]. So tests can make each operation fail, and can lose writes that were
//! not synced. `folder.rs` implements it for folders.
//!
//! Paths are relative to the repository. Their parts are separated by `/`.

pub(crate) mod folder;
mod overlay;
#[cfg(test)]
pub(crate) mod simulated;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// Where a repository keeps its files.
pub(crate) trait Storage: fmt::Debug + Send + Sync {
    /// Opens a file for reading.
    fn open(&self, path: &str) -> io::Result<Box<dyn ReadFile>>;

    /// Makes a new file. Fails with `AlreadyExists` if the file exists.
    fn create(&self, path: &str) -> io::Result<Box<dyn WriteFile>>;

    /// Renames a file. Replaces a file with the new name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &str) -> io::Result<()>;

    /// Lists the files in a folder, in no order.
    fn list(&self, folder: &str) -> io::Result<Vec<Listed>>;

    /// Makes a folder. Succeeds if it exists.
    fn create_folder(&self, folder: &str) -> io::Result<()>;

    /// Syncs a folder: makes the names of its new, renamed and removed files durable.
    ///
    /// `""` is the repository itself.
    fn sync_folder(&self, folder: &str) -> io::Result<()>;

    /// Opens a file as the storage of a database.
    fn database(&self, path: &str, mode: DatabaseMode) -> io::Result<Box<dyn redb::StorageBackend>>;

    /// Locks a file, and makes it if it does not exist.
    ///
    /// The lock ends when the result is dropped or when the process ends, however it ends. If the process is killed after
    /// it forked a child that did not start another program, the lock ends with the child. Locks exclude each other
    /// between threads too.
    fn lock(&self, path: &str, kind: Lock, wait: Duration) -> io::Result<Option<Box<dyn Locked>>>;

    /// Returns the path of the file in the file system.
    fn path(&self, path: &str) -> PathBuf;
}

/// How the file of a database is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DatabaseMode {
    /// Makes a new file. Fails if the file exists.
    Create,
    /// Opens the file for reading and writing.
    Write,
    /// Opens the file for reading.
    ///
    /// Writes of the database, for example to recover from a crash, stay in memory.
    Read,
}

/// The kind of a lock.
///
/// An exclusive lock excludes all others, and a shared lock excludes exclusive ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lock {
    Shared,
    Exclusive,
}

/// A file in a folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Listed {
    /// The name in the folder.
    pub(crate) name: String,
    /// The length in bytes.
    pub(crate) len: u64,
    /// The time when the file was last written.
    pub(crate) modified: SystemTime,
}

/// A file that is open for reading.
pub(crate) trait ReadFile: fmt::Debug + Send + Sync {
    /// Returns the length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// Fails with `UnexpectedEof` if the file ends too early.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

/// A new file.
pub(crate) trait WriteFile: io::Write + fmt::Debug + Send {
    /// Makes the bytes of the file durable. [`Storage::sync_folder`] makes its name durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// A lock that is held.
pub(crate) trait Locked: fmt::Debug + Send {}
