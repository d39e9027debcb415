//! Ways to have a database with known content, and to have it back after it was changed.

use std::fs;
use std::ops::Deref;
use std::path::PathBuf;

use anyhow::Result;
use rusqlite::backup::Backup;
use rusqlite::{Connection, MAIN_DB};

use super::fixture::{Database, Snapshot};

/// Where the content comes from, and how.
pub enum Source {
    /// Views of one snapshot; to have the content back, a restore.
    Snapshot(Snapshot),
    /// A copy in memory of the bytes of the database, for `sqlite3_deserialize`.
    Bytes(Vec<u8>),
    /// `sqlite3_backup` from this connection into a new `:memory:` database.
    Backup(Connection),
    /// A copy of this file.
    File(PathBuf),
    /// The same as `Backup`; but to have the content back, `ROLLBACK`.
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
    /// All of them, with the content of `snapshot`. Files go to `folder`.
    ///
    /// # Errors
    ///
    /// Those of the databases and of the file system.
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

    /// What the tables call it.
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

    /// A new database with the content. Of all that are open at the same time, each has another `number`.
    ///
    /// # Errors
    ///
    /// Those of the databases and of the file system.
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
                // Nobody needs it after a crash.
                connection.pragma_update(None, "synchronous", "off")?;
                connection
            }
        }))
    }

    /// Has a transaction begun, and the changes of `change` committed if that does not keep them from being undone.
    ///
    /// # Errors
    ///
    /// Those of `change` and of SQLite.
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

    /// A database with the content again, in the place of `changed`.
    ///
    /// # Errors
    ///
    /// Those of the databases and of the file system.
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

fn copied(template: &Connection) -> Result<Connection> {
    let mut connection = Connection::open_in_memory()?;
    Backup::new(template, &mut connection)?.step(-1)?;
    Ok(connection)
}
