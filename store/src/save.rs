//! `Save`: saves a snapshot or a file.
//!
//! Blocks are processed in batches. A batch is read and hashed on all cores, looked up in the index, and compressed on
//! all cores. A separate thread writes the compressed blocks to packs. The list of the blocks is collected in a
//! [`Spool`], from which the manifest is written at the end. `DESIGN.md` has the order in which files become durable.

mod pipeline;
mod write_manifest;

use std::fs::File;
use std::ops::Range;

use memsnap::{Snapshot, page_size};

use crate::chain::{Chain, check_lengths};
use crate::error::{Error, Result};
use crate::format::manifest::{Header, MAX_METADATA};
use crate::format::runs::Entry;
use crate::format::{BLOCK, blocks};
use crate::id::{Id, Reference};
use crate::index::ManifestRow;
use crate::inner::{Inner, now};
use crate::name::check_name;
use crate::progress::{Observer, Progress};
pub(crate) use crate::save::pipeline::is_zero;
use crate::save::pipeline::{Job, Stored};
use crate::save::write_manifest::write_manifest;
use crate::saved::Saved;
use crate::sink::write_file;
use crate::source::{FileSource, Source, block_ranges};
use crate::spool::{Spool, Spooled};

/// Options of saving a snapshot or a file (`S`). Call `run` to save it.
///
/// [`Repository::save`](crate::Repository::save) and [`Repository::save_file`](crate::Repository::save_file) return it.
#[must_use = "nothing is saved until `run` is called"]
#[derive(Debug)]
pub struct Save<'a, S> {
    inner: &'a Inner,
    source: S,
    parent: Parent,
    holes_are_parent: bool,
    allow_no_holes: bool,
    header: Header,
    name: Option<String>,
    observer: Observer<'a>,
}

#[derive(Debug)]
enum Parent {
    None,
    /// A snapshot in memory, whose bytes are compared with those of the new one.
    Loaded(Saved),
    /// A snapshot in the repository, whose hashes are compared with those of the new one.
    Named(Reference),
}

impl<'a, S> Save<'a, S> {
    pub(crate) fn new(inner: &'a Inner, source: S) -> Self {
        let (parent, observer) = (Parent::None, Observer::none());
        Self {
            inner,
            source,
            parent,
            holes_are_parent: false,
            allow_no_holes: false,
            header: Header::default(),
            name: None,
            observer,
        }
    }

    /// Sets the parent: the snapshot that this one was made from. It must be saved and in memory.
    ///
    /// If a snapshot is saved, it is compared with the parent by [`Snapshot::diff`], and only blocks that differ are
    /// hashed and saved. This is cheap if one of the two descends from the other, and correct for any two snapshots.
    /// If a file is saved, this is the same as [`parent_id`](Self::parent_id) with the id of the parent.
    pub fn parent(mut self, saved: &Saved) -> Self {
        self.parent = Parent::Loaded(saved.clone());
        self
    }

    /// Sets the parent by its id or name. It need not be in memory.
    ///
    /// All bytes that are not zero are read and hashed. The manifest lists the blocks that differ from the parent.
    /// Blocks that the repository lacks are written.
    pub fn parent_id(mut self, id: impl Into<Reference>) -> Self {
        self.parent = Parent::Named(id.into());
        self
    }

    /// Adds a label. A second label with the same key replaces the first one.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.header.labels.insert(key.into(), value.into());
        self
    }

    /// Adds an attachment: a small named blob, such as the registers of a processor.
    ///
    /// The labels and attachments of a snapshot have at most 64 MiB together. They are not compressed.
    pub fn attach(mut self, name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        self.header.attachments.insert(name.into(), bytes.into());
        self
    }

    /// Gives the snapshot a name, or moves the name if it exists.
    ///
    /// The name moves in the same transaction in which the snapshot becomes visible.
    ///
    /// A name has 1 to 128 ASCII letters, digits and characters of `._-+@=`. It does not begin with `.` or `-`, does not
    /// end with `.`, and is not an id. Windows reserves `con`, `nul`, `aux`, `prn`, `com0` to `com9` and `lpt0` to `lpt9`,
    /// also with an extension, such as `con.img`. These are refused on all systems, and so is a new name that differs
    /// only in case from an existing one.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets a function that is called with the progress.
    ///
    /// The save holds the lock of the writer meanwhile. So the function must not save, remove or name a snapshot of this
    /// repository, and must not call [`collect`](crate::Repository::collect), [`repair`](crate::Repository::repair) or the
    /// end of a pull into it: these would wait for the save, and fail with [`Error::Busy`]. It can read.
    pub fn progress(mut self, tell: impl FnMut(Progress) + Send + 'a) -> Self {
        self.observer = Observer::new(tell);
        self
    }

    fn save(mut self, source: &dyn Source) -> Result<Written> {
        if let Some(name) = &self.name {
            check_name(name)?;
        }
        if self.header.metadata_len() > MAX_METADATA {
            let len = self.header.metadata_len();
            return Err(Error::invalid(format!(
                "the labels and attachments have {len} bytes, and at most {MAX_METADATA} are allowed: save large ones as \
                 snapshots"
            )));
        }
        let _lock = self.inner.lock_writer()?;
        if let Some(name) = &self.name {
            self.inner.read(|index| index.check_case(name))?;
        }
        let parent = match &self.parent {
            Parent::None => None,
            Parent::Loaded(saved) => Some(self.inner.resolve(&saved.id().into())?),
            Parent::Named(reference) => Some(self.inner.resolve(reference)?),
        };
        if let Some((id, row)) = &parent {
            check_lengths(&*self.inner.storage, *id, row)?;
        }
        (self.header.len, self.header.content_len) = source.len();
        self.header.created = now();
        self.header.parent = parent.as_ref().map(|(id, _)| *id);

        let mut spool = Spool::new(&self.inner.storage, self.inner.temporary("blocks"));
        let stored = self.save_blocks(source, parent.as_ref(), &mut spool)?;
        self.commit(parent.as_ref(), &spool.finish()?, &stored)
    }

    /// Writes all blocks that the repository lacks. Adds all blocks that differ from the parent to `spool`.
    fn save_blocks(
        &mut self,
        source: &dyn Source,
        parent: Option<&(Id, ManifestRow)>,
        spool: &mut Spool,
    ) -> Result<Stored> {
        let failed = "cannot find the bytes to save";
        let limit = blocks(self.header.len);
        let (old, ranges) = match (&self.parent, parent) {
            (Parent::Loaded(saved), Some((_, row))) => {
                let all = saved.snapshot();
                (Some(all), changed(source, all, row, limit, failed)?)
            }
            _ => (None, block_ranges(source.data().map_err(Error::memory(failed))?, limit)),
        };
        let parent_blocks = parent.map_or(0, |(_, row)| blocks(row.len));
        // A block of zeroes is listed if it differs from the parent, or if the parent may have other bytes there.
        let keeps_zeroes = old.is_some() || self.holes_are_parent;
        let mut compare = match parent {
            Some((id, _)) if !keeps_zeroes => {
                Some(Compare { parent: Chain::open(&*self.inner.storage, *id)?.entries()?.peekable() })
            }
            _ => None,
        };
        let mut list = |entry: Entry| match &mut compare {
            Some(compare) => compare.push(entry, spool),
            None if entry.1.is_some() || (keeps_zeroes && entry.0 < parent_blocks) => spool.push(entry),
            None => Ok(()),
        };
        // If a page is one block, each block that `diff` lists differs. Larger pages have blocks that are equal.
        let old = old.filter(|_| page_size() > BLOCK);
        let job = Job { inner: self.inner, source, old, ranges: &ranges };
        let stored = job.run(&mut list, &mut self.observer)?;
        if let Some(compare) = &mut compare {
            compare.finish(limit, spool)?;
        }
        Ok(stored)
    }

    /// Writes the manifest and makes the snapshot visible.
    fn commit(self, parent: Option<&(Id, ManifestRow)>, list: &Spooled, stored: &Stored) -> Result<Written> {
        let (inner, name) = (self.inner, self.name);
        let written = write_manifest(inner, self.header, parent, list)?;
        if let Some(name) = &name {
            write_name(inner, name, written.id)?;
        }
        let bytes = stored.bytes + written.len;
        inner.change(|index| {
            stored.pending.add_to(index)?;
            index.put_manifest(&written.id, &ManifestRow::new(&written.header, true, bytes))?;
            match &name {
                Some(name) => index.set_name(name, Some(&written.id)),
                None => Ok(()),
            }
        })?;
        Ok(Written { id: written.id, bytes, blocks: stored.blocks })
    }
}

impl Save<'_, &Snapshot> {
    /// Saves the snapshot. It is durable when the call returns.
    ///
    /// Without a parent, the call reads and hashes everything that is not zero, on all cores. With a
    /// [`parent`](Self::parent), it reads and hashes the blocks that differ. It compresses and writes those blocks that
    /// the repository lacks. Besides the snapshot, the call needs at most about 200 MiB of memory.
    ///
    /// # Errors
    ///
    /// - [`Error::NotFound`] if the parent is not in this repository.
    /// - [`Error::Invalid`] if the name is not valid, or if the labels and attachments are too long.
    /// - [`Error::Busy`] if another writer does not finish in time.
    /// - [`Error::File`] or [`Error::Index`] if a file cannot be written, for example because the disk is full.
    /// - [`Error::Damaged`] if the index or the manifest of the parent is damaged.
    ///
    /// After an error, the repository has the same snapshots as before, with one exception: if the last sync of the
    /// index failed, the new snapshot may exist.
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
    /// let snapshot = Snapshot::zeroed(1 << 20).unwrap();
    /// let base = repository.save(&snapshot).name("base").run()?;
    ///
    /// let mut view = base.snapshot().view().unwrap();
    /// view[4096] = 1;
    /// let child = view.take_snapshot().unwrap();
    /// let child = repository.save(&child).parent(&base).attach("registers", *b"rip=0").run()?;
    /// assert_eq!(repository.diff("base", &child)?, [4096..8192]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn run(self) -> Result<Saved> {
        let source = self.source;
        let written = self.save(source)?;
        Ok(Saved::new(written.id, source.clone()))
    }
}

impl Save<'_, &File> {
    /// Uses the bytes of the parent for the holes of the file.
    ///
    /// The diff snapshots of Firecracker are such files. `run` fails if there is no parent, and if the file has no hole:
    /// a copy may have filled the holes with zeroes, or the system does not tell where they are. Windows never does, and
    /// FAT and NFS before version 4.2 do not. See [`allow_no_holes`](Self::allow_no_holes).
    ///
    /// The file system decides how long a hole is at least. A written page is saved with zeroes around it where this is
    /// more than 4,096 bytes: on ZFS, whose holes are whole records (128 KiB), and on a `tmpfs` with huge pages. Write
    /// such files to another file system.
    pub fn holes_are_parent(mut self) -> Self {
        self.holes_are_parent = true;
        self
    }

    /// Allows that a file has no holes although [`holes_are_parent`](Self::holes_are_parent) is set.
    ///
    /// Use this if all pages may have changed. All bytes of the file replace those of the parent.
    pub fn allow_no_holes(mut self) -> Self {
        self.allow_no_holes = true;
        self
    }

    /// Saves the contents of the file. They are durable when the call returns.
    ///
    /// The file is read once, on all cores, except for its holes. It is not loaded into memory. The rest of the last
    /// block is zero. If another program writes to the file during the call, the snapshot may contain the old or the
    /// new bytes. The file offset moves during the call, and is restored at its end.
    ///
    /// # Errors
    ///
    /// Those of saving a snapshot; [`Error::Memory`] if the file cannot be read; [`Error::Invalid`] if holes have the
    /// bytes of the parent, and there is no parent or no hole.
    pub fn run(mut self) -> Result<Written> {
        // A file cannot be compared with memory by `Snapshot::diff`. It is compared with the hashes of the parent.
        if let Parent::Loaded(saved) = &self.parent {
            self.parent = Parent::Named(saved.id().into());
        }
        if self.holes_are_parent && matches!(self.parent, Parent::None) {
            return Err(Error::invalid(
                "cannot use the bytes of the parent for the holes of the file: there is no parent; set one",
            ));
        }
        let source = FileSource::new(self.source).map_err(Error::memory("cannot read the file"))?;
        if self.holes_are_parent && !self.allow_no_holes {
            let has_hole = source.has_hole().map_err(Error::memory("cannot find the holes of the file"))?;
            if !has_hole && source.len().1 > 0 {
                return Err(Error::invalid(NO_HOLES));
            }
        }
        self.save(&source)
    }
}

const NO_HOLES: &str = "the holes of the file would have the bytes of the parent, and the file has no hole: a copy may have \
    filled them with zeroes, or its file system does not tell where they are; save the original from a file system with \
    holes, or say that all bytes are meant (`allow_no_holes`, `--allow-no-holes`)";

/// What a save has written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Written {
    /// The id of the snapshot.
    pub id: Id,
    /// The number of bytes that were added to the repository: packs and the manifest.
    pub bytes: u64,
    /// The number of blocks that were added.
    pub blocks: u64,
}

/// Returns the blocks in which the source may differ from the parent.
fn changed(
    source: &dyn Source,
    old: &Snapshot,
    row: &ManifestRow,
    limit: u64,
    failed: &'static str,
) -> Result<Vec<Range<u64>>> {
    let changes = source.changes(old).map_err(Error::memory(failed))?;
    // A snapshot that was loaded on a system with larger pages is longer than the saved one.
    let behind = (old.len() as u64 > row.len).then_some(row.len..old.len() as u64);
    let mut bytes: Vec<_> = changes.into_iter().chain(behind).collect();
    bytes.sort_unstable_by_key(|range| range.start);
    Ok(block_ranges(bytes, limit))
}

/// Writes the file in `names/` from which `repair` reads what a name stands for.
pub(crate) fn write_name(inner: &Inner, name: &str, id: Id) -> Result<()> {
    write_file(inner, "names", |out| {
        writeln!(out, "{id}").map_err(Error::file("cannot write", inner.path("names")))?;
        Ok((name.to_owned(), ()))
    })
}

/// Compares the blocks of a source with those of its parent, by their hashes.
struct Compare {
    parent: std::iter::Peekable<crate::chain::Entries>,
}

impl Compare {
    /// Adds a block to the list if it differs, and all blocks before it that only the parent has.
    fn push(&mut self, (block, hash): Entry, spool: &mut Spool) -> Result<()> {
        self.finish(block, spool)?;
        match self.parent.next_if(|old| old.as_ref().map_or(true, |old| old.0 == block)).transpose()? {
            Some((_, old)) if old == hash => Ok(()),
            None if hash.is_none() => Ok(()),
            _ => spool.push((block, hash)),
        }
    }

    /// Lists the blocks below `limit` that only the parent has. They are zero now.
    fn finish(&mut self, limit: u64, spool: &mut Spool) -> Result<()> {
        while let Some(old) = self.parent.next_if(|old| old.as_ref().map_or(true, |old| old.0 < limit)) {
            spool.push((old?.0, None))?;
        }
        Ok(())
    }
}
