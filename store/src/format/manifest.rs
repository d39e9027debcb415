//! Reads and writes manifests.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use super::runs::{Entry, RunReader, RunWriter};
use super::{BLOCK, Sequential, VERSION, Wrong, blocks, check_version, damaged, u32_at, u64_at};
use crate::id::Id;

const MAGIC: &[u8; 8] = b"memsnapM";
const HEADER: usize = 136;
const HAS_PARENT: u32 = 1;
const HAS_BASE: u32 = 2;

/// The greatest depth that is read. The chains that this version writes are shorter.
pub(crate) const MAX_DEPTH: u32 = 64;

/// The greatest number of bytes of all labels and attachments of a manifest.
pub(crate) const MAX_METADATA: u64 = 64 << 20;

/// A manifest without its runs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Header {
    pub(crate) parent: Option<Id>,
    pub(crate) base: Option<Id>,
    /// A multiple of [`BLOCK`].
    pub(crate) len: u64,
    pub(crate) content_len: u64,
    /// Milliseconds since 1970.
    pub(crate) created: u64,
    pub(crate) depth: u32,
    pub(crate) entries: u64,
    pub(crate) chain_entries: u64,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) attachments: BTreeMap<String, Vec<u8>>,
}

impl Header {
    /// Returns the number of bytes that the labels and attachments take in the manifest.
    pub(crate) fn metadata_len(&self) -> u64 {
        let labels = self.labels.iter().map(|(key, value)| 8 + key.len() + value.len());
        let attachments = self.attachments.iter().map(|(name, bytes)| 12 + name.len() + bytes.len());
        labels.chain(attachments).map(|len| len as u64).sum()
    }

    fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let too_many = |count: usize| u32::try_from(count).map_err(io::Error::other);
        let id = |id: Option<Id>| id.map_or([0; 32], |id| *id.as_bytes());
        let flag = |id: Option<Id>, flag| if id.is_some() { flag } else { 0 };
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((flag(self.parent, HAS_PARENT) | flag(self.base, HAS_BASE)).to_le_bytes());
        bytes.extend(id(self.parent));
        bytes.extend(id(self.base));
        for number in [self.len, self.content_len, self.created] {
            bytes.extend(number.to_le_bytes());
        }
        for number in [self.depth, too_many(self.labels.len())?, too_many(self.attachments.len())?, 0] {
            bytes.extend(number.to_le_bytes());
        }
        for number in [self.entries, self.chain_entries] {
            bytes.extend(number.to_le_bytes());
        }
        for (key, value) in &self.labels {
            for text in [key, value] {
                bytes.extend(too_many(text.len())?.to_le_bytes());
                bytes.extend(text.as_bytes());
            }
        }
        for (name, blob) in &self.attachments {
            bytes.extend(too_many(name.len())?.to_le_bytes());
            bytes.extend(name.as_bytes());
            bytes.extend((blob.len() as u64).to_le_bytes());
            bytes.extend(blob);
        }
        Ok(bytes)
    }

    /// Reads a header. Allocates at most [`MAX_METADATA`] bytes, whatever lengths the header claims.
    fn read(input: &mut impl Read) -> Result<Self, Wrong> {
        let mut bytes = [0; HEADER];
        input.read_exact(&mut bytes)?;
        check_version(&std::array::from_fn(|i| bytes[i]), MAGIC)?;
        let flags = u32_at(&bytes, 12);
        let unset = |at: usize, flag| flags & flag != 0 || bytes[at..at + 32] == [0; 32];
        if flags & !(HAS_PARENT | HAS_BASE) != 0
            || u32_at(&bytes, 116) != 0
            || !(unset(16, HAS_PARENT) && unset(48, HAS_BASE))
        {
            return damaged("its header has a value that has to be zero");
        }
        let id = |at: usize, flag| {
            let bytes: [u8; 32] = std::array::from_fn(|i| bytes[at + i]);
            (flags & flag != 0).then(|| Id::from_bytes(bytes))
        };
        let mut header = Self {
            parent: id(16, HAS_PARENT),
            base: id(48, HAS_BASE),
            len: u64_at(&bytes, 80),
            content_len: u64_at(&bytes, 88),
            created: u64_at(&bytes, 96),
            depth: u32_at(&bytes, 104),
            entries: u64_at(&bytes, 120),
            chain_entries: u64_at(&bytes, 128),
            ..Self::default()
        };
        if !header.len.is_multiple_of(BLOCK as u64) || header.content_len > header.len {
            return damaged(format!(
                "its length is {}, that of its content {}",
                header.len, header.content_len
            ));
        }
        if header.depth > MAX_DEPTH || (header.depth == 0) != header.base.is_none() {
            return damaged(format!("its depth is {}", header.depth));
        }
        let mut metadata = Metadata { input, left: MAX_METADATA };
        for _ in 0..u32_at(&bytes, 108) {
            let (key, value) = (metadata.text()?, metadata.text()?);
            if header.labels.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return damaged("its labels are not in order");
            }
            header.labels.insert(key, value);
        }
        for _ in 0..u32_at(&bytes, 112) {
            let (name, blob) = (metadata.text()?, metadata.blob()?);
            if header.attachments.last_key_value().is_some_and(|(last, _)| *last >= name) {
                return damaged("its attachments are not in order");
            }
            header.attachments.insert(name, blob);
        }
        Ok(header)
    }
}

/// Reads labels and attachments, up to a limit in bytes.
struct Metadata<'a, R> {
    input: &'a mut R,
    left: u64,
}

impl<R: Read> Metadata<'_, R> {
    fn bytes(&mut self, len: u64) -> Result<Vec<u8>, Wrong> {
        let Some(left) = self.left.checked_sub(len) else {
            return damaged(format!("its labels and attachments have more than {MAX_METADATA} bytes"));
        };
        self.left = left;
        // `bytes` grows as bytes are read, because the length may be wrong.
        let mut bytes = Vec::new();
        if self.input.by_ref().take(len).read_to_end(&mut bytes)? as u64 == len {
            Ok(bytes)
        } else {
            damaged("it ends too early")
        }
    }

    fn text(&mut self) -> Result<String, Wrong> {
        let len = self.bytes(4)?;
        let bytes = self.bytes(u32_at(&len, 0).into())?;
        String::from_utf8(bytes).or_else(|_| damaged("a label or the name of an attachment is not UTF-8"))
    }

    fn blob(&mut self) -> Result<Vec<u8>, Wrong> {
        let len = self.bytes(8)?;
        self.bytes(u64_at(&len, 0))
    }
}

/// Writes a manifest. Returns its id and its length.
pub(crate) fn write<E>(
    out: impl Write,
    header: &Header,
    entries: impl Iterator<Item = Result<Entry, E>>,
) -> Result<(Id, u64), E>
where
    E: From<io::Error>,
{
    let mut out = Hashing { inner: out, hasher: blake3::Hasher::new(), len: 0 };
    out.write_all(&header.to_bytes()?)?;
    let mut runs = RunWriter::new(out);
    for entry in entries {
        runs.push(entry?)?;
    }
    let out = runs.finish()?;
    Ok((out.hasher.finalize().into(), out.len))
}

/// A manifest that is being read.
pub(crate) struct ManifestReader {
    pub(crate) id: Id,
    pub(crate) header: Header,
    runs: RunReader<Hashing<io::BufReader<Sequential>>>,
    ended: bool,
}

impl ManifestReader {
    /// Reads the header.
    ///
    /// The bytes are compared with the id only at the end: when [`next`](Self::next) returns `None`, or by
    /// [`check`](Self::check).
    pub(crate) fn new(file: Sequential, id: Id) -> Result<Self, Wrong> {
        let inner = io::BufReader::with_capacity(64 << 10, file);
        let mut input = Hashing { inner, hasher: blake3::Hasher::new(), len: 0 };
        let header = Header::read(&mut input)?;
        let runs = RunReader::new(input, blocks(header.len));
        Ok(Self { id, header, runs, ended: false })
    }

    /// Returns the next block that the manifest lists, or `None` at the end.
    ///
    /// Fails there if the hash is not the id.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, Wrong> {
        if self.ended {
            return Ok(None);
        }
        if let Some(entry) = self.runs.next()? {
            return match entry {
                (block, None) if self.header.base.is_none() => {
                    damaged(format!("it is a full manifest and lists the zeroes of block {block}"))
                }
                entry => Ok(Some(entry)),
            };
        }
        let (entries, input) = (self.runs.entries(), self.runs.input());
        if input.read(&mut [0])? != 0 {
            return damaged("it has bytes after its end");
        }
        if Id::from(input.hasher.finalize()) != self.id {
            return damaged("its bytes do not have the hash that is its name");
        }
        if entries != self.header.entries {
            return damaged(format!("it lists {entries} blocks and claims {}", self.header.entries));
        }
        self.ended = true;
        Ok(None)
    }

    /// Reads the rest of the manifest, and compares the manifest with its id.
    pub(crate) fn check(&mut self) -> Result<(), Wrong> {
        while self.next()?.is_some() {}
        Ok(())
    }
}

/// Hashes the bytes that are read or written.
struct Hashing<T> {
    inner: T,
    hasher: blake3::Hasher,
    len: u64,
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.len += read as u64;
        Ok(read)
    }
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
