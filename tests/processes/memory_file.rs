//! Memory files that other programs make, inspect and map.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

/// Returns the bytes that can be read from a descriptor.
pub(crate) fn read(fd: &OwnedFd) -> Vec<u8> {
    let file = File::from(fd.try_clone().unwrap());
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

pub(crate) fn inode(fd: impl AsFd) -> u64 {
    rustix::fs::fstat(fd).unwrap().st_ino
}

pub(crate) fn seals(fd: impl AsFd) -> SealFlags {
    rustix::fs::fcntl_get_seals(fd).unwrap()
}

/// Makes a memfd like another program would.
pub(crate) fn memfd(len: u64, bytes: &[u8], sealed: SealFlags) -> OwnedFd {
    let fd = rustix::fs::memfd_create("foreign", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&fd, len).unwrap();
    rustix::io::pwrite(&fd, bytes, 0).unwrap();
    rustix::fs::fcntl_add_seals(&fd, sealed).unwrap();
    fd
}

/// Opens the memory of a file once more.
pub(crate) fn reopen(fd: impl AsFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
}

pub(crate) fn map(fd: impl AsFd, access: ProtFlags, len: usize) -> Result<*mut u8, Errno> {
    // SAFETY: a mapping at an address that the kernel chooses touches no memory in use.
    let start = unsafe { rustix::mm::mmap(ptr::null_mut(), len, access, MapFlags::SHARED, fd, 0) }?;
    Ok(start.cast())
}

pub(crate) fn unmap(start: *mut u8, len: usize) {
    // SAFETY: `map` made the mapping, and the caller has no reference to its bytes.
    unsafe { rustix::mm::munmap(start.cast(), len) }.unwrap();
}
