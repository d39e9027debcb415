//! Checks of pages before redb sees them.
//!
//! A damaged database could make redb end the process, which [`super::gate::Gate`] cannot prevent. redb allocates the
//! memory for a page before it reads the page, and takes the length, up to terabytes, from the number of the page. A
//! failed allocation ends the process. redb also follows references between pages without a limit, which can overflow
//! the stack. And it compares pages with their checksums only when it recovers from a crash, so it trusts a damaged
//! list of free pages.
//!
//! So each page is checked when it is read. It has to agree with the checksum in its reference. The pages to which it
//! refers have to be within the file, must not overlap, and must have only one reference each. The depth of a tree is
//! limited. Pages that redb has written since the file was opened are not checked.
//!
//! The offsets are those of format 3 of redb, which its `docs/design.md` describes.

use std::collections::BTreeMap;
use std::io;

use xxhash_rust::xxh3::xxh3_128;

/// The length of the shortest page.
const PAGE: u64 = 4096;
/// The length of the header.
const HEADER: usize = 320;
/// The length of a region. redb divides its file into regions.
const REGION: u64 = 1 << 32;
/// The greatest depth of a tree. Even with the fewest keys in each page, such a tree has 2^32 pages.
const MAX_DEPTH: u8 = 32;
/// The types of pages.
const LEAF: u8 = 1;
const BRANCH: u8 = 2;
/// The type of a table that is not a multimap.
const NORMAL: u8 = 3;

/// The pages of a file that are known.
#[derive(Default, Debug)]
pub(super) struct Pages {
    /// The pages to which other pages refer, by offset.
    known: BTreeMap<u64, Known>,
    /// The ends of the ranges that redb has written, by offset.
    written: BTreeMap<u64, u64>,
}

/// A page to which another one refers.
#[derive(Clone, Copy, Debug)]
struct Known {
    end: u64,
    /// The offset of the page that refers to it. The header is at offset 0.
    parent: u64,
    /// The distance from the root of its tree.
    depth: u8,
    /// The checksum of its bytes.
    checksum: u128,
    tree: Tree,
}

/// The type of a tree.
#[derive(Clone, Copy, Debug)]
struct Tree {
    /// Whether it contains references to the roots of tables.
    tables: bool,
    /// The length of its keys, if it is the same for all.
    key: Option<usize>,
    /// The length of its values, if it is the same for all.
    value: Option<usize>,
}

/// The tree with the list of tables.
const TABLES: Tree = Tree { tables: true, key: None, value: None };

/// A reference to a page.
#[derive(Clone, Copy)]
struct Reference {
    page: u64,
    checksum: u128,
}

impl Pages {
    /// Notes that redb has written a range.
    pub(super) fn wrote(&mut self, offset: u64, len: usize) {
        if offset == 0 {
            return;
        }
        let end = offset + len as u64;
        while let Some((&start, _)) =
            self.known.range(..end).next_back().filter(|(_, known)| known.end > offset)
        {
            self.known.remove(&start);
        }
        while let Some((&start, _)) =
            self.written.range(..end).next_back().filter(|(_, last)| **last > offset)
        {
            self.written.remove(&start);
        }
        self.written.insert(offset, end);
    }

    /// Checks a page that redb reads from a file of `file_len` bytes.
    pub(super) fn check(&mut self, offset: u64, bytes: &[u8], file_len: u64) -> io::Result<()> {
        if offset == 0 {
            return if bytes.len() < HEADER { Ok(()) } else { self.check_header(bytes, file_len) };
        }
        let end = offset + bytes.len() as u64;
        if self.written.get(&offset) == Some(&end) {
            return Ok(());
        }
        let Some(page) = self.known.get(&offset).copied().filter(|page| page.end == end) else {
            return Err(damaged(format!("no page refers to the page at {offset}")));
        };
        if xxh3_128(&bytes[..used(bytes, page.tree)?]) != page.checksum {
            return Err(damaged(format!("the checksum of the page at {offset} is wrong")));
        }
        match bytes.first() {
            Some(&LEAF) if page.tree.tables => self.check_tables(offset, bytes, file_len),
            Some(&LEAF) => Ok(()),
            Some(&BRANCH) if !page.tree.tables => self.check_branch(offset, &page, bytes, file_len),
            _ => Err(damaged(format!("the page at {offset} is not a leaf and not a branch"))),
        }
    }

    /// Checks the header, and notes references to the roots of the last commit.
    fn check_header(&mut self, header: &[u8], file_len: u64) -> io::Result<()> {
        let flags = header[9];
        let (page, region_header, region) =
            (number32(header, 12)?, number32(header, 16)?, number32(header, 20)?);
        let layout = u64::from(page) == PAGE && region_header == 0 && u64::from(region) * PAGE == REGION;
        // After a two-phase commit, the last commit is complete, so redb does not read the one before.
        if !layout || flags & 4 == 0 {
            return Err(damaged("its header has values that the store never writes".to_owned()));
        }
        let slot = 64 + 128 * usize::from(flags & 1);
        if xxh3_128(&header[slot..slot + 112]) != number128(header, slot + 112)? {
            return Err(damaged("the checksum of its header is wrong".to_owned()));
        }
        for (present, root) in [(1, 8), (2, 40)] {
            if header[slot + present] != 0 {
                self.refer((0, 0), TABLES, reference(header, slot + root)?, file_len)?;
            }
        }
        Ok(())
    }

    /// Checks a page with the roots of tables.
    fn check_tables(&mut self, offset: u64, page: &[u8], file_len: u64) -> io::Result<()> {
        let count = usize::from(number16(page, 2)?);
        // The page has the ends of the keys, the ends of the values, the keys, and the values.
        let end = |index: usize| Ok::<_, io::Error>(number32(page, 4 + 4 * index)? as usize);
        for index in 0..count {
            let start = if index == 0 { end(count - 1)? } else { end(count + index - 1)? };
            let Some(table) = page.get(start..end(count + index)?) else {
                return Err(damaged(format!("the page at {offset} is not a list of tables")));
            };
            // A value has a type, a length, whether there is a root, the root, its checksum, and the length again. Then
            // it has, for keys and for values, whether they have a fixed length, and this length.
            match table {
                [NORMAL, _, _, _, _, _, _, _, _, 0, ..] => {}
                [NORMAL, _, _, _, _, _, _, _, _, 1, ..] => {
                    let (key, value) = (width(table, 42)?, width(table, 47)?);
                    let tree = Tree { tables: false, key, value };
                    self.refer((offset, 0), tree, reference(table, 10)?, file_len)?;
                }
                _ => {
                    return Err(damaged(format!("the page at {offset} contains a table of an unknown type")));
                }
            }
        }
        Ok(())
    }

    /// Checks a page with references to other pages.
    fn check_branch(&mut self, offset: u64, known: &Known, page: &[u8], file_len: u64) -> io::Result<()> {
        let children = usize::from(number16(page, 2)?) + 1;
        // The page has a type, the number of keys, a checksum of 16 bytes for each child, and the number of each child.
        for child in 0..children {
            let reference = Reference {
                page: number64(page, 8 + 16 * children + 8 * child)?,
                checksum: number128(page, 8 + 16 * child)?,
            };
            self.refer((offset, known.depth + 1), known.tree, reference, file_len)?;
        }
        Ok(())
    }

    /// Checks and notes a reference from the page at `parent`.
    fn refer(
        &mut self,
        (parent, depth): (u64, u8),
        tree: Tree,
        Reference { page, checksum }: Reference,
        file_len: u64,
    ) -> io::Result<()> {
        let order = page >> 59;
        let index = page & (0xF_FFFF_u64 >> order);
        let region = (page >> 20) & 0xF_FFFF;
        let len = PAGE << order;
        let start = PAGE + region * REGION + index * len;
        let end = start + len;
        let last = self.known.range(..end).next_back().filter(|(_, known)| known.end > start);
        let is_free =
            last.is_none_or(|(&other, known)| other == start && known.end == end && known.parent == parent);
        if end > file_len || depth > MAX_DEPTH || !is_free {
            return Err(damaged(format!(
                "the page at {parent} refers to {len} bytes at {start}, which cannot be a page"
            )));
        }
        self.known.insert(start, Known { end, parent, depth, checksum, tree });
        Ok(())
    }
}

/// Returns the number of used bytes of a page, which are those of the checksum.
fn used(page: &[u8], tree: Tree) -> io::Result<usize> {
    let count = usize::from(number16(page, 2)?);
    let last = count.checked_sub(1).ok_or_else(|| damaged("a page has no entries".to_owned()))?;
    // If the lengths of entries are not fixed, a list of numbers of 4 bytes has their ends.
    let list = |width: Option<usize>| if width.is_some() { 0 } else { 4 * count };
    let end = |at: usize| Ok::<_, io::Error>(number32(page, at)? as usize);
    let used = if page[0] == BRANCH {
        let ends = 8 + 24 * (count + 1);
        match tree.key {
            Some(width) => width.checked_mul(count).and_then(|len| len.checked_add(ends)),
            None => Some(end(ends + 4 * last)?),
        }
    } else {
        match (tree.key, tree.value) {
            (_, None) => Some(end(4 + list(tree.key) + 4 * last)?),
            (None, Some(value)) => {
                value.checked_mul(count).and_then(|len| len.checked_add(end(4 + 4 * last).ok()?))
            }
            (Some(key), Some(value)) => {
                key.checked_add(value).and_then(|len| len.checked_mul(count)?.checked_add(4))
            }
        }
    };
    used.filter(|used| *used <= page.len())
        .ok_or_else(|| damaged("the entries of a page are longer than the page".to_owned()))
}

/// Returns the reference to a page at `offset`: its number and its checksum.
fn reference(page: &[u8], offset: usize) -> io::Result<Reference> {
    Ok(Reference { page: number64(page, offset)?, checksum: number128(page, offset + 8)? })
}

/// Returns the length of the keys or values of a table, if it is fixed.
fn width(table: &[u8], offset: usize) -> io::Result<Option<usize>> {
    let [given] = bytes::<1>(table, offset)?;
    let width = number32(table, offset + 1)? as usize;
    Ok((given != 0).then_some(width))
}

/// Returns the error for a damaged file.
fn damaged(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Reads `N` bytes.
fn bytes<const N: usize>(page: &[u8], offset: usize) -> io::Result<[u8; N]> {
    let bytes = page.get(offset..).and_then(|rest| rest.first_chunk::<N>());
    bytes
        .copied()
        .ok_or_else(|| damaged(format!("a page of {} bytes is too short for what it contains", page.len())))
}

fn number16(page: &[u8], offset: usize) -> io::Result<u16> {
    bytes(page, offset).map(u16::from_le_bytes)
}

fn number32(page: &[u8], offset: usize) -> io::Result<u32> {
    bytes(page, offset).map(u32::from_le_bytes)
}

fn number64(page: &[u8], offset: usize) -> io::Result<u64> {
    bytes(page, offset).map(u64::from_le_bytes)
}

fn number128(page: &[u8], offset: usize) -> io::Result<u128> {
    bytes(page, offset).map(u128::from_le_bytes)
}
