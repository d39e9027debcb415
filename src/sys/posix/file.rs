//! Makes and seals the files that mappings show.
//!
//! They are memfds on Linux, Android and FreeBSD 13, elsewhere temporary files whose names are removed. How files are
//! written is up to `unix/file.rs`.
//!
//! POSIX shared memory is not used. macOS does not map it privately, does not change its length a second time, and does
//! not write to it by `write`. On OpenBSD it is a file in `/tmp`.
//!
//! A temporary file is written before it is mapped and never afterwards, because on some systems a mapping does not
//! show what is written later (OpenBSD). It is not mapped shared: if the disk has no room for a page, a write to a
//! shared mapping ends the process (`SIGBUS`), while `write` returns an error.

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

/// A descriptor that mappings share, since they keep the descriptors of their files to map them again.
pub(in crate::sys) type FileDescriptor = Arc<Descriptor>;

/// The flags of a descriptor that gives no access to the bytes of its file. None are needed here.
pub(in crate::sys) const NOT_OPEN: OFlags = OFlags::empty();

/// Whether to try `memfd_create`. Tests turn it off by building with `MEMSNAP_FILES=temporary`.
const MEMORY: bool = match option_env!("MEMSNAP_FILES") {
    Some(name) => match name.as_bytes() {
        b"temporary" => false,
        _ => panic!("MEMSNAP_FILES is temporary or not set"),
    },
    None => true,
};

/// Where the bytes of a file are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::sys) enum Kind {
    /// In memory and swap space. Only memsnap has the file.
    Memory,
    /// In a file system, or in a file that other code has.
    Disk,
}

/// Makes an empty file.
pub(in crate::sys) fn new_file(name: &CStr) -> io::Result<(FileDescriptor, Kind)> {
    if MEMORY && let Some(memory) = memory(name)? {
        return Ok((Descriptor::kept_from_children(memory)?.into(), Kind::Memory));
    }
    Ok((Descriptor::new(temporary()?)?.into(), Kind::Disk))
}

/// Duplicates the descriptor of a file that other code has.
pub(in crate::sys) fn borrowed_file(fd: BorrowedFd<'_>) -> io::Result<(FileDescriptor, Kind)> {
    call("dup")?;
    Ok((Descriptor::new(fd.try_clone_to_owned()?)?.into(), Kind::Disk))
}

/// Makes a memfd, or returns `None` if the system has none.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
fn memory(name: &CStr) -> io::Result<Option<OwnedFd>> {
    use rustix::fs::{MemfdFlags, memfd_create};
    use rustix::io::Errno;

    call("memfd_create")?;
    match memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING) {
        // The system is older, or a filter refuses the call.
        Err(Errno::NOSYS | Errno::PERM) => Ok(None),
        memory => Ok(Some(memory?)),
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
fn memory(_name: &CStr) -> io::Result<Option<OwnedFd>> {
    Ok(None)
}

/// Makes the system guarantee that nothing changes a memfd. Returns whether it does.
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

/// Makes a temporary file and removes its name.
fn temporary() -> io::Result<OwnedFd> {
    loop {
        // The hash has random keys, which are others each time and which no other process can guess.
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

/// Always returns `None`: no call that all these systems have makes copies that share blocks.
pub(in crate::sys) fn clone_of(_file: &File, _len: u64) -> Option<(MemoryFile, usize)> {
    None
}

/// Always returns `None`: holes are not searched for.
///
/// `SEEK_HOLE` of some file systems reports data that is not on the disk yet as a hole (APFS, ZFS).
pub(in crate::sys) fn with_extents(_file: &File, _len: u64) -> Option<(File, Vec<Range<u64>>)> {
    None
}

impl MemoryFile {
    /// Returns another value for the same file.
    pub(super) fn again(&self) -> Self {
        Self::new(Arc::clone(&self.fd), self.pages, self.kind)
    }

    /// Makes the file immutable, which the system enforces if it can seal files.
    ///
    /// The file must never have been mapped for writing.
    pub(crate) fn finish(&self) {
        self.seal();
        self.fd.leave_to_children();
    }

    /// Makes the system guarantee that nothing writes to the file any more. Returns whether it does.
    ///
    /// The system refuses while the file is mapped for writing. Linux also refuses while one of its pages is pinned.
    pub(crate) fn seal(&self) -> bool {
        let sealed = self.kind == Kind::Memory && call("fcntl").is_ok() && self.fd().is_ok_and(seal);
        if sealed {
            self.fd.leave_to_children();
        }
        sealed
    }

    /// Returns whether [`seal`](Self::seal) may succeed.
    pub(crate) fn may_be_sealed(&self) -> bool {
        self.kind == Kind::Memory && self.fd().is_ok()
    }

    /// Always fails with `Unsupported`: no call that all these systems have makes holes.
    pub(crate) fn punch(&self, _range: PageRange) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Does nothing: there is no call to ask for huge pages.
    pub(crate) fn collapse(&self) {}

    /// Always returns `None`: the system does not report holes.
    pub(crate) fn holes(&self, _: &Mapping, _: PageRange) -> Option<usize> {
        None
    }

    /// Always returns `None`: not all of these systems can guarantee that the bytes never change.
    #[allow(dead_code, reason = "no module in `os` gives handles here")]
    pub(crate) fn share(&self) -> io::Result<Option<OwnedFd>> {
        Ok(None)
    }

    /// Returns all pages: the system does not report which ones are zero.
    pub(crate) fn data(&self) -> PageSet {
        PageSet::all(self.pages)
    }

    /// Returns the number of bytes of memory or disk that the file takes, or more.
    ///
    /// It is 0 only if all bytes are zero.
    pub(crate) fn allocated(&self) -> u64 {
        if self.kind == Kind::Memory && cfg!(any(target_os = "linux", target_os = "android")) {
            // For memfds, the kernel counts exactly the pages that have memory.
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
        // SAFETY: the page is inside the mapping and readable, and nothing writes to it.
        assert_eq!(unsafe { mapping.page(1) }[..6], *b"bytes\0");
        let shared = Mapping::new(3, Source::Shared(&file)).map(drop);
        assert!(shared.is_err_and(|error| error.kind() == io::ErrorKind::Unsupported));
    }
}
