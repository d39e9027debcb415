//! `Reader`: reads the index, as it was when the reader was made.

use std::fmt;
use std::sync::Arc;

use redb::{ReadTransaction, ReadableTable};

use crate::error::Result;
use crate::id::Id;
use crate::name::{differ_only_in_case, is_safe, same_but_for_case};

use super::gate::Stop;
use super::row::{ManifestRow, PackRow, Place, Row};
use super::runs;
use super::{BUCKETS, MANIFESTS, NAMES, Opened, PACKS, RUNS};

/// The number of entries that are read at a time.
#[cfg(test)]
const BATCH: usize = 4096;

/// The contents of the index at one time.
pub(crate) struct Reader {
    opened: Arc<Opened>,
    /// `None` only during the drop.
    transaction: Option<ReadTransaction>,
}

impl Reader {
    /// Returns a reader of a transaction.
    pub(super) fn new(opened: Arc<Opened>, transaction: ReadTransaction) -> Self {
        Self { opened, transaction: Some(transaction) }
    }

    /// Calls redb.
    fn run<T>(&self, call: impl FnOnce(&ReadTransaction) -> Result<T, Stop>) -> Result<T> {
        let transaction = self.transaction.as_ref();
        self.opened.gate.run("read", || call(transaction.ok_or_else(|| super::damaged("it was closed"))?))
    }

    /// Returns the places of blocks. `hashes` must ascend. The result has one entry for each hash.
    pub(crate) fn find(&self, hashes: &[Id]) -> Result<Vec<Option<Place>>> {
        self.run(|transaction| {
            let buckets = transaction.open_table(BUCKETS)?;
            let mut places = vec![None; hashes.len()];
            for (run, row) in runs::list(&transaction.open_table(RUNS)?)?.iter().rev() {
                runs::find(&buckets, (*run, row), hashes, &mut places)?;
            }
            Ok(places)
        })
    }

    /// Returns the pack with a number.
    pub(crate) fn pack(&self, number: u32) -> Result<Option<PackRow>> {
        self.run(|transaction| {
            let value = transaction.open_table(PACKS)?.get(number)?;
            Ok(value
                .map(|value| PackRow::from_value("packs", &number.to_be_bytes(), value.value()))
                .transpose()?)
        })
    }

    /// Returns the number of a pack.
    #[cfg(any(test, feature = "remote"))]
    pub(crate) fn pack_number(&self, id: &Id) -> Result<Option<u32>> {
        self.run(|transaction| {
            let value = transaction.open_table(super::PACK_IDS)?.get(id.as_bytes())?;
            Ok(value.map(|value| u32::from_value("pack_ids", id.as_bytes(), value.value())).transpose()?)
        })
    }

    /// Returns all packs, in the order of their numbers.
    pub(crate) fn packs(&self) -> Result<Vec<(u32, PackRow)>> {
        self.run(|transaction| {
            let mut packs = Vec::new();
            for row in transaction.open_table(PACKS)?.iter()? {
                let (number, value) = row?;
                let number = number.value();
                packs.push((number, PackRow::from_value("packs", &number.to_be_bytes(), value.value())?));
            }
            Ok(packs)
        })
    }

    /// Returns a manifest.
    pub(crate) fn manifest(&self, id: &Id) -> Result<Option<ManifestRow>> {
        self.run(|transaction| {
            let value = transaction.open_table(MANIFESTS)?.get(id.as_bytes())?;
            Ok(value
                .map(|value| ManifestRow::from_value("manifests", id.as_bytes(), value.value()))
                .transpose()?)
        })
    }

    /// Returns all manifests, in the order of their ids.
    pub(crate) fn manifests(&self) -> Result<Vec<(Id, ManifestRow)>> {
        self.run(|transaction| {
            let mut manifests = Vec::new();
            for row in transaction.open_table(MANIFESTS)?.iter()? {
                let (key, value) = row?;
                let row = ManifestRow::from_value("manifests", key.value(), value.value())?;
                manifests.push((Id::from_bytes(*key.value()), row));
            }
            Ok(manifests)
        })
    }

    /// Returns the ids of the manifests from `first` to `last`, both included.
    pub(crate) fn manifests_from(&self, first: &Id, last: &Id) -> Result<Vec<Id>> {
        self.run(|transaction| {
            let mut ids = Vec::new();
            if first > last {
                return Ok(ids);
            }
            for row in
                transaction.open_table(MANIFESTS)?.range::<&[u8; 32]>(first.as_bytes()..=last.as_bytes())?
            {
                let (key, value) = row?;
                ManifestRow::from_value("manifests", key.value(), value.value())?;
                ids.push(Id::from_bytes(*key.value()));
            }
            Ok(ids)
        })
    }

    /// Returns what a name stands for. Fails if it could not be part of a path.
    pub(crate) fn name(&self, name: &str) -> Result<Option<Id>> {
        self.run(|transaction| {
            let value = transaction.open_table(NAMES)?.get(name)?;
            value.is_some().then(|| check_path(name)).transpose()?;
            Ok(value.map(|value| Id::from_value("names", name.as_bytes(), value.value())).transpose()?)
        })
    }

    /// Returns all names, in ascending order. Fails if one of them could not be part of a path.
    pub(crate) fn names(&self) -> Result<Vec<(String, Id)>> {
        self.run(|transaction| {
            let mut names = Vec::new();
            for row in transaction.open_table(NAMES)?.iter()? {
                let (name, value) = row?;
                let name = name.value();
                check_path(name)?;
                names.push((name.to_owned(), Id::from_value("names", name.as_bytes(), value.value())?));
            }
            Ok(names)
        })
    }

    /// Fails if `name` is new and differs only in case from an existing name.
    ///
    /// Some systems would keep both in one file. Names that exist can be moved: an older version may have made two.
    pub(crate) fn check_case(&self, name: &str) -> Result<()> {
        if self.name(name)?.is_some() {
            return Ok(());
        }
        match self.names()?.iter().find(|(other, _)| differ_only_in_case(name, other)) {
            Some((other, _)) => Err(same_but_for_case(name, other)),
            None => Ok(()),
        }
    }

    /// Visits all places, run by run, the newest run first. Within a run, the hashes ascend.
    ///
    /// If several runs have a hash, [`Reader::find`] returns the place that is visited first.
    #[cfg(test)]
    pub(crate) fn for_each_place(&self, mut visit: impl FnMut(&Id, &Place) -> Result<()>) -> Result<()> {
        let runs = self.run(|transaction| runs::list(&transaction.open_table(RUNS)?))?;
        for (run, row) in runs.into_iter().rev() {
            let mut cursor = runs::Cursor::new(run, row);
            loop {
                // The visitor runs outside of `run`, so that a panic of it is not reported as damage.
                let batch = self.run(|transaction| {
                    let buckets = transaction.open_table(BUCKETS)?;
                    let mut batch = Vec::with_capacity(BATCH);
                    while batch.len() < BATCH {
                        let Some(entry) = cursor.next(&buckets)? else { break };
                        batch.push(entry);
                    }
                    Ok(batch)
                })?;
                if batch.is_empty() {
                    break;
                }
                for (hash, place) in &batch {
                    visit(hash, place)?;
                }
            }
        }
        Ok(())
    }
}

/// Checks that a name of the index can be part of a path.
///
/// Anybody can make an index whose checksums are right. Callers write and delete the files in `names/`.
fn check_path(name: &str) -> Result<()> {
    if is_safe(name) {
        return Ok(());
    }
    Err(super::damaged(format!("it has the name {name:?}, which cannot be a name of a snapshot")))
}

#[cfg(test)]
impl Reader {
    /// Returns the rows of all runs.
    pub(super) fn runs(&self) -> Result<Vec<super::row::RunRow>> {
        let runs = self.run(|transaction| runs::list(&transaction.open_table(RUNS)?))?;
        Ok(runs.into_iter().map(|(_, row)| row).collect())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.opened.gate.discard(self.transaction.take());
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}
