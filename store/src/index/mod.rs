//! The index: the places of all blocks, and lists of the packs, manifests and names.
//!
//! The index is a redb database. `DESIGN.md` lists its tables. The places of blocks are in *runs*; see `runs.rs`.
//!
//! The database is not trusted. redb panics on some kinds of damage, so all its calls go through [`gate::Gate`].
//! `row.rs` checks each value that is read.

mod gate;
mod pages;
mod reader;
mod row;
mod runs;
mod writer;

use std::fmt;
use std::sync::Arc;

use redb::{Database, ReadableDatabase, TableDefinition};

use crate::error::{Error, Result};
use crate::storage::{DatabaseMode, Storage};

use gate::Gate;
use row::damaged;

pub(crate) use reader::Reader;
pub(crate) use row::{ManifestRow, PackRow, Place};
pub(crate) use writer::Writer;

/// The path of the index in a repository.
pub(crate) const PATH: &str = "index.redb";
/// The version of the tables.
const FORMAT: u32 = 1;
/// The length of redb's cache. A small one is enough, because an operation reads each bucket only once.
const CACHE: usize = 16 << 20;

const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
const PACKS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("packs");
const PACK_IDS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("pack_ids");
const RUNS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("runs");
const BUCKETS: TableDefinition<'_, (u32, u32), &[u8]> = TableDefinition::new("buckets");
const MANIFESTS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("manifests");
const NAMES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("names");

/// An index that is open.
///
/// The caller holds a lock, so that no other process writes the index meanwhile.
pub(crate) struct Index(Arc<Opened>);

/// A database that is open. It is closed when the index and its readers have been dropped.
struct Opened {
    gate: Arc<Gate>,
    /// `None` after the database was closed.
    database: Option<Database>,
}

impl Index {
    /// Makes the index of a repository. The caller syncs its folder.
    pub(crate) fn create(storage: &dyn Storage, path: &str, repository: &str) -> Result<()> {
        let index = Self::start(storage, path, DatabaseMode::Create)?;
        index.0.gate.run("create", || {
            let transaction = index.0.database()?.begin_write()?;
            {
                let mut meta = transaction.open_table(META)?;
                meta.insert("format", FORMAT.to_string().as_str())?;
                meta.insert("repository", repository)?;
            }
            // Readers expect that all tables exist.
            transaction.open_table(PACKS)?;
            transaction.open_table(PACK_IDS)?;
            transaction.open_table(RUNS)?;
            transaction.open_table(BUCKETS)?;
            transaction.open_table(MANIFESTS)?;
            transaction.open_table(NAMES)?;
            writer::commit(transaction)
        })
    }

    /// Opens the index of a repository, and checks its format and that it belongs to the repository.
    pub(crate) fn open(
        storage: &dyn Storage,
        path: &str,
        mode: DatabaseMode,
        repository: &str,
    ) -> Result<Self> {
        let index = Self::start(storage, path, mode)?;
        let (format, found) = index.0.gate.run("read", || {
            let meta = index.0.database()?.begin_read()?.open_table(META)?;
            let text = |key| Ok::<_, gate::Stop>(meta.get(key)?.map(|value| value.value().to_owned()));
            Ok((text("format")?, text("repository")?))
        })?;
        let format = format.ok_or_else(|| damaged("it has no format"))?;
        match format.parse() {
            Ok(FORMAT) => {}
            Ok(found) if found > FORMAT => {
                return Err(Error::Newer { object: PATH.to_owned(), found, known: FORMAT });
            }
            _ => return Err(damaged(format!("it has the format {format:?}"))),
        }
        let found = found.ok_or_else(|| damaged("it does not say which repository it belongs to"))?;
        if found != repository {
            let (object, expected) = (PATH.to_owned(), repository.to_owned());
            return Err(Error::Mixed { object, found, expected });
        }
        Ok(index)
    }

    /// Returns a reader, which sees the last commit.
    pub(crate) fn read(&self) -> Result<Reader> {
        let transaction = self.0.gate.run("read", || Ok(self.0.database()?.begin_read()?))?;
        Ok(Reader::new(Arc::clone(&self.0), transaction))
    }

    /// Returns a writer. Waits until there is no other writer of this `Index`.
    pub(crate) fn write(&self) -> Result<Writer<'_>> {
        let transaction = self.0.gate.run("write", || Ok(self.0.database()?.begin_write()?))?;
        Ok(Writer::new(&self.0.gate, transaction))
    }

    /// Opens the database.
    fn start(storage: &dyn Storage, path: &str, mode: DatabaseMode) -> Result<Self> {
        let (action, failed) = match mode {
            DatabaseMode::Create => ("create", "cannot create"),
            DatabaseMode::Write | DatabaseMode::Read => ("open", "cannot open"),
        };
        let file = storage.database(path, mode).map_err(Error::file(failed, storage.path(path)))?;
        let (gate, backend) = Gate::new(file, mode)?;
        let database = gate
            .run(action, || Ok(Database::builder().set_cache_size(CACHE).create_with_backend(backend)?))?;
        Ok(Self(Arc::new(Opened { gate, database: Some(database) })))
    }
}

impl Opened {
    /// Returns the database.
    fn database(&self) -> Result<&Database> {
        self.database.as_ref().ok_or_else(|| damaged("it was closed"))
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Some(database) = self.database.take() {
            self.gate.close(database);
        }
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
