//! A SQLite database for each test, in microseconds. To use it, copy this file; it needs `memsnap` and `rusqlite`
//! (0.42, feature `bundled` or `modern_sqlite`).
//!
//! [`Snapshot::build`] makes a database once. [`Snapshot::open`] gives as many databases with its content as
//! wanted, each with its own connection, each seeing only what it wrote itself. [`Database::restore`] takes one of them back to where it
//! started, [`Database::take_snapshot`] and [`Database::restore_to`] go to and fro between any states.
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

/// An immutable image of a database. Clones share all memory; so do the databases opened on it, until they write.
#[derive(Clone, Debug)]
pub struct Snapshot {
    memory: memsnap::Snapshot,
    /// The bytes of `memory` that are the database. SQLite keeps this number beside the database, not in it.
    size: usize,
}

impl Snapshot {
    /// Makes a database with `build`, which starts with an empty one.
    ///
    /// A database can take up to `capacity` bytes, in whole pages of the system; what it does not use takes no
    /// memory. A statement that needs more fails with `SQLITE_FULL`. Only the database is kept: temporary tables and
    /// settings of the connection go with it.
    ///
    /// # Errors
    ///
    /// What `build` returns; [`Error::InUse`] if it leaves a transaction or a statement open; [`Error::Memory`] if
    /// there is none.
    pub fn build(capacity: usize, build: impl FnOnce(&Connection) -> rusqlite::Result<()>) -> Result<Self> {
        let mut memory = memsnap::Snapshot::zeroed(capacity)?;
        // A mutable view of zeroes is written in place: the database is in memory once, as one run of bytes that all
        // views map.
        let mut view = memory.view_mut()?;
        let connection = Connection::open_in_memory()?;
        // SAFETY: the view is as long as it says, and is used by nobody else until `connection` is closed, which it is
        // before the view ends: below, or on an early return as the one declared later.
        unsafe { attach(&connection, view.as_mut_ptr(), view.len(), 0) }?;
        build(&connection)?;
        idle(&connection)?;
        let size = size(&connection, view.as_ptr())?;
        connection.close().map_err(|(_, error)| error)?;
        view.commit()?;
        Ok(Self { memory, size })
    }

    /// A database that starts with this content, with a connection of its own.
    ///
    /// The connection reads pages where they are (`PRAGMA mmap_size`), rather than from copies in its cache, also those of
    /// database files that are attached to it later.
    ///
    /// # Errors
    ///
    /// [`Error::Memory`] and [`Error::Sqlite`] if there is no memory.
    pub fn open(&self) -> Result<Database> {
        let mut view = self.memory.clone().into_view()?;
        let connection = Connection::open_in_memory()?;
        connection.pragma_update(None, "mmap_size", i64::MAX)?;
        // SAFETY: the view is as long as it says. `Database` drops the connection before it, and uses it for nothing
        // else while SQLite runs.
        unsafe { attach(&connection, view.as_mut_ptr(), view.len(), self.size) }?;
        Ok(Database { connection, view, size: self.size })
    }

    /// How many bytes the database has.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// How many bytes the database can have.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.memory.len()
    }

    /// The memory that the database is in: the first [`size`](Self::size) bytes are what a file of it would hold.
    #[must_use]
    pub fn memory(&self) -> &memsnap::Snapshot {
        &self.memory
    }
}

/// A database in memory of its own, with a connection to it, which it dereferences to.
///
/// What belongs to the connection rather than to the database is as it is with any other and stays over a restore:
/// functions, `PRAGMA foreign_keys`, temporary tables, attached databases. Settings of the database's cache
/// (`cache_size`, `journal_mode`, `locking_mode`) go back to their defaults.
pub struct Database {
    /// Before `view`: it is dropped first.
    connection: Connection,
    view: OwnedView,
    /// Of the database that `view` was opened on.
    size: usize,
}

impl Database {
    /// A new snapshot of what is committed now. The database goes on as it was.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] while a transaction or statement writes; [`Error::Memory`] if there is none.
    pub fn take_snapshot(&self) -> Result<Snapshot> {
        if self.connection.transaction_state(Some(MAIN))? == TransactionState::Write {
            return Err(Error::InUse("a transaction has written, and is neither committed nor rolled back"));
        }
        let size = size(&self.connection, self.view.as_ptr())?;
        Ok(Snapshot { memory: self.view.take_snapshot()?, size })
    }

    /// Puts the database back to the snapshot that it was opened on.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] while a transaction, a statement or a backup is not finished: nothing has changed then.
    /// After any other error the database may be empty, until a restore succeeds.
    ///
    /// # Examples
    ///
    /// What cannot compile, since the statement would go on with what is no longer there:
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

    /// Puts the database to another snapshot, of the same capacity.
    ///
    /// # Errors
    ///
    /// [`Error::Capacity`] if the capacity is another one, which changes nothing; otherwise as for
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
    /// Those of SQLite.
    pub fn transaction(&mut self) -> rusqlite::Result<Transaction<'_>> {
        self.connection.transaction()
    }

    /// What the memory of the database consists of.
    #[must_use]
    pub fn stats(&self) -> ViewStats {
        self.view.stats()
    }

    fn show(&mut self, size: usize, restore: impl FnOnce(&mut OwnedView) -> io::Result<()>) -> Result<()> {
        idle(&self.connection)?;
        // What SQLite remembers is of the old state: copies of pages, the size, the parsed schema. It would notice by a
        // counter in the database that they are old, but both states may have counted to the same number.
        // SAFETY: as in `Snapshot::open`, for the same view.
        unsafe { attach(&self.connection, self.view.as_mut_ptr(), self.view.len(), size) }?;
        restore(&mut self.view).map_err(|error| {
            // The view may show a mixture now. An empty database is in its place until the next restore.
            // SAFETY: no memory is used.
            let _ = unsafe { attach(&self.connection, ptr::dangling_mut(), 0, 0) };
            Error::Memory(error)
        })
    }
}

impl Deref for Database {
    type Target = Connection;

    /// Only shared: through `&mut Connection` the connection could be moved to where it outlives its memory. So this
    /// cannot compile:
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

/// Has the main database of `connection` be the first `size` bytes at `start`, with room up to `capacity`. All that the connection
/// remembers of another one is forgotten.
///
/// Nothing is read or written now.
///
/// # Safety
///
/// Until the connection is closed or attached to something else: `start` is valid for reads and writes of `capacity`
/// bytes, of which `size` are initialized, and while a method of the connection runs nobody else uses them.
unsafe fn attach(connection: &Connection, start: *mut u8, capacity: usize, size: usize) -> Result<()> {
    let deserialize = || {
        let (size, capacity) = (size.try_into().unwrap_or(i64::MAX), capacity.try_into().unwrap_or(i64::MAX));
        // SAFETY: it is used for the next call only.
        let handle = unsafe { connection.handle() };
        // SAFETY: the connection is open, the name a C string, and the caller vouches for the memory. Without flags,
        // SQLite neither moves nor frees it, and writes not more of it than `capacity` bytes.
        match unsafe { ffi::sqlite3_deserialize(handle, MAIN.as_ptr(), start, size, capacity, 0) } {
            ffi::SQLITE_OK => Ok(()),
            ffi::SQLITE_BUSY => Err(Error::InUse("a backup is not finished")),
            code => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None).into()),
        }
    };
    deserialize().or_else(|_| {
        // It reads the schema of what was attached before, which may be damaged. Now it takes that for empty.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_RESET_DATABASE, true)?;
        let result = deserialize();
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_RESET_DATABASE, false)?;
        result
    })
}

/// Refuses what would pull the main database of `connection` from under a transaction or a statement.
fn idle(connection: &Connection) -> Result<()> {
    if !connection.is_autocommit() {
        return Err(Error::InUse("a transaction is neither committed nor rolled back"));
    }
    match connection.transaction_state(Some(MAIN))? {
        TransactionState::None => Ok(()),
        _ => Err(Error::InUse("a statement is not finished")),
    }
}

/// The bytes that the main database of `connection` has, of the memory at `start`.
fn size(connection: &Connection, start: *const u8) -> Result<usize> {
    let mut size = 0;
    // SAFETY: it is used for the next call only.
    let handle = unsafe { connection.handle() };
    // SAFETY: the connection is open and the name a C string. Nothing is copied, and the pointer that comes back only
    // compared.
    let found =
        unsafe { ffi::sqlite3_serialize(handle, MAIN.as_ptr(), &raw mut size, ffi::SQLITE_SERIALIZE_NOCOPY) };
    if ptr::eq(found, start) {
        usize::try_from(size).map_err(|_| Error::Detached)
    } else {
        Err(Error::Detached)
    }
}

/// What can go wrong.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The system has no memory for it.
    Memory(io::Error),
    /// SQLite reports an error.
    Sqlite(rusqlite::Error),
    /// This has to be brought to an end first.
    InUse(&'static str),
    /// A database cannot be put to a snapshot of another capacity.
    Capacity {
        /// That of the database, in bytes.
        database: usize,
        /// That of the snapshot, in bytes.
        snapshot: usize,
    },
    /// The connection does not show its memory since a restore failed. Another one may put that right.
    Detached,
}

/// With an [`Error`] unless it says otherwise.
pub type Result<T, E = Error> = result::Result<T, E>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(error) => error.fmt(f),
            Self::Sqlite(error) => error.fmt(f),
            Self::InUse(what) => write!(f, "the database is in use: {what}"),
            Self::Capacity { database, snapshot } => write!(
                f,
                "a database with a capacity of {database} bytes cannot be put to a snapshot with one of {snapshot}; \
                 open that snapshot"
            ),
            Self::Detached => {
                f.write_str("the database is not in its memory since a restore failed; restore it again")
            }
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
