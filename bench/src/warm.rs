//! Warms the machine: frames that a virtual machine touches for the first time cost five times as much.
#![allow(unsafe_code)]

use anyhow::Result;
use memmap2::{Advice, MmapMut, MmapOptions};
use memsnap::page_size;

use crate::case::GIB;
use crate::image::memory_file;
use crate::system;

/// Touches and frees twice `working_set`, or as much as there is, of anonymous memory, then of a memory file.
pub(crate) fn warm(working_set: usize) -> Result<()> {
    let bytes = (2 * working_set).min(system::memory_limit()?);
    eprintln!("warming {} GiB", bytes / GIB);
    touch(MmapMut::map_anon(bytes)?);
    let file = memory_file()?;
    file.set_len(bytes as u64)?;
    // SAFETY: nobody else has the file.
    touch(unsafe { MmapOptions::new().map_mut(&file) }?);
    Ok(())
}

/// Touches and frees `bytes` of memory in huge pages, so that the kernel next hands out these.
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
