//! Reading files that were opened without the system's cache (`O_DIRECT`, `FILE_FLAG_NO_BUFFERING`): they give whole blocks
//! only, into memory that starts at a multiple of a block.

use std::io;

/// A multiple of the blocks of every disk and file system in use.
const BLOCK: usize = 64 * 1024;

/// Reads what there is at byte `offset`, by a `read` that gets whole blocks to fill, and the offset of the first.
pub(super) fn read_at(
    buffer: &mut [u8],
    offset: usize,
    read: impl FnOnce(&mut [u8], usize) -> io::Result<usize>,
) -> io::Result<usize> {
    let before = offset % BLOCK;
    let len = (before + buffer.len()).next_multiple_of(BLOCK);
    let mut memory = vec![0; len + BLOCK];
    let start = memory.as_ptr().addr().wrapping_neg() % BLOCK;
    let blocks = &mut memory[start..start + len];
    let read = read(blocks, offset - before)?.saturating_sub(before).min(buffer.len());
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
                        (blocks.as_ptr().addr() % BLOCK, blocks.len() % BLOCK, from % BLOCK),
                        (0, 0, 0)
                    );
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
}
