//! Ways to open a database with known content, and to reset it after it was changed.

use std::fs;
use std::ops::Deref;
use std::path::PathBuf;

use anyhow::Result;
use rusqlite::backup::Backup;
use rusqlite::{Connection, MAIN_DB};

use super::fixture::{Database, Snapshot};

/// A source of the content.
pub enum Source {
    /// Views of one snapshot. A reset restores the view.
    Snapshot(Snapshot),
    /// The bytes of the database, which are copied for `sqlite3_deserialize`.
    Bytes(Vec<u8>),
    /// `sqlite3_backup` from this connection into a new `:memory:` database.
    Backup(Connection),
    /// A file, which is copied.
    File(PathBuf),
    /// A database made as for `Backup`. A reset is a `ROLLBACK`.
    Rollback(Connection),
}

/// A database that was opened on a source.
pub enum Opened {
    /// In a view.
    InView(Database),
    /// Any other.
    Plain(Connection),
}

impl Deref for Opened {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        match self {
            Self::InView(database) => database,
            Self::Plain(connection) => connection,
        }
    }
}

impl Source {
    /// Returns all sources, with the content of `snapshot`. Their files are in `folder`.
    ///
    /// # Errors
    ///
    /// Returns errors of the databases and of the file system.
    pub fn all(snapshot: &Snapshot, folder: PathBuf) -> Result<[Self; 5]> {
        let database = snapshot.open()?;
        let mut bytes = vec![0; snapshot.size()];
        snapshot.memory().read_at(&mut bytes, 0)?;
        let file = folder.join("template.db");
        fs::write(&file, &bytes)?;
        Ok([
            Self::Snapshot(snapshot.clone()),
            Self::Bytes(bytes),
            Self::Backup(copied(&database)?),
            Self::File(file),
            Self::Rollback(copied(&database)?),
        ])
    }

    /// Returns the name of the source in the tables.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Snapshot(_) => "memsnap",
            Self::Bytes(_) => "`memcpy`, `sqlite3_deserialize`",
            Self::Backup(_) => "`sqlite3_backup` into `:memory:`",
            Self::File(_) => "copied file",
            Self::Rollback(_) => "`BEGIN` ... `ROLLBACK`",
        }
    }

    /// Opens a new database with the content. Databases that are open at the same time must have different numbers.
    ///
    /// # Errors
    ///
    /// Returns errors of the databases and of the file system.
    pub fn open(&self, number: u32) -> Result<Opened> {
        Ok(Opened::Plain(match self {
            Self::Snapshot(snapshot) => return Ok(Opened::InView(snapshot.open()?)),
            Self::Bytes(bytes) => {
                let mut connection = Connection::open_in_memory()?;
                connection.deserialize_read_exact(MAIN_DB, bytes.as_slice(), bytes.len(), false)?;
                connection
            }
            Self::Backup(template) | Self::Rollback(template) => copied(template)?,
            Self::File(template) => {
                let copy = template.with_file_name(format!("copy-{number}.db"));
                fs::copy(template, &copy)?;
                let connection = Connection::open(copy)?;
                // The file is not needed after a crash.
                connection.pragma_update(None, "synchronous", "off")?;
                connection
            }
        }))
    }

    /// Begins a transaction and runs `change`. Commits it, unless a reset is a `ROLLBACK`.
    ///
    /// # Errors
    ///
    /// Returns errors of `change` and of SQLite.
    pub fn change(
        &self,
        sql: &Connection,
        change: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<()> {
        sql.execute_batch("BEGIN")?;
        change(sql)?;
        if !matches!(self, Self::Rollback(_)) {
            sql.execute_batch("COMMIT")?;
        }
        Ok(())
    }

    /// Resets a changed database, or replaces it by a new one with the content.
    ///
    /// # Errors
    ///
    /// Returns errors of the databases and of the file system.
    pub fn reset(&self, mut changed: Opened) -> Result<Opened> {
        match (self, &mut changed) {
            (_, Opened::InView(database)) => database.restore()?,
            (Self::Rollback(_), Opened::Plain(connection)) => connection.execute_batch("ROLLBACK")?,
            _ => {
                drop(changed);
                return self.open(0);
            }
        }
        Ok(changed)
    }
}

/// Copies a database into a new one in memory.
fn copied(template: &Connection) -> Result<Connection> {
    let mut connection = Connection::open_in_memory()?;
    Backup::new(template, &mut connection)?.step(-1)?;
    Ok(connection)
}
