//! A SQLite database for each test, opened in microseconds.
//!
//! To use it, copy this file. It needs `memsnap` and `rusqlite` (0.42, feature `bundled` or `modern_sqlite`).
//!
//! [`Snapshot::build`] makes a database once. [`Snapshot::open`] opens any number of databases with its content. Each has
//! a connection of its own and does not see what the others write. [`Database::restore`] puts a database back to the state
//! in which it was opened. [`Database::take_snapshot`] and [`Database::restore_to`] save and restore any other state.
//!
//! ```
//! # use memsnap_showcase::sqlite::fixture::{Result, Snapshot};
//! # fn main() -> Result<()> {
//! let users = Snapshot::build(1 << 20, |sql| {
//!     sql.execute_batch("CREATE TABLE user (id INTEGER PRIMARY KEY, name TEXT); INSERT INTO user (name) VALUES ('Ada');")
//! })?;
//!
//! let mut database = users.open()?;
//! database.execute("INSERT INTO user (name) VALUES (?1)", ["Grace"])?;
//! let both = database.take_snapshot()?;
//! database.execute_batch("DROP TABLE user; VACUUM")?;
//!
//! let count = |sql: &rusqlite::Connection| sql.query_row("SELECT count(*) FROM user", [], |row| row.get(0));
//! database.restore_to(&both)?;
//! assert_eq!(count(&database), Ok(2));
//! database.restore()?;
//! assert_eq!(count(&database), Ok(1));
//! # Ok(())
//! # }
//! ```
#![allow(unsafe_code)]

use std::error;
use std::ffi::CStr;
use std::fmt;
use std::io;
use std::ops::Deref;
use std::ptr;
use std::result;

use memsnap::{OwnedView, ViewStats};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, Transaction, TransactionState, ffi};

const MAIN: &CStr = c"main";

/// An immutable image of a database.
///
/// Clones share all of its memory. Databases that are opened on it share the pages that they have not written.
#[derive(Clone, Debug)]
pub struct Snapshot {
    memory: memsnap::Snapshot,
    /// The length of the database in `memory`. SQLite stores it outside of the database.
    size: usize,
}

impl Snapshot {
    /// Makes a database. `build` gets a connection to an empty database and fills it.
    ///
    /// The database can have up to `capacity` bytes, in whole pages of the system. Bytes that it does not use take no
    /// memory. A statement that needs more fails with `SQLITE_FULL`. The snapshot contains only the database, and not the
    /// temporary tables and the settings of the connection.
    ///
    /// # Errors
    ///
    /// Returns the error of `build`, [`Error::InUse`] if `build` leaves a transaction or a statement open, and
    /// [`Error::Memory`] if there is not enough memory.
    pub fn build(capacity: usize, build: impl FnOnce(&Connection) -> rusqlite::Result<()>) -> Result<Self> {
        let mut memory = memsnap::Snapshot::zeroed(capacity)?;
        // A mutable view of zeroes is written in place. So the database is in memory only once, and a view of it needs
        // only one mapping.
        let mut view = memory.view_mut()?;
        let connection = Connection::open_in_memory()?;
        // SAFETY: the view has `view.len()` bytes, and nothing else uses it until `connection` is closed. That is before
        // the view ends: it is closed below, and on an early return it is dropped first, since it was declared later.
        unsafe { attach(&connection, view.as_mut_ptr(), view.len(), 0) }?;
        build(&connection)?;
        idle(&connection)?;
        let size = size(&connection, view.as_ptr())?;
        connection.close().map_err(|(_, error)| error)?;
        view.commit()?;
        Ok(Self { memory, size })
    }

    /// Opens a database with this content and a connection of its own.
    ///
    /// The connection reads pages in place instead of from copies in its cache (`PRAGMA mmap_size`). This also applies to
    /// database files that are attached to it later.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Memory`] or [`Error::Sqlite`] if there is not enough memory.
    pub fn open(&self) -> Result<Database> {
        let mut view = self.memory.clone().into_view()?;
        let connection = Connection::open_in_memory()?;
        connection.pragma_update(None, "mmap_size", i64::MAX)?;
        // SAFETY: the view has `view.len()` bytes. `Database` drops the connection before the view, and does not use the
        // view for anything else while SQLite runs.
        unsafe { attach(&connection, view.as_mut_ptr(), view.len(), self.size) }?;
        Ok(Database { connection, view, size: self.size })
    }

    /// Returns the length of the database in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Returns the greatest length of the database in bytes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.memory.len()
    }

    /// Returns the memory that contains the database.
    ///
    /// The first [`size`](Self::size) bytes are the bytes of a database file.
    #[must_use]
    pub fn memory(&self) -> &memsnap::Snapshot {
        &self.memory
    }
}

/// A database in a view of its own. It dereferences to its connection.
///
/// A restore does not change the state of the connection: functions, `PRAGMA foreign_keys`, temporary tables and
/// attached databases. It resets the settings of the database's cache (`cache_size`, `journal_mode`, `locking_mode`) to
/// their defaults.
pub struct Database {
    /// This field is dropped before `view`, because it uses the view.
    connection: Connection,
    view: OwnedView,
    /// The length of the database in the snapshot that `view` was opened on.
    size: usize,
}

impl Database {
    /// Takes a snapshot of the committed content. The database does not change.
    ///
    /// # Errors
    ///
    /// Returns [`Error::InUse`] while a transaction or a statement writes, and [`Error::Memory`] if there is not enough
    /// memory.
    pub fn take_snapshot(&self) -> Result<Snapshot> {
        if self.connection.transaction_state(Some(MAIN))? == TransactionState::Write {
            return Err(Error::InUse(
                "a transaction has written and is still open; commit it or roll it back",
            ));
        }
        let size = size(&self.connection, self.view.as_ptr())?;
        Ok(Snapshot { memory: self.view.take_snapshot()?, size })
    }

    /// Restores the database to the snapshot that it was opened on.
    ///
    /// # Errors
    ///
    /// Returns [`Error::InUse`] while a transaction, a statement or a backup is not finished. The database has not changed
    /// then. After any other error, the database may be empty until a restore succeeds.
    ///
    /// # Examples
    ///
    /// A statement must not be used after a restore, because its rows may not exist. This does not compile:
    ///
    /// ```compile_fail,E0502
    /// # use memsnap_showcase::sqlite::fixture::{Result, Snapshot};
    /// # fn main() -> Result<()> {
    /// let mut database = Snapshot::build(1 << 20, |sql| sql.execute_batch("CREATE TABLE t (v)"))?.open()?;
    /// let mut statement = database.prepare("SELECT * FROM t")?;
    /// database.restore()?;
    /// statement.query([])?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn restore(&mut self) -> Result<()> {
        self.show(self.size, OwnedView::restore)
    }

    /// Restores the database to another snapshot of the same capacity.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Capacity`] if the capacities differ. The database has not changed then. Other errors are those of
    /// [`restore`](Self::restore).
    pub fn restore_to(&mut self, snapshot: &Snapshot) -> Result<()> {
        if snapshot.capacity() != self.view.len() {
            return Err(Error::Capacity { database: self.view.len(), snapshot: snapshot.capacity() });
        }
        self.show(snapshot.size, |view| view.restore_to(&snapshot.memory))
    }

    /// Begins a transaction, which is rolled back unless it is committed. See [`Connection::transaction`].
    ///
    /// # Errors
    ///
    /// Returns errors of SQLite.
    pub fn transaction(&mut self) -> rusqlite::Result<Transaction<'_>> {
        self.connection.transaction()
    }

    /// Returns statistics of the view that contains the database.
    #[must_use]
    pub fn stats(&self) -> ViewStats {
        self.view.stats()
    }

    /// Restores the view to a database of `size` bytes.
    fn show(&mut self, size: usize, restore: impl FnOnce(&mut OwnedView) -> io::Result<()>) -> Result<()> {
        idle(&self.connection)?;
        // SQLite caches pages, the size and the parsed schema of the old state. It uses a counter in the database to
        // detect that they are outdated, but the counter may have the same value in both states.
        // SAFETY: as in `Snapshot::open`, for the same view.
        unsafe { attach(&self.connection, self.view.as_mut_ptr(), self.view.len(), size) }?;
        restore(&mut self.view).map_err(|error| {
            // The view may contain a mixture of both states. The connection uses an empty database until the next restore.
            // SAFETY: the capacity is 0, so no memory is used.
            let _ = unsafe { attach(&self.connection, ptr::dangling_mut(), 0, 0) };
            Error::Memory(error)
        })
    }
}

impl Deref for Database {
    type Target = Connection;

    /// Borrows the connection.
    ///
    /// There is no mutable borrow: a connection that is moved out of a `&mut Connection` could outlive its memory. So this
    /// does not compile:
    ///
    /// ```compile_fail,E0596
    /// # use memsnap_showcase::sqlite::fixture::{Result, Snapshot};
    /// # fn main() -> Result<()> {
    /// let mut database = Snapshot::build(1 << 20, |_| Ok(()))?.open()?;
    /// let moved = std::mem::replace(&mut *database, rusqlite::Connection::open_in_memory()?);
    /// # Ok(())
    /// # }
    /// ```
    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database")
            .field("connection", &self.connection)
            .field("view", &self.view)
            .finish_non_exhaustive()
    }
}

/// Makes the first `size` bytes at `start` the main database of `connection`. The database can grow to `capacity` bytes.
///
/// The connection discards everything that it has cached of its previous main database. The bytes are not read or written
/// yet.
///
/// # Safety
///
/// Until the connection is closed or gets another main database, `start` must be valid for reads and writes of
/// `capacity` bytes, and the first `size` bytes must be initialized. Nothing else may use them while a method of the
/// connection runs.
unsafe fn attach(connection: &Connection, start: *mut u8, capacity: usize, size: usize) -> Result<()> {
    let deserialize = || {
        let (size, capacity) = (size.try_into().unwrap_or(i64::MAX), capacity.try_into().unwrap_or(i64::MAX));
        // SAFETY: the handle is used for the next call only, during which the connection stays open.
        let handle = unsafe { connection.handle() };
        // SAFETY: the connection is open, the name is a C string, and the memory is valid by this function's contract.
        // Without flags, SQLite neither moves nor frees it, and does not write to it beyond `capacity` bytes.
        match unsafe { ffi::sqlite3_deserialize(handle, MAIN.as_ptr(), start, size, capacity, 0) } {
            ffi::SQLITE_OK => Ok(()),
            ffi::SQLITE_BUSY => Err(Error::InUse("a backup is not finished")),
            code => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None).into()),
        }
    };
    deserialize().or_else(|_| {
        // SQLite reads the schema of the previous database, which may be damaged. With this setting, it treats the
        // previous database as empty.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_RESET_DATABASE, true)?;
        let result = deserialize();
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_RESET_DATABASE, false)?;
        result
    })
}

/// Fails if a transaction or a statement of `connection` uses the main database.
fn idle(connection: &Connection) -> Result<()> {
    if !connection.is_autocommit() {
        return Err(Error::InUse("a transaction is open; commit it or roll it back"));
    }
    match connection.transaction_state(Some(MAIN))? {
        TransactionState::None => Ok(()),
        _ => Err(Error::InUse("a statement is not finished")),
    }
}

/// Returns the length of the main database of `connection`, which must be in the memory at `start`.
fn size(connection: &Connection, start: *const u8) -> Result<usize> {
    let mut size = 0;
    // SAFETY: the handle is used for the next call only, during which the connection stays open.
    let handle = unsafe { connection.handle() };
    // SAFETY: the connection is open, and the name is a C string. Nothing is copied, and the returned pointer is only
    // compared.
    let found =
        unsafe { ffi::sqlite3_serialize(handle, MAIN.as_ptr(), &raw mut size, ffi::SQLITE_SERIALIZE_NOCOPY) };
    if ptr::eq(found, start) {
        usize::try_from(size).map_err(|_| Error::Detached)
    } else {
        Err(Error::Detached)
    }
}

/// An error of a database or of its memory.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A call of memsnap failed, for example because there is not enough memory.
    Memory(io::Error),
    /// A call of SQLite failed.
    Sqlite(rusqlite::Error),
    /// Something uses the database and has to end first.
    InUse(&'static str),
    /// A database cannot be restored to a snapshot of another capacity.
    Capacity {
        /// The capacity of the database, in bytes.
        database: usize,
        /// The capacity of the snapshot, in bytes.
        snapshot: usize,
    },
    /// A restore failed before, so the connection does not use its memory. Another restore may repair this.
    Detached,
}

/// A result with [`Error`] as its default error.
pub type Result<T, E = Error> = result::Result<T, E>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(error) => error.fmt(f),
            Self::Sqlite(error) => error.fmt(f),
            Self::InUse(what) => write!(f, "the database is in use: {what}"),
            Self::Capacity { database, snapshot } => write!(
                f,
                "a database with a capacity of {database} bytes cannot be restored to a snapshot with a capacity of \
                 {snapshot} bytes; open the snapshot instead"
            ),
            Self::Detached => f.write_str(
                "the database does not use its memory, because a restore failed; restore it again",
            ),
        }
    }
}

impl error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Memory(error)
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}
