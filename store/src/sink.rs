//! `Sink`: writes frames to packs, and returns the rows of the packs for the index.

use std::io::{self, BufWriter, Write};
use std::mem;

use crate::blocks::pack_path;
use crate::error::{Error, Result};
use crate::format::pack::{Contents, Frame, PackWriter};
use crate::id::Id;
use crate::index::{PackRow, Place, Writer};
use crate::inner::{Inner, now};
use crate::storage::WriteFile;

/// Writes frames to packs.
///
/// The bytes of a pack are durable when it ends, and its name after [`Sink::sync`].
pub(crate) struct Sink<'a> {
    inner: &'a Inner,
    /// Whether packs keep their temporary names and are not synced, because they are only sent to a remote.
    temporary: bool,
    open: Option<Open>,
    /// The temporary paths, the rows and the lists of the packs that have ended.
    ended: Vec<(String, PackRow, Contents)>,
    /// The number of bytes in all packs that have ended.
    pub(crate) bytes: u64,
    /// The number of blocks in them.
    pub(crate) blocks: u64,
}

struct Open {
    writer: PackWriter<BufWriter<Box<dyn WriteFile>>>,
    path: String,
}

impl<'a> Sink<'a> {
    pub(crate) fn new(inner: &'a Inner) -> Self {
        Self { inner, temporary: false, open: None, ended: Vec::new(), bytes: 0, blocks: 0 }
    }

    /// Returns a sink whose packs are files with temporary names.
    ///
    /// See [`take_temporary`](Self::take_temporary).
    #[cfg(feature = "remote")]
    pub(crate) fn temporary(inner: &'a Inner) -> Self {
        let mut sink = Self::new(inner);
        sink.temporary = true;
        sink
    }

    /// Returns the paths, the rows and the lists of ended packs. The caller removes the files.
    #[cfg(feature = "remote")]
    pub(crate) fn take_temporary(&mut self) -> Vec<(String, PackRow, Contents)> {
        mem::take(&mut self.ended)
    }

    /// Appends a frame to the current pack, or to a new one.
    pub(crate) fn push(&mut self, frame: &Frame) -> Result<()> {
        if self.open.as_ref().is_some_and(|open| open.writer.is_full(frame)) {
            self.end_pack()?;
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let path = self.inner.temporary("pack");
                let failed = Error::file("cannot write", self.inner.path(&path));
                let file = self.inner.storage.create(&path);
                let writer = file.and_then(|file| PackWriter::new(BufWriter::with_capacity(1 << 20, file)));
                let writer = writer.map_err(failed)?;
                self.open.insert(Open { writer, path })
            }
        };
        open.writer.push(frame).map_err(Error::file("cannot write", self.inner.path(&open.path)))
    }

    /// Ends the current pack: makes its bytes durable, and renames it to its id.
    pub(crate) fn end_pack(&mut self) -> Result<()> {
        let Some(Open { writer, path }) = self.open.take() else { return Ok(()) };
        let storage = &self.inner.storage;
        let finish = || -> io::Result<(Id, u64, Contents)> {
            let (id, len, contents, mut out) = writer.finish()?;
            out.flush()?;
            if self.temporary {
                return Ok((id, len, contents));
            }
            out.get_mut().sync()?;
            drop(out);
            storage.rename(&path, &pack_path(&id))?;
            Ok((id, len, contents))
        };
        let finished = finish();
        if finished.is_err() {
            // If this fails, a collection removes the file. After a rename that failed late, there is no such file.
            let _ = self.inner.storage.remove(&path);
        }
        let (id, len, contents) = finished.map_err(Error::file("cannot write", self.inner.path(&path)))?;
        let blocks = u32::try_from(contents.hashes.len()).unwrap_or(u32::MAX);
        self.bytes += len;
        self.blocks += u64::from(blocks);
        self.ended.push((path, PackRow { id, len, blocks, created: now() }, contents));
        Ok(())
    }

    /// Returns the number of blocks in ended packs that are not in the index yet.
    pub(crate) fn pending(&self) -> usize {
        self.ended.iter().map(|(_, _, contents)| contents.hashes.len()).sum()
    }

    /// Ends the current pack, and makes the names of all packs durable.
    ///
    /// Returns the packs to add to the index.
    pub(crate) fn sync(&mut self) -> Result<Pending> {
        self.end_pack()?;
        if !self.ended.is_empty() {
            let storage = &self.inner.storage;
            storage.sync_folder("packs").map_err(Error::file("cannot sync", self.inner.path("packs")))?;
        }
        Ok(Pending(
            mem::take(&mut self.ended).into_iter().map(|(_, row, contents)| (row, contents)).collect(),
        ))
    }
}

impl Drop for Sink<'_> {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            drop(open.writer);
            // If this fails, a collection removes the file.
            let _ = self.inner.storage.remove(&open.path);
        }
    }
}

/// Durable packs that are not in the index yet.
pub(crate) struct Pending(Vec<(PackRow, Contents)>);

impl Pending {
    /// Returns the hashes of all blocks.
    pub(crate) fn hashes(&self) -> impl Iterator<Item = &Id> {
        self.0.iter().flat_map(|(_, contents)| &contents.hashes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the packs and their blocks to the index.
    pub(crate) fn add_to(&self, index: &mut Writer<'_>) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let mut next = index.next_pack()?;
        let mut packs = Vec::with_capacity(self.0.len());
        let mut entries = Vec::new();
        for (row, contents) in &self.0 {
            // Two pulls of the same blocks write the same pack, and so does a save that stores lost blocks again.
            let number = match index.pack_number(&row.id)? {
                Some(number) => number,
                None => {
                    next += 1;
                    next - 1
                }
            };
            packs.push((number, *row));
            entries.extend(places(number, contents));
        }
        index.add_packs(&packs, entries)
    }
}

/// Returns the hashes and the places of the blocks of a pack.
pub(crate) fn places(pack: u32, contents: &Contents) -> impl Iterator<Item = (Id, Place)> {
    contents.frames.iter().flat_map(move |frame| {
        let hashes = &contents.hashes[frame.first as usize..][..frame.blocks.into()];
        (0..frame.blocks).zip(hashes).map(move |(number, hash)| {
            let place = Place {
                pack,
                offset: frame.offset,
                stored: frame.stored,
                number,
                blocks: frame.blocks,
                encoding: frame.encoding as u8,
            };
            (*hash, place)
        })
    })
}

/// Writes a file under a temporary name, syncs it, renames it, and syncs its folder.
///
/// `write` returns the new path and a value.
pub(crate) fn write_file<T>(
    inner: &Inner,
    folder: &'static str,
    write: impl FnOnce(&mut dyn Write) -> Result<(String, T)>,
) -> Result<T> {
    let temporary = inner.temporary(if folder.is_empty() { "config" } else { folder });
    let failed = || Error::file("cannot write", inner.path(&temporary));
    let file = inner.storage.create(&temporary).map_err(failed())?;
    let mut out = BufWriter::with_capacity(64 << 10, file);
    let result = write(&mut out).and_then(|result| {
        out.flush().and_then(|()| out.get_mut().sync()).map_err(failed())?;
        Ok(result)
    });
    drop(out);
    let renamed = result.and_then(|(path, value)| {
        let path = if folder.is_empty() { path } else { format!("{folder}/{path}") };
        inner.storage.rename(&temporary, &path).map_err(Error::file("cannot write", inner.path(&path)))?;
        Ok(value)
    });
    if renamed.is_err() {
        // If this fails, a collection removes the file.
        let _ = inner.storage.remove(&temporary);
    }
    let value = renamed?;
    inner.storage.sync_folder(folder).map_err(Error::file("cannot sync", inner.path(folder)))?;
    Ok(value)
}
