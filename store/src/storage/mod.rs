//! The file operations of a repository.
//!
//! All code above uses files through [`Storage`] only. So tests can make each operation fail, and can lose what was not
//! synced. `folder.rs` is the real implementation.
//!
//! Paths are relative to the repository and have `/` between their parts.

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

    /// Makes a new file. Fails with `AlreadyExists` if there is one.
    fn create(&self, path: &str) -> io::Result<Box<dyn WriteFile>>;

    /// Renames a file, and replaces a file of the new name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &str) -> io::Result<()>;

    /// Lists the files of a folder, in no order.
    fn list(&self, folder: &str) -> io::Result<Vec<Listed>>;

    /// Makes a folder. Succeeds if it exists.
    fn create_folder(&self, folder: &str) -> io::Result<()>;

    /// Makes renamed, new and removed files of a folder durable. The empty path is the repository itself.
    fn sync_folder(&self, folder: &str) -> io::Result<()>;

    /// Opens a file as the storage of a database.
    fn database(&self, path: &str, mode: DatabaseMode) -> io::Result<Box<dyn redb::StorageBackend>>;

    /// Locks a file, and makes it if it does not exist. Waits at most `wait`. Returns `None` if that was not enough.
    ///
    /// The lock ends when the result is dropped or when the process ends, however it ends. If the process is killed after
    /// it forked a child that did not start another program, the lock ends with the child. Locks exclude each other
    /// between threads too.
    fn lock(&self, path: &str, kind: Lock, wait: Duration) -> io::Result<Option<Box<dyn Locked>>>;

    /// Returns the path by which other programs know the file.
    fn path(&self, path: &str) -> PathBuf;
}

/// How the file of a database is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DatabaseMode {
    /// Makes a new file. Fails if there is one.
    Create,
    /// Reads and writes.
    Write,
    /// Reads. What the database writes, to recover from a crash for example, stays in memory.
    Read,
}

/// Whether a lock excludes all others or only exclusive ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lock {
    Shared,
    Exclusive,
}

/// A file of a folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Listed {
    /// The name within the folder.
    pub(crate) name: String,
    /// The length in bytes.
    pub(crate) len: u64,
    /// When the file was last written.
    pub(crate) modified: SystemTime,
}

/// A file that is open for reading.
pub(crate) trait ReadFile: fmt::Debug + Send + Sync {
    /// Returns the length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Fills `buffer` from byte `offset` on. Fails with `UnexpectedEof` if the file ends before.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

/// A new file.
pub(crate) trait WriteFile: io::Write + fmt::Debug + Send {
    /// Makes the bytes of the file durable. Its name is made durable by [`Storage::sync_folder`].
    fn sync(&mut self) -> io::Result<()>;
}

/// A lock that is held.
pub(crate) trait Locked: fmt::Debug + Send {}
