//! `Image`: the bytes that all competitors start from.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use memmap2::{Mmap, MmapMut, MmapOptions};
use rand::Rng;

use crate::case::MIB;
use crate::pages::rng;

/// Random bytes in a memory file.
pub(crate) struct Image {
    pub(crate) file: File,
    map: Mmap,
}

impl Image {
    /// Makes an image of `bytes` random bytes, which must be a whole number of pages.
    pub(crate) fn new(bytes: usize) -> Result<Self> {
        let file = memory_file()?;
        fill(&file, bytes).with_context(|| format!("making an image of {bytes} bytes"))?;
        // SAFETY: nothing writes to the file or shortens it from now on.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Self { file, map })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }
}

/// Makes an empty memory file (memfd).
pub(crate) fn memory_file() -> io::Result<File> {
    // SAFETY: the name is a C string, and outlives the call.
    let descriptor = unsafe { libc::memfd_create(c"bench".as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and nothing else owns it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    Ok(File::from(descriptor))
}

/// Maps the file of an image or of a snapshot, so that writes to the mapping do not change the file.
pub(crate) fn map_private(file: &File) -> io::Result<MmapMut> {
    // SAFETY: nothing writes to the file of an image or of a snapshot, or shortens it.
    unsafe { MmapOptions::new().map_copy(file) }
}

/// Writes `bytes` random bytes to an empty file.
pub(crate) fn fill(file: &File, bytes: usize) -> io::Result<()> {
    let mut rng = rng(bytes);
    let mut buffer = vec![0; MIB.min(bytes)];
    for offset in (0..bytes).step_by(buffer.len().max(1)) {
        rng.fill_bytes(&mut buffer);
        let length = buffer.len().min(bytes - offset);
        file.write_all_at(&buffer[..length], offset as u64)?;
    }
    Ok(())
}
