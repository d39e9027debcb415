//! Memory that can be mapped: what `memfd_create` gives (Linux, Android, FreeBSD 13), elsewhere a temporary file that
//! has no name any more.
//!
//! Not POSIX shared memory: macOS neither maps it privately, nor gives it a second length, nor writes to it by `write`;
//! on OpenBSD it is a file in `/tmp`.
//!
//! A temporary file is written before it is mapped and never afterwards, since not every system lets a mapping see
//! what is written (OpenBSD). It is not mapped shared: a page for which the disk has no room stops the process
//! (`SIGBUS`), while `write` returns an error.

use std::collections::hash_map::RandomState;
use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::hash::BuildHasher;
use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use rustix::fs::OFlags;

use crate::pages::{PageRange, PageSet};
use crate::sys::call;
use crate::sys::unix::{Descriptor, Mapping, MemoryFile, page_size};

/// A mapping keeps the descriptor of what it shows, to map that again.
pub(in crate::sys) type FileDescriptor = Arc<Descriptor>;

/// Of a descriptor that gives no access to bytes, besides those that are only for writing.
pub(in crate::sys) const NOT_OPEN: OFlags = OFlags::empty();

/// Whether `memfd_create` is tried: not if the library is built with `MEMSNAP_FILES=temporary`, for tests.
const MEMORY: bool = match option_env!("MEMSNAP_FILES") {
    Some(name) => match name.as_bytes() {
        b"temporary" => false,
        _ => panic!("MEMSNAP_FILES is temporary or not set"),
    },
    None => true,
};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::sys) enum Kind {
    /// Memory and swap space, of our own.
    Memory,
    /// Of a file system, or somebody else's.
    Disk,
}

/// A new file, empty.
pub(in crate::sys) fn new_file(name: &CStr) -> io::Result<(FileDescriptor, Kind)> {
    if MEMORY && let Some(memory) = memory(name)? {
        return Ok((Descriptor::kept_from_children(memory)?.into(), Kind::Memory));
    }
    Ok((Descriptor::new(temporary()?)?.into(), Kind::Disk))
}

/// Another descriptor of somebody else's file.
pub(in crate::sys) fn borrowed_file(fd: BorrowedFd<'_>) -> io::Result<(FileDescriptor, Kind)> {
    call("dup")?;
    Ok((Descriptor::new(fd.try_clone_to_owned()?)?.into(), Kind::Disk))
}

/// Memory as a file, where there is such a thing.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
fn memory(name: &CStr) -> io::Result<Option<OwnedFd>> {
    use rustix::fs::{MemfdFlags, memfd_create};
    use rustix::io::Errno;

    call("memfd_create")?;
    match memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING) {
        // An older system, or a filter of system calls.
        Err(Errno::NOSYS | Errno::PERM) => Ok(None),
        memory => Ok(Some(memory?)),
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
fn memory(_name: &CStr) -> io::Result<Option<OwnedFd>> {
    Ok(None)
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
fn seal(fd: BorrowedFd<'_>) -> bool {
    use rustix::fs::{SealFlags, fcntl_add_seals};

    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(fd, seals).is_ok()
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
fn seal(_fd: BorrowedFd<'_>) -> bool {
    false
}

/// A file that only its descriptor leads to.
fn temporary() -> io::Result<OwnedFd> {
    loop {
        // Keys that nobody outside can guess, others each time.
        let name = format!(".memsnap-{:016x}", RandomState::new().hash_one(()));
        let path = std::env::temp_dir().join(name);
        call("open")?;
        let mut options = OpenOptions::new();
        match options.read(true).write(true).create_new(true).mode(0o600).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            file => {
                let file = file?;
                fs::remove_file(path)?;
                return Ok(file.into());
            }
        }
    }
}

/// A copy that shares its blocks with `file`: none here.
pub(in crate::sys) fn clone_of(_file: &File, _len: u64) -> Option<(MemoryFile, usize)> {
    None
}

/// Where a file is not all zero: not asked here. `SEEK_HOLE` of some file systems takes what is not on the disk yet for a
/// hole (APFS, ZFS).
pub(in crate::sys) fn with_extents(_file: &File, _len: u64) -> Option<(File, Vec<Range<u64>>)> {
    None
}

impl MemoryFile {
    /// The same file once more.
    pub(super) fn again(&self) -> Self {
        Self::new(Arc::clone(&self.fd), self.pages, self.kind)
    }

    /// No more will be written to a file that was never mapped for writing, which is enforced where files can be sealed.
    pub(crate) fn finish(&self) {
        self.seal();
        self.fd.leave_to_children();
    }

    /// Has the system guarantee from now on that nobody writes to the file, by any means. Returns whether it does: not
    /// while the file is mapped for writing or, on Linux, one of its pages is pinned.
    pub(crate) fn seal(&self) -> bool {
        let sealed = self.kind == Kind::Memory && call("fcntl").is_ok() && self.fd().is_ok_and(seal);
        if sealed {
            self.fd.leave_to_children();
        }
        sealed
    }

    /// Whether there is any use in asking for that.
    pub(crate) fn may_be_sealed(&self) -> bool {
        self.kind == Kind::Memory && self.fd().is_ok()
    }

    /// Nothing that all these systems have makes a hole.
    pub(crate) fn punch(&self, _range: PageRange) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// A wish that is not granted.
    pub(crate) fn collapse(&self) {}

    /// Always `None`: the system does not say.
    pub(crate) fn holes(&self, _: &Mapping, _: PageRange) -> Option<usize> {
        None
    }

    /// Nothing keeps the bytes from being changed by who has a descriptor.
    #[allow(dead_code, reason = "no module in `os` gives handles here")]
    pub(crate) fn share(&self) -> io::Result<Option<OwnedFd>> {
        Ok(None)
    }

    /// The pages that may hold something other than zeroes.
    pub(crate) fn data(&self) -> PageSet {
        PageSet::all(self.pages)
    }

    /// Bytes of memory or disk that the file takes up, or more; 0 only if all is zero.
    pub(crate) fn allocated(&self) -> u64 {
        if self.kind == Kind::Memory && cfg!(any(target_os = "linux", target_os = "android")) {
            // The kernel counts a page when it has one, and nobody's file system comes between.
            let blocks = self.fd.stat().map(|stat| u64::try_from(stat.st_blocks));
            if let Ok(Ok(blocks)) = blocks {
                return blocks * 512;
            }
        }
        (self.pages * page_size()) as u64
    }
}

#[cfg(test)]
mod tests {
    #![allow(unsafe_code)]

    use std::os::fd::AsFd;

    use rustix::fs::Mode;
    use rustix::io::FdFlags;

    use super::*;
    use crate::sys::Source;

    #[test]
    fn a_temporary_file_is_reached_by_its_descriptor_alone() {
        let fd = temporary().unwrap();
        let stat = rustix::fs::fstat(&fd).unwrap();
        assert_eq!(stat.st_nlink, 0);
        assert_eq!(Mode::from_raw_mode(stat.st_mode), Mode::RUSR | Mode::WUSR);
        assert!(rustix::io::fcntl_getfd(fd.as_fd()).unwrap().contains(FdFlags::CLOEXEC));
    }

    #[test]
    fn a_temporary_file_is_mapped_privately_and_not_shared() {
        let fd = Arc::new(Descriptor::new(temporary().unwrap()).unwrap());
        let mut file = MemoryFile::new(fd, 0, Kind::Disk);
        file.set_pages(3).unwrap();
        file.write_at(b"bytes", page_size()).unwrap();
        assert_eq!(file.allocated(), 3 * page_size() as u64);
        let mapping = Mapping::new(3, Source::Private(&file)).unwrap();
        // SAFETY: nobody writes to the mapping.
        assert_eq!(unsafe { mapping.page(1) }[..6], *b"bytes\0");
        let shared = Mapping::new(3, Source::Shared(&file)).map(drop);
        assert!(shared.is_err_and(|error| error.kind() == io::ErrorKind::Unsupported));
    }
}
