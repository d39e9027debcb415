//! Writes a manifest: relative to its parent, relative to the full manifest of the chain, or in full.

use std::iter::Peekable;

use crate::chain::{Chain, Entries};
use crate::error::{Error, Result};
use crate::format::blocks;
use crate::format::manifest::{self, Header};
use crate::format::runs::Entry;
use crate::id::Id;
use crate::index::ManifestRow;
use crate::inner::Inner;
use crate::sink::write_file;
use crate::spool::Spooled;

/// The greatest number of partial manifests in a chain.
const DEPTH: u32 = 32;

/// The partial manifests of a chain list at most one block for this many blocks of the full one.
const PART: u64 = 4;

/// The partial manifests of a chain may list this many blocks, even if the full one lists few.
const ALWAYS: u64 = 1024;

/// A manifest that was written.
pub(super) struct WrittenManifest {
    pub(super) id: Id,
    pub(super) len: u64,
    pub(super) header: Header,
}

/// The base of a new manifest.
enum Form {
    /// None.
    Full,
    /// The full manifest at the end of the chain of the parent.
    OverFull(Id),
    /// The parent.
    OverParent,
}

/// Writes a manifest with the blocks of `list`, which are relative to the parent if there is one.
pub(super) fn write_manifest(
    inner: &Inner,
    mut header: Header,
    parent: Option<&(Id, ManifestRow)>,
    list: &Spooled,
) -> Result<WrittenManifest> {
    let Some((parent, row)) = parent else {
        (header.entries, header.chain_entries) = (list.entries(), 0);
        return write(inner, header, || list.read());
    };
    let form = choose_form(inner, &header, *parent, row, list.entries())?;
    let storage = &*inner.storage;
    match form {
        Form::OverParent => {
            header.base = Some(*parent);
            header.depth = row.depth + 1;
            header.entries = list.entries();
            header.chain_entries = row.chain_entries + list.entries();
            write(inner, header, || list.read())
        }
        Form::OverFull(full) => {
            let all = || merged(list, Chain::open_to(storage, *parent, Some(full))?, &header, true);
            let entries = count(all()?)?;
            let header =
                Header { base: Some(full), depth: 1, entries, chain_entries: entries, ..header.clone() };
            write(inner, header.clone(), || {
                merged(list, Chain::open_to(storage, *parent, Some(full))?, &header, true)
            })
        }
        Form::Full => {
            let entries = count(merged(list, Chain::open(storage, *parent)?, &header, false)?)?;
            let header = Header { entries, ..header };
            write(inner, header.clone(), || merged(list, Chain::open(storage, *parent)?, &header, false))
        }
    }
}

fn count(entries: impl Iterator<Item = Result<Entry>>) -> Result<u64> {
    let mut count = 0;
    for entry in entries {
        entry?;
        count += 1;
    }
    Ok(count)
}

fn choose_form(inner: &Inner, header: &Header, parent: Id, row: &ManifestRow, entries: u64) -> Result<Form> {
    let chain = inner.read(|index| {
        let mut chain = vec![(parent, *row)];
        while let Some(base) =
            chain.last().and_then(|(_, row)| row.base).filter(|_| chain.len() <= DEPTH as usize)
        {
            let row = index.manifest(&base)?;
            let unknown = || Error::damaged("index.redb", format!("it does not have the manifest {base}"));
            chain.push((base, row.ok_or_else(unknown)?));
        }
        Ok(chain)
    })?;
    let Some((full, bottom)) = chain.last() else { return Ok(Form::Full) };
    // A manifest that is shorter than the full one hides blocks of it. A merged list would have to list these as zeroes.
    let shrinks = header.len < bottom.len || chain.iter().any(|(_, row)| row.len < bottom.len);
    Ok(
        if bottom.base.is_some()
            || row.chain_entries.saturating_add(entries) > (bottom.entries / PART).max(ALWAYS)
        {
            Form::Full
        } else if row.depth < DEPTH {
            Form::OverParent
        } else if shrinks {
            Form::Full
        } else {
            Form::OverFull(*full)
        },
    )
}

fn write<I>(inner: &Inner, header: Header, entries: impl FnOnce() -> Result<I>) -> Result<WrittenManifest>
where
    I: Iterator<Item = Result<Entry>>,
{
    let (id, len) = write_file(inner, "manifests", |out| {
        let failed = |error| Error::file("cannot write", inner.path("manifests"))(error);
        let entries = entries()?.map(|entry| entry.map_err(Failed::Store));
        let (id, len) = manifest::write(out, &header, entries).map_err(|error| match error {
            Failed::Io(error) => failed(error),
            Failed::Store(error) => error,
        })?;
        Ok((id.to_string(), (id, len)))
    })?;
    Ok(WrittenManifest { id, len, header })
}

/// Why a manifest could not be written.
enum Failed {
    Io(std::io::Error),
    Store(Error),
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

/// Merges a list of blocks with the blocks of the chain that the list is relative to.
fn merged<'a>(
    list: &'a Spooled,
    chain: Chain,
    header: &Header,
    zeroes: bool,
) -> Result<impl Iterator<Item = Result<Entry>> + use<'a>> {
    let limit = blocks(header.len);
    Ok(Merged { new: list.read()?.peekable(), old: chain.entries()?.peekable(), limit, zeroes })
}

struct Merged<L: Iterator> {
    new: Peekable<L>,
    old: Peekable<Entries>,
    /// The number of blocks of the new manifest.
    limit: u64,
    zeroes: bool,
}

impl<L: Iterator<Item = Result<Entry>>> Iterator for Merged<L> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        loop {
            let block =
                |entry: Option<&Result<Entry>>| entry.map(|entry| entry.as_ref().map_or(0, |entry| entry.0));
            let entry = match (block(self.new.peek()), block(self.old.peek())) {
                (Some(new), Some(old)) if old < new => self.old.next(),
                (Some(new), Some(old)) => {
                    if old == new {
                        self.old.next_if(Result::is_ok);
                    }
                    self.new.next()
                }
                (Some(_), None) => self.new.next(),
                (None, _) => self.old.next(),
            };
            match entry {
                Some(Ok((block, hash))) if block >= self.limit || (hash.is_none() && !self.zeroes) => {}
                entry => return entry,
            }
        }
    }
}
