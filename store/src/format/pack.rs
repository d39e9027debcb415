//! Reads and writes packs, and compresses blocks into frames.

use std::io::Write;

use zstd::bulk::{Compressor, Decompressor};

use super::{BLOCK, VERSION, Wrong, check_version, damaged, u32_at};
use crate::id::Id;
use crate::storage::ReadFile;

/// The greatest number of blocks in a frame.
pub(crate) const FRAME_BLOCKS: usize = 16;

/// The greatest number of blocks in a pack.
pub(crate) const PACK_BLOCKS: usize = 65_536;

/// A pack ends as soon as it has this many bytes.
pub(crate) const PACK_BYTES: u64 = 32 << 20;

/// The compression level of zstd.
///
/// For memory, higher levels take several times as long and save a few per cent.
const LEVEL: i32 = 1;

const MAGIC: &[u8; 8] = b"memsnapP";
const END: &[u8; 8] = b"memsnapE";
const HEADER: usize = 32;
const TRAILER: usize = 48;
const FRAME_ENTRY: usize = 8;
const HASH: usize = 32;

/// The encoding of the bytes of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Encoding {
    Raw = 0,
    Zstd = 1,
}

impl Encoding {
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// A frame: 1 to [`FRAME_BLOCKS`] blocks, as they are stored.
pub(crate) struct Frame {
    pub(crate) encoding: Encoding,
    pub(crate) hashes: Vec<Id>,
    pub(crate) bytes: Vec<u8>,
}

/// Compresses blocks into frames. Keeps the memory that zstd needs.
pub(crate) struct Encoder(Compressor<'static>);

impl Encoder {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self(Compressor::new(LEVEL)?))
    }

    /// Compresses the blocks in `bytes`, whose hashes are `hashes`. There are 1 to [`FRAME_BLOCKS`].
    pub(crate) fn encode(&mut self, bytes: &[u8], hashes: Vec<Id>) -> std::io::Result<Frame> {
        debug_assert!(bytes.len() == hashes.len() * BLOCK && (1..=FRAME_BLOCKS).contains(&hashes.len()));
        let compressed = self.0.compress(bytes)?;
        Ok(if compressed.len() < bytes.len() {
            Frame { encoding: Encoding::Zstd, hashes, bytes: compressed }
        } else {
            Frame { encoding: Encoding::Raw, hashes, bytes: bytes.to_vec() }
        })
    }
}

/// Decompresses frames. Keeps the memory that zstd needs.
pub(crate) struct Decoder(Decompressor<'static>, Vec<u8>);

impl Decoder {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self(Decompressor::new()?, vec![0; FRAME_BLOCKS * BLOCK]))
    }

    /// Returns the bytes of the blocks of a frame. `blocks` is at most [`FRAME_BLOCKS`].
    pub(crate) fn decode<'a>(
        &'a mut self,
        stored: &'a [u8],
        encoding: Encoding,
        blocks: usize,
    ) -> Result<&'a [u8], String> {
        let len = blocks * BLOCK;
        let decoded = match encoding {
            Encoding::Raw => stored,
            Encoding::Zstd => {
                let out = &mut self.1[..len];
                let read = self.0.decompress_to_buffer(stored, out).map_err(|error| error.to_string())?;
                &self.1[..read]
            }
        };
        if decoded.len() == len {
            Ok(decoded)
        } else {
            Err(format!("a frame has {} bytes instead of {len}", decoded.len()))
        }
    }
}

/// A frame of a pack, without its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FrameEntry {
    /// The offset in the file.
    pub(crate) offset: u32,
    /// The number of stored bytes.
    pub(crate) stored: u32,
    /// The number of the first block in the pack.
    pub(crate) first: u32,
    /// The number of blocks.
    pub(crate) blocks: u8,
    pub(crate) encoding: Encoding,
}

/// The lists of frames and blocks of a pack.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Contents {
    pub(crate) frames: Vec<FrameEntry>,
    /// The hashes of the blocks, in the order of the frames.
    pub(crate) hashes: Vec<Id>,
}

/// Writes a pack.
pub(crate) struct PackWriter<W> {
    out: W,
    hasher: blake3::Hasher,
    header: [u8; HEADER],
    len: u64,
    contents: Contents,
}

impl<W: Write> PackWriter<W> {
    /// Begins a pack.
    pub(crate) fn new(out: W) -> std::io::Result<Self> {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let contents = Contents { frames: Vec::new(), hashes: Vec::new() };
        let mut pack = Self { out, hasher: blake3::Hasher::new(), header, len: 0, contents };
        pack.put(&header)?;
        Ok(pack)
    }

    /// Returns whether the pack has to end before this frame.
    pub(crate) fn is_full(&self, next: &Frame) -> bool {
        self.len >= PACK_BYTES || self.contents.hashes.len() + next.hashes.len() > PACK_BLOCKS
    }

    /// Appends a frame.
    pub(crate) fn push(&mut self, frame: &Frame) -> std::io::Result<()> {
        let number = |value: usize| u32::try_from(value).map_err(std::io::Error::other);
        self.contents.frames.push(FrameEntry {
            offset: u32::try_from(self.len).map_err(std::io::Error::other)?,
            stored: number(frame.bytes.len())?,
            first: number(self.contents.hashes.len())?,
            blocks: u8::try_from(frame.hashes.len()).map_err(std::io::Error::other)?,
            encoding: frame.encoding,
        });
        self.contents.hashes.extend(&frame.hashes);
        self.put(&frame.bytes)
    }

    /// Writes the end of the pack. Returns the id, the length of the file, the lists, and the writer.
    pub(crate) fn finish(mut self) -> std::io::Result<(Id, u64, Contents, W)> {
        let mut end = Vec::with_capacity(self.contents.hashes.len() * (HASH + 1) + TRAILER);
        for frame in &self.contents.frames {
            end.extend(frame.stored.to_le_bytes());
            end.extend([frame.blocks, frame.encoding as u8, 0, 0]);
        }
        for hash in &self.contents.hashes {
            end.extend(hash.as_bytes());
        }
        for count in [self.contents.frames.len(), self.contents.hashes.len()] {
            end.extend(u32::try_from(count).map_err(std::io::Error::other)?.to_le_bytes());
        }
        let checksum = blake3::Hasher::new().update(&self.header).update(&end).finalize();
        end.extend(checksum.as_bytes());
        end.extend(END);
        self.put(&end)?;
        self.out.flush()?;
        Ok((self.hasher.finalize().into(), self.len, self.contents, self.out))
    }

    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.out.write_all(bytes)?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }
}

/// How many bytes at the beginning and at the end of a pack [`read_contents`] reads, beside the list of blocks.
#[cfg(feature = "remote")]
pub(crate) const LIST_HEADER: u64 = HEADER as u64;
#[cfg(feature = "remote")]
pub(crate) const LIST_TRAILER: u64 = TRAILER as u64;

/// Returns the length of the list of blocks from the last bytes of a pack, or `None` if they are not valid.
#[cfg(feature = "remote")]
pub(crate) fn list_len(trailer: &[u8]) -> Option<u64> {
    let trailer: &[u8; TRAILER] = trailer.try_into().ok()?;
    let (frames, blocks) = (u32_at(trailer, 0), u32_at(trailer, 4));
    let valid = blocks as usize <= PACK_BLOCKS && frames <= blocks;
    valid.then(|| u64::from(frames) * FRAME_ENTRY as u64 + u64::from(blocks) * HASH as u64)
}

/// Reads what a pack contains: the header, the frame table and the hashes, but no frame.
///
/// Checks all numbers: every frame is within the file and has at most [`FRAME_BLOCKS`] blocks.
pub(crate) fn read_contents(file: &dyn ReadFile) -> Result<Contents, Wrong> {
    let len = file.len()?;
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0)?;
    check_version(&std::array::from_fn(|i| header[i]), MAGIC)?;
    if u32_at(&header, 12) != 0 {
        return damaged("its header has a value that has to be zero");
    }
    let Some(trailer_at) = len.checked_sub(TRAILER as u64).filter(|at| *at >= HEADER as u64) else {
        return damaged(format!("it has only {len} bytes"));
    };
    let mut trailer = [0; TRAILER];
    file.read_exact_at(&mut trailer, trailer_at)?;
    let (frames, blocks) = (u32_at(&trailer, 0) as usize, u32_at(&trailer, 4) as usize);
    if trailer[40..] != *END {
        return damaged("its last bytes are not those of a pack");
    }
    if blocks > PACK_BLOCKS || frames > blocks {
        return damaged(format!("it claims {frames} frames with {blocks} blocks"));
    }
    let table_len = frames * FRAME_ENTRY + blocks * HASH;
    let Some(table_at) = trailer_at.checked_sub(table_len as u64).filter(|at| *at >= HEADER as u64) else {
        return damaged(format!("{blocks} blocks do not fit into its {len} bytes"));
    };
    let mut table = vec![0; table_len];
    file.read_exact_at(&mut table, table_at)?;
    let checksum = blake3::Hasher::new().update(&header).update(&table).update(&trailer[..8]).finalize();
    if checksum.as_bytes()[..] != trailer[8..40] {
        return damaged("the checksum of its list of blocks is wrong");
    }
    let (frame_table, hashes) = table.split_at(frames * FRAME_ENTRY);
    let frames = read_frames(frame_table, blocks, table_at)?;
    let hashes = hashes.as_chunks().0.iter().map(|bytes| Id::from_bytes(*bytes)).collect();
    Ok(Contents { frames, hashes })
}

/// Reads the frame table of a pack with `blocks` blocks, whose frames end at byte `end`.
fn read_frames(table: &[u8], blocks: usize, end: u64) -> Result<Vec<FrameEntry>, Wrong> {
    let (mut offset, mut first) = (HEADER as u64, 0_u32);
    let mut frames = Vec::with_capacity(table.len() / FRAME_ENTRY);
    for entry in table.chunks_exact(FRAME_ENTRY) {
        let (stored, blocks) = (u32_at(entry, 0), entry[4]);
        let len = usize::from(blocks) * BLOCK;
        let valid = (1..=FRAME_BLOCKS).contains(&blocks.into())
            && (1..=len).contains(&(stored as usize))
            && entry[6..] == [0, 0];
        let (Some(encoding), Ok(at), true) = (Encoding::from_byte(entry[5]), u32::try_from(offset), valid)
        else {
            return damaged(format!("frame {} is not valid", frames.len()));
        };
        frames.push(FrameEntry { offset: at, stored, first, blocks, encoding });
        offset += u64::from(stored);
        first += u32::from(blocks);
    }
    if offset != end || first as usize != blocks {
        return damaged("its frames do not have the lengths that it claims");
    }
    Ok(frames)
}
