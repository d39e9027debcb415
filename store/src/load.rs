//! `Load`: reads a snapshot into memory.

use std::sync::Mutex;

use memsnap::Snapshot;

use crate::blocks::{Blocks, in_batches, lock};
use crate::chain::{check_lengths, checked_header, differences, open_listed};
use crate::error::{Error, Result};
use crate::format::runs::Entry;
use crate::format::{BLOCK, position};
use crate::id::{Id, Reference};
use crate::index::ManifestRow;
use crate::inner::Inner;
use crate::progress::{Observer, Progress};
use crate::saved::Saved;

const FAILED: &str = "cannot load the snapshot into memory";

/// Options of loading a snapshot. Call [`run`](Load::run) to load it.
///
/// [`Repository::load`](crate::Repository::load) returns it.
#[must_use = "nothing is loaded until `run` is called"]
#[derive(Debug)]
pub struct Load<'a> {
    inner: &'a Inner,
    id: Reference,
    onto: Option<Saved>,
    observer: Observer<'a>,
}

impl<'a> Load<'a> {
    pub(crate) fn new(inner: &'a Inner, id: Reference) -> Self {
        Self { inner, id, onto: None, observer: Observer::none() }
    }

    /// Loads only the blocks that differ from `saved`, a snapshot of the repository that is in memory.
    ///
    /// The two snapshots share the memory of all other pages. Few blocks differ if one of the two was saved with the
    /// other one as its parent, or if both have the same parent.
    pub fn onto(mut self, saved: &Saved) -> Self {
        self.onto = Some(saved.clone());
        self
    }

    /// Sets a function that is called with the progress.
    pub fn progress(mut self, tell: impl FnMut(Progress) + Send + 'a) -> Self {
        self.observer = Observer::new(tell);
        self
    }

    /// Loads the snapshot.
    ///
    /// The call reads all blocks that are not zero, on all cores, and compares each with its hash. Besides the snapshot,
    /// it needs at most about 100 MiB of memory. The length of a snapshot that was saved on a system with smaller pages
    /// is rounded up to whole pages. The added bytes are zero.
    ///
    /// # Errors
    ///
    /// - [`Error::NotFound`] if the snapshot, or the one that was passed to [`onto`](Self::onto), is not in this
    ///   repository.
    /// - [`Error::Ambiguous`] if the ids of several snapshots begin with the given digits.
    /// - [`Error::Damaged`] if a manifest, the index or a block is damaged. Wrong bytes are never returned.
    /// - [`Error::Invalid`] if the snapshot is longer than the address space of this system.
    /// - [`Error::Memory`] if there is not enough memory.
    /// - [`Error::File`], [`Error::Index`] or [`Error::Busy`] if a file cannot be read.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::Snapshot;
    /// use memsnap_store::Repository;
    ///
    /// # fn main() -> memsnap_store::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("repository");
    /// let repository = Repository::create(&path)?;
    /// let snapshot = Snapshot::from_slice(b"state").unwrap();
    /// repository.save(&snapshot).name("latest").run()?;
    ///
    /// let saved = Repository::open(&path)?.load("latest").run()?;
    /// assert_eq!(saved.snapshot().view().unwrap().content(), b"state");
    /// # Ok(())
    /// # }
    /// ```
    pub fn run(mut self) -> Result<Saved> {
        let (id, row) = self.inner.resolve(&self.id)?;
        let snapshot = match self.onto.take() {
            Some(saved) => self.load_onto(&saved, id, &row),
            None => self.load_all(id, &row),
        };
        Ok(Saved::new(id, snapshot.map_err(|error| self.inner.or_removed(id, error))?))
    }

    fn load_all(&mut self, id: Id, row: &ManifestRow) -> Result<Snapshot> {
        let (len, content_len) = lengths(row)?;
        let chain = open_listed(&*self.inner.storage, id, row)?;
        let mut snapshot = Snapshot::zeroed(len).map_err(Error::memory(FAILED))?;
        let mut view = snapshot.view_mut().map_err(Error::memory(FAILED))?;
        let mut blocks = Blocks::new(self.inner);
        let mut progress = Progress { total: row.len, ..Progress::default() };
        in_batches(chain.entries()?, |batch| {
            let hashes: Vec<Id> = batch.iter().filter_map(|entry| entry.1).collect();
            let targets = split(&mut view, batch);
            blocks.read(&hashes, |number, bytes| {
                lock(&targets[number]).copy_from_slice(bytes);
                Ok(())
            })?;
            progress.done = batch.last().map_or(0, |entry| (entry.0 + 1) * BLOCK as u64);
            progress.written += (batch.len() * BLOCK) as u64;
            self.observer.tell(progress);
            Ok(())
        })?;
        view.commit().map_err(Error::memory(FAILED))?;
        self.observer.tell(Progress { done: row.len, ..progress });
        snapshot.resized(len, content_len).map_err(Error::memory(FAILED))
    }

    fn load_onto(&mut self, saved: &Saved, id: Id, row: &ManifestRow) -> Result<Snapshot> {
        let (from, from_row) = self.inner.resolve(&saved.id().into())?;
        let (len, content_len) = lengths(row)?;
        let storage = &*self.inner.storage;
        check_lengths(storage, id, row)?;
        check_lengths(storage, from, &from_row)?;
        if saved.snapshot().len() as u64 != from_row.len {
            checked_header(storage, from)?; // The length of the snapshot in memory does not confirm this one.
        }
        // Makes the bytes after the end of the saved snapshot zero, also if the snapshot in memory is longer.
        let cut =
            saved.snapshot().resized(lengths(&from_row)?.0.min(len), 0).map_err(Error::memory(FAILED))?;
        let mut snapshot = cut.resized(len, content_len).map_err(Error::memory(FAILED))?;
        let mut blocks = Blocks::new(self.inner);
        let mut progress = Progress { total: row.len, ..Progress::default() };
        let mut bytes = Vec::new();
        in_batches(differences(storage, from, id, false)?, |batch| {
            bytes.clear();
            bytes.resize(batch.len() * BLOCK, 0);
            let (not_zero, hashes): (Vec<usize>, Vec<Id>) =
                batch.iter().enumerate().filter_map(|(number, entry)| Some((number, entry.1?))).unzip();
            {
                let targets: Vec<_> = bytes.chunks_exact_mut(BLOCK).map(Mutex::new).collect();
                blocks.read(&hashes, |number, bytes| {
                    lock(&targets[not_zero[number]]).copy_from_slice(bytes);
                    Ok(())
                })?;
            }
            let changes = batch.iter().zip(bytes.chunks_exact(BLOCK));
            let changes = changes.map(|((block, _), bytes)| (position(*block), bytes));
            snapshot = snapshot.with_changes(changes).map_err(Error::memory(FAILED))?;
            progress.done = batch.last().map_or(0, |entry| (entry.0 + 1) * BLOCK as u64);
            progress.written += bytes.len() as u64;
            self.observer.tell(progress);
            Ok(())
        })?;
        self.observer.tell(Progress { done: row.len, ..progress });
        Ok(snapshot)
    }
}

/// Returns the lengths of a snapshot. Fails if it is longer than the address space of this system.
fn lengths(row: &ManifestRow) -> Result<(usize, usize)> {
    match (usize::try_from(row.len), usize::try_from(row.content_len)) {
        (Ok(len), Ok(content_len)) => Ok((len, content_len)),
        _ => Err(Error::invalid(format!(
            "cannot load a snapshot of {} bytes: it is longer than the address space of this system",
            row.len
        ))),
    }
}

/// Returns the parts of `bytes` that are the blocks of these entries.
///
/// The entries ascend, and none is a block of zeroes.
fn split<'b>(bytes: &'b mut [u8], entries: &[Entry]) -> Vec<Mutex<&'b mut [u8]>> {
    let mut parts = Vec::with_capacity(entries.len());
    let (mut rest, mut at) = (bytes, 0);
    for (block, _) in entries {
        // A manifest lists no block after its length.
        let start = position(*block);
        let (_, from_start) = rest.split_at_mut(start - at);
        let (part, after) = from_start.split_at_mut(BLOCK);
        parts.push(Mutex::new(part));
        (rest, at) = (after, start + BLOCK);
    }
    parts
}
