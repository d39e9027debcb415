//! `Source`: a snapshot or a file that is saved.

use std::fs::File;
use std::io;
use std::ops::Range;

use memsnap::Snapshot;

use crate::format::BLOCK;

/// The bytes to save.
pub(crate) trait Source: Sync {
    /// Returns the length in bytes, which is a multiple of [`BLOCK`], and the length of the content.
    fn len(&self) -> (u64, u64);

    /// Reads bytes from `offset` on. Bytes after the end are zero.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Returns ranges, in ascending order, that contain all bytes that are not zero.
    fn data(&self) -> io::Result<Vec<Range<u64>>>;

    /// Returns ranges, in ascending order, that contain all bytes that differ from those of a snapshot.
    fn changes(&self, old: &Snapshot) -> io::Result<Vec<Range<u64>>>;
}

impl Source for Snapshot {
    fn len(&self) -> (u64, u64) {
        // Pages are whole blocks on every system.
        (self.len() as u64, self.content_len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let read = match usize::try_from(offset) {
            Ok(offset) => Snapshot::read_at(self, buffer, offset)?,
            Err(_) => 0,
        };
        buffer[read..].fill(0);
        Ok(())
    }

    fn data(&self) -> io::Result<Vec<Range<u64>>> {
        Ok(self.data_ranges()?.into_iter().map(|range| range.start as u64..range.end as u64).collect())
    }

    fn changes(&self, old: &Snapshot) -> io::Result<Vec<Range<u64>>> {
        let ranges = old.diff(self)?.ranges();
        Ok(ranges.into_iter().map(|range| range.start as u64..range.end as u64).collect())
    }
}

/// A file, and its length when it was opened.
pub(crate) struct FileSource<'a> {
    file: &'a File,
    len: u64,
    /// The file offset of the caller.
    offset: u64,
}

impl<'a> FileSource<'a> {
    pub(crate) fn new(file: &'a File) -> io::Result<Self> {
        let kind = file.metadata()?.file_type();
        if kind.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::FileTypeExt;
            if kind.is_char_device() || kind.is_fifo() || kind.is_socket() {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "it is neither a file nor a block device",
                ));
            }
        }
        let offset = io::Seek::stream_position(&mut &*file)?;
        // The metadata of a block device has no length.
        let len = io::Seek::seek(&mut &*file, io::SeekFrom::End(0))?;
        Ok(Self { file, len, offset })
    }
}

impl Drop for FileSource<'_> {
    fn drop(&mut self) {
        // The offset was valid before, so this cannot fail.
        let _ = io::Seek::seek(&mut &*self.file, io::SeekFrom::Start(self.offset));
    }
}

impl Source for FileSource<'_> {
    fn len(&self) -> (u64, u64) {
        (self.len.next_multiple_of(BLOCK as u64), self.len)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            match read_some_at(self.file, &mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if (offset + filled as u64) < self.len.min(offset + buffer.len() as u64) {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file became shorter while it was read",
            ));
        }
        buffer[filled..].fill(0);
        let inside = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX).min(buffer.len());
        buffer[inside..].fill(0);
        Ok(())
    }

    fn changes(&self, _: &Snapshot) -> io::Result<Vec<Range<u64>>> {
        // `Save::run` compares a file with the hashes of its parent instead.
        Err(io::Error::new(io::ErrorKind::Unsupported, "a file cannot be compared with a snapshot in memory"))
    }

    fn data(&self) -> io::Result<Vec<Range<u64>>> {
        self.data_within(0..self.len)
    }
}

impl FileSource<'_> {
    /// Returns the parts of a range that are not holes, in ascending order.
    #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd", target_os = "macos"))]
    pub(crate) fn data_within(&self, within: Range<u64>) -> io::Result<Vec<Range<u64>>> {
        use rustix::fs::{SeekFrom, seek};
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut at = within.start;
        while at < within.end {
            let start = match seek(self.file, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(rustix::io::Errno::NXIO) => break,
                // The file system or the device does not support holes.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) if ranges.is_empty() => {
                    return Ok(vec![within]);
                }
                Err(error) => return Err(error.into()),
            };
            let end = seek(self.file, SeekFrom::Hole(start))?.max(start + 1);
            if start < within.end {
                ranges.push(start..end.min(within.end));
            }
            at = end;
        }
        Ok(ranges)
    }

    /// Whether the file has a hole that the system tells of.
    #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd", target_os = "macos"))]
    pub(crate) fn has_hole(&self) -> io::Result<bool> {
        use rustix::io::Errno;
        // Where the system finds no hole, it returns the end of the file, as if a hole followed.
        match rustix::fs::seek(self.file, rustix::fs::SeekFrom::Hole(0)) {
            Ok(hole) => Ok(hole < self.len),
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NXIO) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns `false`, because this system does not tell where holes are.
    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd", target_os = "macos")))]
    pub(crate) fn has_hole(&self) -> io::Result<bool> {
        Ok(false)
    }

    /// Returns the whole range, because this system does not tell where holes are.
    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd", target_os = "macos")))]
    pub(crate) fn data_within(&self, within: Range<u64>) -> io::Result<Vec<Range<u64>>> {
        Ok(vec![within])
    }
}

#[cfg(unix)]
fn read_some_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_some_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, offset)
}

/// Returns the blocks below `limit` that byte ranges touch, as ascending ranges with gaps between them.
pub(crate) fn block_ranges(bytes: impl IntoIterator<Item = Range<u64>>, limit: u64) -> Vec<Range<u64>> {
    let mut blocks: Vec<Range<u64>> = Vec::new();
    for range in bytes {
        let range = range.start / BLOCK as u64..range.end.div_ceil(BLOCK as u64).min(limit);
        match blocks.last_mut().filter(|last| range.start <= last.end) {
            Some(last) => last.end = last.end.max(range.end),
            None if range.is_empty() => {}
            None => blocks.push(range),
        }
    }
    blocks
}
