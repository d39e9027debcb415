//! Checks of packs that are known only from the places that other machines have pushed.
//!
//! Places that are wrong would make this machine send nothing, and publish a snapshot that nobody can pull. So a push
//! reads the list of blocks at the end of each such pack before it relies on it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::known::Known;
use crate::blocks::pack_path;
use crate::error::{Error, Result};
use crate::format::BLOCK;
use crate::format::pack::{Contents, LIST_HEADER, LIST_TRAILER, list_len, read_contents};
use crate::index::PackRow;
use crate::storage::ReadFile;

impl Known<'_> {
    /// Returns the numbers of the packs that are known only from what other machines have pushed.
    pub(super) fn learned(&self) -> Result<BTreeSet<u32>> {
        let rows = self.rows()?;
        Ok(rows.into_iter().filter(|(_, row)| row.blocks == 0).map(|(number, _)| number).collect())
    }

    /// Reads the lists of blocks of packs. `relied` has the number of blocks of each pack that a push would not send.
    ///
    /// Forgets a pack if its list is damaged, or longer than the blocks. `between` is called before each pack.
    pub(super) fn check_learned(
        &mut self,
        relied: &BTreeMap<u32, u64>,
        mut between: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let mut rows = self.rows()?;
        // What others said of them is replaced by what they say themselves.
        self.forget(&relied.keys().copied().collect())?;
        for (number, blocks) in relied {
            let Some(row) = rows.remove(number) else { continue };
            between()?;
            match self.read_list(&row, blocks.saturating_mul(BLOCK as u64)) {
                Ok(Some(contents)) => self.add_pack(row.id, row.len, &contents)?,
                Ok(None) | Err(Error::Damaged { .. } | Error::Newer { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads the list of blocks of a pack of the remote, unless it is gone or its list has more than `max` bytes.
    fn read_list(&self, row: &PackRow, max: u64) -> Result<Option<Contents>> {
        let path = pack_path(&row.id);
        let objects = self.remote().objects();
        // The length is what others said. If it is wrong, the last bytes are not those of a pack.
        let Some(start) = row.len.checked_sub(LIST_TRAILER) else { return Ok(None) };
        let Some(trailer) = objects.get_range(&path, start..row.len)? else { return Ok(None) };
        let Some(start) = list_len(&trailer).filter(|len| *len <= max).and_then(|len| start.checked_sub(len))
        else {
            return Ok(None);
        };
        let Some(parts) = objects.get_ranges(&path, &[0..LIST_HEADER, start..row.len])? else {
            return Ok(None);
        };
        let [first, last] = &parts[..] else { return Ok(None) };
        let ends = Ends { len: row.len, first, last };
        read_contents(&ends).map(Some).map_err(|wrong| wrong.of(&objects.full(&path)))
    }
}

/// The first and the last bytes of an object.
#[derive(Debug)]
struct Ends<'a> {
    len: u64,
    first: &'a [u8],
    last: &'a [u8],
}

impl ReadFile for Ends<'_> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let from_last = offset.checked_sub(self.len - self.last.len() as u64);
        let (bytes, at) = from_last.map_or((self.first, offset), |at| (self.last, at));
        let at = usize::try_from(at).map_err(io::Error::other)?;
        let found = bytes.get(at..).and_then(|bytes| bytes.get(..buffer.len()));
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}
