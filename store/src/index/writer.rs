//! `Writer`: a transaction that changes the index.

use std::collections::BTreeSet;
use std::fmt;

use redb::{ReadableTable, WriteTransaction};

use crate::error::{Error, Result};
use crate::id::Id;

use super::gate::{Gate, Stop};
use super::row::{ManifestRow, PackRow, Place, Row};
use super::runs::{self, Tables};
use super::{BUCKETS, MANIFESTS, NAMES, PACK_IDS, PACKS, RUNS};

/// Changes of the index. If the writer is dropped without [`Writer::commit`], the changes are undone.
///
/// After an error of a method, the writer has to be dropped, because the method may have made some of its changes.
pub(crate) struct Writer<'i> {
    gate: &'i Gate,
    /// `None` after the commit and during the drop.
    transaction: Option<WriteTransaction>,
}

impl<'i> Writer<'i> {
    /// Returns a writer of a transaction.
    pub(super) fn new(gate: &'i Gate, transaction: WriteTransaction) -> Self {
        Self { gate, transaction: Some(transaction) }
    }

    /// Calls redb.
    fn run<T>(&self, call: impl FnOnce(&WriteTransaction) -> Result<T, Stop>) -> Result<T> {
        let transaction = self.transaction.as_ref();
        self.gate.run("write", || call(transaction.ok_or_else(|| super::damaged("it was closed"))?))
    }

    /// Returns a number for a new pack.
    pub(crate) fn next_pack(&self) -> Result<u32> {
        self.run(|transaction| {
            let packs = transaction.open_table(PACKS)?;
            let last = packs.last()?.map(|(number, _)| number.value());
            match last.map_or(Some(0), |last| last.checked_add(1)) {
                Some(next) => Ok(next),
                None => Err(Error::invalid("the index has no number left for a pack").into()),
            }
        })
    }

    /// Returns the number of a pack.
    pub(crate) fn pack_number(&self, id: &Id) -> Result<Option<u32>> {
        self.run(|transaction| {
            let ids = transaction.open_table(PACK_IDS)?;
            let value = ids.get(id.as_bytes())?;
            Ok(value.map(|value| u32::from_value("pack_ids", id.as_bytes(), value.value())).transpose()?)
        })
    }

    /// Adds packs, and places of blocks in them. `entries` need not be sorted.
    ///
    /// If the index already has a place of a block, the new place replaces it.
    pub(crate) fn add_packs(&mut self, packs: &[(u32, PackRow)], entries: Vec<(Id, Place)>) -> Result<()> {
        self.run(|transaction| {
            let mut rows = transaction.open_table(PACKS)?;
            let mut ids = transaction.open_table(PACK_IDS)?;
            for (number, row) in packs {
                rows.insert(number, row.to_value("packs", &number.to_be_bytes()).as_slice())?;
                let id = row.id.as_bytes();
                ids.insert(id, number.to_value("pack_ids", id).as_slice())?;
            }
            if entries.is_empty() {
                return Ok(());
            }
            runs::add(&mut tables(transaction)?, entries)
        })
    }

    /// Removes packs, and all places in them.
    ///
    /// A block that had its place in one of these packs can also be in another pack. The index may then have no place of
    /// it. So the caller adds new places of the blocks that are needed, in the same transaction.
    pub(crate) fn remove_packs(&mut self, packs: &BTreeSet<u32>) -> Result<()> {
        if packs.is_empty() {
            return Ok(());
        }
        self.run(|transaction| {
            let mut rows = transaction.open_table(PACKS)?;
            let mut ids = transaction.open_table(PACK_IDS)?;
            for number in packs {
                let Some(value) = rows.remove(number)? else { continue };
                let row = PackRow::from_value("packs", &number.to_be_bytes(), value.value())?;
                ids.remove(row.id.as_bytes())?;
            }
            runs::retain(&mut tables(transaction)?, |place| !packs.contains(&place.pack))
        })
    }

    /// Adds or replaces a manifest.
    pub(crate) fn put_manifest(&mut self, id: &Id, row: &ManifestRow) -> Result<()> {
        self.run(|transaction| {
            let value = row.to_value("manifests", id.as_bytes());
            transaction.open_table(MANIFESTS)?.insert(id.as_bytes(), value.as_slice())?;
            Ok(())
        })
    }

    /// Removes a manifest.
    pub(crate) fn remove_manifest(&mut self, id: &Id) -> Result<()> {
        self.run(|transaction| {
            transaction.open_table(MANIFESTS)?.remove(id.as_bytes())?;
            Ok(())
        })
    }

    /// Makes a name stand for `id`, or removes it.
    pub(crate) fn set_name(&mut self, name: &str, id: Option<&Id>) -> Result<()> {
        self.run(|transaction| {
            let mut names = transaction.open_table(NAMES)?;
            match id {
                Some(id) => names.insert(name, id.to_value("names", name.as_bytes()).as_slice())?,
                None => names.remove(name)?,
            };
            Ok(())
        })
    }

    /// Makes the changes visible and durable.
    ///
    /// After an error, the index has either all changes or none when it is opened again.
    pub(crate) fn commit(mut self) -> Result<()> {
        let transaction = self.transaction.take();
        self.gate.run("commit to", || commit(transaction.ok_or_else(|| super::damaged("it was closed"))?))
    }
}

/// Opens the tables of places.
fn tables(transaction: &WriteTransaction) -> Result<Tables<'_>, Stop> {
    Ok(Tables { runs: transaction.open_table(RUNS)?, buckets: transaction.open_table(BUCKETS)? })
}

/// Commits, and stores the list of free pages.
///
/// With this list, redb does not have to read the whole database when it opens it again.
pub(super) fn commit(mut transaction: WriteTransaction) -> Result<(), Stop> {
    transaction.set_quick_repair(true);
    Ok(transaction.commit()?)
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        self.gate.discard(self.transaction.take());
    }
}

impl fmt::Debug for Writer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}
