//! The values in the tables of the index, and their checks.
//!
//! redb compares its pages with checksums only when it recovers from a crash. So each value ends with a checksum of 8
//! bytes: the first bytes of the BLAKE3 hash of the length of the table's name (8 bytes), the name, the BLAKE3 hash of
//! the value, and the key.

use crate::error::{Error, Result};
use crate::format::manifest::Header;
use crate::id::Id;

/// The length of a checksum.
const CHECKSUM: usize = 8;
/// The length of an entry of a bucket.
pub(super) const ENTRY: usize = 48;
/// The largest number of bits that select a bucket.
const MAX_BITS: u8 = 32;
/// The number of entries that a bucket has at most on average.
const BUCKET: u64 = 64;

/// The place of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    /// The number of the pack.
    pub(crate) pack: u32,
    /// The offset of the frame in the pack.
    pub(crate) offset: u32,
    /// The length of the frame in the pack.
    pub(crate) stored: u32,
    /// The number of the block in the frame.
    pub(crate) number: u8,
    /// The number of blocks in the frame.
    pub(crate) blocks: u8,
    /// The encoding of the frame.
    pub(crate) encoding: u8,
}

/// A pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PackRow {
    /// The id.
    pub(crate) id: Id,
    /// The length of the file.
    pub(crate) len: u64,
    /// The number of blocks.
    pub(crate) blocks: u32,
    /// The time when the pack was added to the index, in milliseconds since 1970.
    pub(crate) created: u64,
}

/// A manifest, without its runs, labels and attachments.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct ManifestRow {
    /// Whether the snapshot is listed.
    ///
    /// Otherwise, the manifest is only kept as the base of another one, or not needed.
    pub(crate) listed: bool,
    /// The parent: the snapshot that this one was made from.
    pub(crate) parent: Option<Id>,
    /// The base: the manifest that this one is relative to.
    pub(crate) base: Option<Id>,
    /// The length of the snapshot.
    pub(crate) len: u64,
    /// The content length of the snapshot.
    pub(crate) content_len: u64,
    /// The time when the snapshot was saved, in milliseconds since 1970.
    pub(crate) created: u64,
    /// The number of manifests below this one in its chain.
    pub(crate) depth: u32,
    /// The number of blocks that its own runs list.
    pub(crate) entries: u64,
    /// The number of blocks that all partial manifests of its chain list.
    pub(crate) chain_entries: u64,
    /// The number of bytes that saving the snapshot added to the repository.
    pub(crate) stored: u64,
}

impl ManifestRow {
    /// Returns the row of a manifest with this header.
    pub(crate) fn new(header: &Header, listed: bool, stored: u64) -> Self {
        Self {
            listed,
            parent: header.parent,
            base: header.base,
            len: header.len,
            content_len: header.content_len,
            created: header.created,
            depth: header.depth,
            entries: header.entries,
            chain_entries: header.chain_entries,
            stored,
        }
    }
}

/// A run in the table of runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RunRow {
    /// The number of first bits of a hash that select the bucket.
    pub(super) bits: u8,
    /// The number of entries.
    pub(super) entries: u64,
}

impl RunRow {
    /// Returns the row of a run with this many entries.
    pub(super) fn new(entries: u64) -> Self {
        let buckets = entries.div_ceil(BUCKET).checked_next_power_of_two().unwrap_or(1 << 63);
        let bits = u8::try_from(buckets.ilog2()).map_or(MAX_BITS, |bits| bits.min(MAX_BITS));
        Self { bits, entries }
    }

    /// Returns the number of the bucket that contains a hash.
    pub(super) fn bucket(&self, hash: &Id) -> u32 {
        let [a, b, c, d, ..] = *hash.as_bytes();
        u32::from_be_bytes([a, b, c, d]).checked_shr(32 - u32::from(self.bits)).unwrap_or(0)
    }

    /// Returns the size class. The lengths of two runs of one class differ by less than a factor of four.
    pub(super) fn class(&self) -> u32 {
        self.entries.max(1).ilog2() / 2
    }
}

/// Returns an error for damage of the index.
pub(super) fn damaged(what: impl Into<String>) -> Error {
    Error::damaged("index.redb", what)
}

/// Returns the checksum of a value.
///
/// The value is hashed separately, because BLAKE3 is faster for bytes that are passed in one call.
fn checksum(table: &str, key: &[u8], body: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = blake3::Hasher::new();
    // With the length, no two pairs of a table and a key have the same bytes.
    hasher.update(&(table.len() as u64).to_le_bytes()).update(table.as_bytes());
    hasher.update(blake3::hash(body).as_bytes()).update(key);
    let mut checksum = [0; CHECKSUM];
    checksum.copy_from_slice(&hasher.finalize().as_bytes()[..CHECKSUM]);
    checksum
}

/// Appends the checksum to a value.
pub(super) fn seal(table: &str, key: &[u8], mut body: Vec<u8>) -> Vec<u8> {
    let checksum = checksum(table, key, &body);
    body.extend(checksum);
    body
}

/// Checks and removes the checksum of a value.
pub(super) fn unseal<'a>(table: &str, key: &[u8], value: &'a [u8]) -> Result<&'a [u8]> {
    match value.split_last_chunk::<CHECKSUM>() {
        Some((body, found)) if *found == checksum(table, key, body) => Ok(body),
        _ => Err(damaged(format!("a value of the table `{table}` has a wrong checksum"))),
    }
}

/// Removes the first `N` bytes of `bytes`.
fn take<const N: usize>(table: &str, bytes: &mut &[u8]) -> Result<[u8; N]> {
    match bytes.split_first_chunk::<N>() {
        Some((first, rest)) => {
            *bytes = rest;
            Ok(*first)
        }
        None => Err(damaged(format!("a value of the table `{table}` is too short"))),
    }
}

/// Checks that all bytes of a value were used.
fn finish(table: &str, bytes: &[u8]) -> Result<()> {
    if bytes.is_empty() {
        Ok(())
    } else {
        Err(damaged(format!("a value of the table `{table}` is too long")))
    }
}

/// A value that is stored with a checksum.
pub(super) trait Row: Sized {
    /// Returns the bytes.
    fn encode(&self) -> Vec<u8>;

    /// Reads a value of `table` from the beginning of `bytes`, and removes its bytes.
    fn decode(table: &str, bytes: &mut &[u8]) -> Result<Self>;

    /// Returns the bytes with the checksum.
    fn to_value(&self, table: &str, key: &[u8]) -> Vec<u8> {
        seal(table, key, self.encode())
    }

    /// Reads a value.
    fn from_value(table: &str, key: &[u8], value: &[u8]) -> Result<Self> {
        let mut body = unseal(table, key, value)?;
        let row = Self::decode(table, &mut body)?;
        finish(table, body)?;
        Ok(row)
    }
}

impl Row for Id {
    fn encode(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }

    fn decode(table: &str, bytes: &mut &[u8]) -> Result<Self> {
        Ok(Self::from_bytes(take(table, bytes)?))
    }
}

impl Row for u32 {
    fn encode(&self) -> Vec<u8> {
        self.to_le_bytes().to_vec()
    }

    fn decode(table: &str, bytes: &mut &[u8]) -> Result<Self> {
        Ok(Self::from_le_bytes(take(table, bytes)?))
    }
}

impl Row for RunRow {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.bits];
        bytes.extend(self.entries.to_le_bytes());
        bytes
    }

    fn decode(table: &str, bytes: &mut &[u8]) -> Result<Self> {
        let [bits] = take(table, bytes)?;
        let entries = u64::from_le_bytes(take(table, bytes)?);
        if bits > MAX_BITS || entries == 0 {
            return Err(damaged(format!("a run has {entries} entries and {bits} bits")));
        }
        Ok(Self { bits, entries })
    }
}

impl Row for PackRow {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = self.id.encode();
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.blocks.to_le_bytes());
        bytes.extend(self.created.to_le_bytes());
        bytes
    }

    fn decode(table: &str, bytes: &mut &[u8]) -> Result<Self> {
        Ok(Self {
            id: Id::decode(table, bytes)?,
            len: u64::from_le_bytes(take(table, bytes)?),
            blocks: u32::from_le_bytes(take(table, bytes)?),
            created: u64::from_le_bytes(take(table, bytes)?),
        })
    }
}

impl Row for ManifestRow {
    fn encode(&self) -> Vec<u8> {
        let flags =
            u8::from(self.listed) | u8::from(self.parent.is_some()) << 1 | u8::from(self.base.is_some()) << 2;
        let mut bytes = vec![flags];
        for id in [self.parent, self.base] {
            bytes.extend(id.map_or([0; 32], |id| *id.as_bytes()));
        }
        bytes.extend(self.depth.to_le_bytes());
        for number in
            [self.len, self.content_len, self.created, self.entries, self.chain_entries, self.stored]
        {
            bytes.extend(number.to_le_bytes());
        }
        bytes
    }

    fn decode(table: &str, bytes: &mut &[u8]) -> Result<Self> {
        let [flags] = take(table, bytes)?;
        let (parent, base) = (Id::decode(table, bytes)?, Id::decode(table, bytes)?);
        let depth = u32::from_le_bytes(take(table, bytes)?);
        let mut numbers = [0; 6];
        for number in &mut numbers {
            *number = u64::from_le_bytes(take(table, bytes)?);
        }
        let [len, content_len, created, entries, chain_entries, stored] = numbers;
        if flags > 7 || content_len > len {
            return Err(damaged(format!("a manifest has flags {flags} and {content_len} of {len} bytes")));
        }
        Ok(Self {
            listed: flags & 1 != 0,
            parent: (flags & 2 != 0).then_some(parent),
            base: (flags & 4 != 0).then_some(base),
            len,
            content_len,
            created,
            depth,
            entries,
            chain_entries,
            stored,
        })
    }
}

/// Appends an entry to a bucket.
pub(super) fn push_entry(bucket: &mut Vec<u8>, hash: &Id, place: &Place) {
    bucket.extend(hash.as_bytes());
    for number in [place.pack, place.offset, place.stored] {
        bucket.extend(number.to_le_bytes());
    }
    bucket.extend([place.number, place.blocks, place.encoding, 0]);
}

/// The entries of a bucket. They are sorted.
#[derive(Clone, Default, Debug)]
pub(super) struct Bucket(Vec<[u8; ENTRY]>);

impl Bucket {
    /// Reads a bucket of a run.
    pub(super) fn from_value(key: (u32, u32), row: &RunRow, value: &[u8]) -> Result<Self> {
        let body = unseal("buckets", &bucket_key(key), value)?;
        let (entries, rest) = body.as_chunks::<ENTRY>();
        if entries.is_empty() || !rest.is_empty() {
            return Err(damaged(format!("a bucket has {} bytes", body.len())));
        }
        let ascends = entries.is_sorted_by(|a, b| a[..32] < b[..32]);
        let fits = [entries.first(), entries.last()]
            .into_iter()
            .flatten()
            .all(|entry| row.bucket(&hash_of(entry)) == key.1);
        if !ascends || !fits {
            return Err(damaged("a bucket has entries that are not in order"));
        }
        Ok(Self(entries.to_vec()))
    }

    /// Returns the number of entries.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns an entry. `index` must be less than [`len`](Self::len).
    pub(super) fn entry(&self, index: usize) -> Result<(Id, Place)> {
        let entry = &self.0[index];
        Ok((hash_of(entry), place_of(entry)?))
    }

    /// Returns the place of a hash.
    pub(super) fn find(&self, hash: &Id) -> Result<Option<Place>> {
        match self.0.binary_search_by(|entry| entry[..32].cmp(&hash.as_bytes()[..])) {
            Ok(index) => place_of(&self.0[index]).map(Some),
            Err(_) => Ok(None),
        }
    }
}

/// Returns the key of a bucket in the form that is used for checksums.
pub(super) fn bucket_key((run, bucket): (u32, u32)) -> [u8; 8] {
    (u64::from(run) << 32 | u64::from(bucket)).to_be_bytes()
}

/// Returns the hash of an entry.
fn hash_of(entry: &[u8; ENTRY]) -> Id {
    let mut hash = [0; 32];
    hash.copy_from_slice(&entry[..32]);
    Id::from_bytes(hash)
}

/// Returns the place of an entry.
fn place_of(entry: &[u8; ENTRY]) -> Result<Place> {
    let number = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
    let place = Place {
        pack: number(32),
        offset: number(36),
        stored: number(40),
        number: entry[44],
        blocks: entry[45],
        encoding: entry[46],
    };
    let in_frame = place.number < place.blocks && place.blocks <= 16;
    if !in_frame || place.encoding > 1 || entry[47] != 0 || !(1..=65_536).contains(&place.stored) {
        return Err(damaged(format!("a block has the place {place:?}")));
    }
    Ok(place)
}
