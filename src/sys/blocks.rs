//! Reads any part of a file that can only be read in whole blocks.
//!
//! Files that were opened without the system's cache (`O_DIRECT`, `FILE_FLAG_NO_BUFFERING`) have this restriction. The
//! buffer for such a read also has to start at a multiple of the block size. The caller decides when to read in this
//! way, and makes the system calls.

use std::io;

/// A multiple of the block size of every disk and file system in use.
const BLOCK: usize = 64 * 1024;

/// The smallest block size of disks. Each read returns a multiple of it, except at the end of a file.
const SECTOR: usize = 512;

/// Reads from byte `offset` into `buffer` with `read`, and returns the number of bytes read.
///
/// `read` gets memory for whole blocks, and the byte offset of the first of them.
pub(super) fn read_at(
    buffer: &mut [u8],
    offset: usize,
    mut read: impl FnMut(&mut [u8], usize) -> io::Result<usize>,
) -> io::Result<usize> {
    let before = offset % BLOCK;
    let len = (before + buffer.len()).next_multiple_of(BLOCK);
    let mut memory = vec![0; len + BLOCK];
    let start = memory.as_ptr().addr().wrapping_neg() % BLOCK;
    let blocks = &mut memory[start..start + len];
    let mut filled = 0;
    // A read that ends before `offset` need not be at the end of the file. A bad block, for example, may have cut it
    // short.
    while filled <= before && filled % SECTOR == 0 {
        match read(&mut blocks[filled..], offset - before + filled)? {
            0 => break,
            more => filled += more,
        }
    }
    let read = filled.saturating_sub(before).min(buffer.len());
    buffer[..read].copy_from_slice(&blocks[before..before + read]);
    Ok(read)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn any_part_is_read_by_whole_blocks() {
        let bytes: Vec<u8> = (0..3 * BLOCK + 5).map(|i| (i / 3).to_le_bytes()[0]).collect();
        let ends = [0, 1, 511, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, bytes.len(), bytes.len() + 9];
        for offset in ends {
            for wanted in ends {
                let mut buffer = vec![0xA5; wanted];
                let read = read_at(&mut buffer, offset, |blocks, from| {
                    assert_eq!(
                        (blocks.as_ptr().addr() % SECTOR, blocks.len() % SECTOR, from % SECTOR),
                        (0, 0, 0)
                    );
                    assert!(from % BLOCK == 0 || from <= offset);
                    bytes.get(from..).unwrap_or_default().read(blocks)
                });
                let expected = bytes.get(offset..).unwrap_or_default();
                let expected = &expected[..wanted.min(expected.len())];
                assert_eq!(read.unwrap(), expected.len());
                assert!(buffer.starts_with(expected), "{wanted} bytes at {offset} are others");
                assert!(buffer[expected.len()..].iter().all(|&byte| byte == 0xA5));
            }
        }
    }

    /// Regression test: a read that a bad block cut short counted as the end of the file, so the copy ended there.
    #[test]
    fn an_error_behind_a_short_read_is_an_error() {
        let read = |wanted: &mut [u8], from: usize| match from {
            0 => Ok(SECTOR.min(wanted.len())),
            _ => Err(io::ErrorKind::InvalidData.into()),
        };
        let mut buffer = [0; 2 * SECTOR];
        assert_eq!(read_at(&mut buffer, 0, read).unwrap(), SECTOR);
        assert_eq!(read_at(&mut buffer, SECTOR, read).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read_at(&mut buffer, 3 * SECTOR, read).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
