//! `Gate`: all calls of redb, and all file operations of redb, go through it.
//!
//! redb trusts the file of a database, and panics on some kinds of damage. So each call of redb runs in [`Gate::run`],
//! which turns a panic into [`Error::Damaged`]. After a panic, redb is not called any more.
//!
//! The gate also avoids a write. When a database is closed, redb commits once more, to store the list of free pages.
//! `writer.rs` stores this list with each commit instead (*quick repair*). So the gate closes the file before the
//! database, and redb cannot write. When the database is opened again, redb finds that it was not closed, and uses the
//! list of the last commit.

use std::fmt;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use redb::StorageBackend;

use crate::error::{Error, Result};
use crate::storage::DatabaseMode;

use super::pages::Pages;
use super::row::damaged;

/// The longest database that is opened. It has the places of about 80 TB of blocks.
const MAX_LEN: u64 = 1 << 40;

/// An error within [`Gate::run`].
#[derive(Debug)]
pub(super) enum Stop {
    /// redb returned an error.
    Redb(redb::Error),
    /// A value was not valid.
    Store(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

macro_rules! from_redb {
    ($($error:ident),*) => {
        $(impl From<redb::$error> for Stop {
            fn from(error: redb::$error) -> Self {
                Self::Redb(error.into())
            }
        })*
    };
}

from_redb!(CommitError, DatabaseError, StorageError, TableError, TransactionError);

/// The layer between the index and redb, and between redb and the file.
pub(super) struct Gate {
    /// `None` after the file was closed.
    file: RwLock<Option<Box<dyn StorageBackend>>>,
    /// The state of the file.
    known: Mutex<Known>,
    /// Whether redb panicked.
    broken: AtomicBool,
}

/// The state of the file, as far as the gate knows it.
struct Known {
    /// The header of the database in the file, or an empty vector if it is not known.
    header: Vec<u8>,
    /// The length of the file.
    len: u64,
    /// The pages of the file.
    pages: Pages,
    /// Whether there may be writes that were not synced.
    dirty: bool,
    /// The first error of a file operation or a check.
    ///
    /// It is reported for the errors and panics that follow from it.
    failure: Option<(io::ErrorKind, String)>,
}

impl Gate {
    /// Returns the gate, and the file for redb.
    pub(super) fn new(file: Box<dyn StorageBackend>, mode: DatabaseMode) -> Result<(Arc<Self>, Backend)> {
        let len = file.len().map_err(|source| index_error("open", redb::Error::Io(source)))?;
        // redb would make a new database in an empty file.
        if len > MAX_LEN || (len == 0) != (mode == DatabaseMode::Create) {
            return Err(damaged(format!("it has {len} bytes")));
        }
        let gate = Arc::new(Self {
            file: RwLock::new(Some(file)),
            // An earlier process may have crashed between a write and its sync.
            known: Mutex::new(Known {
                header: Vec::new(),
                len,
                pages: Pages::default(),
                dirty: true,
                failure: None,
            }),
            broken: AtomicBool::new(false),
        });
        Ok((Arc::clone(&gate), Backend(gate)))
    }

    /// Calls redb. `action` is a verb for the error.
    pub(super) fn run<T>(&self, action: &'static str, call: impl FnOnce() -> Result<T, Stop>) -> Result<T> {
        if self.broken.load(Ordering::Acquire) {
            return Err(damaged("an earlier operation on it failed"));
        }
        // After a panic, nothing that `call` could change is used again.
        match panic::catch_unwind(AssertUnwindSafe(call)) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Stop::Store(error))) => Err(error),
            // After an error of the file, redb refuses further calls. The first error is the reason.
            Ok(Err(Stop::Redb(redb::Error::PreviousIo | redb::Error::DatabaseClosed))) => {
                Err(self.failure(action))
            }
            Ok(Err(Stop::Redb(error))) => Err(index_error(action, error)),
            Err(payload) => {
                self.broken.store(true, Ordering::Release);
                self.close_file();
                if self.known().failure.is_some() {
                    return Err(self.failure(action));
                }
                let text = payload.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
                Err(damaged(format!("redb found: {text}")))
            }
        }
    }

    /// Returns the first error of the file.
    fn failure(&self, action: &'static str) -> Error {
        let failure = self.known().failure.clone();
        let (kind, text) =
            failure.unwrap_or_else(|| (io::ErrorKind::Other, "the index is closed".to_owned()));
        index_error(action, redb::Error::Io(io::Error::new(kind, text)))
    }

    /// Stores an error of the file, if it is the first one.
    fn note(&self, error: &io::Error) {
        self.known().failure.get_or_insert_with(|| (error.kind(), error.to_string()));
    }

    /// Closes the file, and drops the database.
    ///
    /// When a database is dropped, redb commits once more. Without the file, this has no effect. In a damaged database,
    /// it can panic twice, which would end the process. So this function first makes redb check the integrity of the
    /// database. The check begins with a sync, which fails because the file is closed. After that, redb does not
    /// commit.
    pub(super) fn close(&self, mut database: redb::Database) {
        self.close_file();
        if self.broken.load(Ordering::Acquire) || self.known().failure.is_some() {
            return self.discard(database);
        }
        let checked = panic::catch_unwind(AssertUnwindSafe(|| database.check_integrity()));
        if checked.is_err() {
            self.broken.store(true, Ordering::Release);
        }
        self.discard(database);
    }

    /// Drops something that belongs to redb.
    pub(super) fn discard<T>(&self, part: T) {
        if self.broken.load(Ordering::Acquire) {
            // Its locks may be poisoned, so a drop could panic twice. Its file is closed, so only memory is leaked.
            std::mem::forget(part);
        } else if panic::catch_unwind(AssertUnwindSafe(|| drop(part))).is_err() {
            self.broken.store(true, Ordering::Release);
            self.close_file();
        }
    }

    /// Closes the file.
    fn close_file(&self) {
        drop(self.file.write().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Returns the state of the file. It is valid also after a panic of another thread.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs an operation on the file.
    fn on_file<T>(&self, operation: impl FnOnce(&dyn StorageBackend) -> io::Result<T>) -> io::Result<T> {
        let file = self.file.read().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = &*file else {
            return Err(io::Error::other("the index is closed"));
        };
        operation(&**file).inspect_err(|error| self.note(error))
    }
}

/// Returns the error of the store for an error of redb.
fn index_error(action: &'static str, error: redb::Error) -> Error {
    use io::ErrorKind::{InvalidData, UnexpectedEof};
    match error {
        redb::Error::Io(error) if matches!(error.kind(), InvalidData | UnexpectedEof) => {
            damaged(format!("cannot {action} it: {error}"))
        }
        redb::Error::Corrupted(what) => damaged(what),
        redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TableIsNotMultimap(_)
        | redb::Error::TypeDefinitionChanged { .. }
        | redb::Error::TableDoesNotExist(_)
        | redb::Error::RepairAborted
        | redb::Error::UpgradeRequired(_) => damaged(error.to_string()),
        error => Error::Index { action, source: Box::new(error) },
    }
}

/// The file of a database, as redb sees it.
pub(super) struct Backend(Arc<Gate>);

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("index.redb")
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.on_file(|file| file.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.on_file(|file| file.read(offset, out))?;
        let mut known = self.0.known();
        let len = known.len;
        let checked = known.pages.check(offset, out, len);
        if offset == 0 {
            known.header = out.to_vec();
        }
        drop(known);
        checked.inspect_err(|error| self.0.note(error))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.known().dirty = true;
        self.0.on_file(|file| file.set_len(len))?;
        self.0.known().len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let dirty = self.0.known().dirty;
        self.0.on_file(|file| if dirty { file.sync_data() } else { Ok(()) })?;
        self.0.known().dirty = false;
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        {
            let mut known = self.0.known();
            // While redb opens a database that was not closed, it writes the same header twice.
            if offset == 0 && known.header == data {
                return Ok(());
            }
            known.dirty = true;
            known.pages.wrote(offset, data.len());
            if offset == 0 {
                known.header.clear();
            }
        }
        self.0.on_file(|file| file.write(offset, data))?;
        if offset == 0 {
            self.0.known().header = data.to_vec();
        }
        Ok(())
    }
}
