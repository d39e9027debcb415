//! Warms up the memory of the machine.
//!
//! In a virtual machine, touching a page takes five times as long if its frame is used for the first time.
#![allow(unsafe_code)]

use anyhow::Result;
use memmap2::{Advice, MmapMut, MmapOptions};
use memsnap::page_size;

use crate::case::GIB;
use crate::image::memory_file;
use crate::system;

/// Touches and frees twice `working_set` bytes of anonymous memory, and then of a memory file.
///
/// Uses less if less memory is available.
pub(crate) fn warm(working_set: usize) -> Result<()> {
    let bytes = (2 * working_set).min(system::memory_limit()?);
    eprintln!("warming up {} GiB of memory", bytes / GIB);
    touch(MmapMut::map_anon(bytes)?);
    let file = memory_file()?;
    file.set_len(bytes as u64)?;
    // SAFETY: nothing else uses the file.
    touch(unsafe { MmapOptions::new().map_mut(&file) }?);
    Ok(())
}

/// Touches and frees `bytes` of memory in huge pages, so that the kernel hands out these next.
///
/// A virtual machine may return huge pages to its host if they have been free for some seconds (free page reporting).
/// When such a page is used again, the host first has to provide each of its frames.
pub(crate) fn warm_huge_pages(bytes: usize) -> Result<()> {
    let map = MmapMut::map_anon(bytes)?;
    map.advise(Advice::HugePage)?;
    touch(map);
    Ok(())
}

fn touch(mut map: MmapMut) {
    map.iter_mut().step_by(page_size()).for_each(|byte| *byte = 1);
}
