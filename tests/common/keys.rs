//! Descriptors with which one process can read or write another process's memory.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::fs::{SealFlags, fcntl_get_seals};

use super::unix::is_closed_on_exec;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    Pagemap,
    Userfaultfd,
    /// A memory file of memsnap that is sealed against writes.
    Sealed,
    /// A memory file of memsnap that can be written.
    Unsealed,
}

/// Returns the kinds and numbers of these descriptors in the file table of the calling thread.
pub(crate) fn keys() -> Vec<(Kind, RawFd)> {
    let mut keys = Vec::new();
    for entry in fs::read_dir("/proc/thread-self/fd").unwrap() {
        let entry = entry.unwrap();
        // `/proc` also lists the descriptor of the directory, which is closed by now.
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        let number = entry.file_name().to_str().unwrap().parse().unwrap();
        let kind = match &*target {
            _ if target.starts_with("/proc/") && target.ends_with("/pagemap") => Kind::Pagemap,
            "anon_inode:[userfaultfd]" => Kind::Userfaultfd,
            _ if target.starts_with("/memfd:memsnap") && is_sealed(number) => Kind::Sealed,
            _ if target.starts_with("/memfd:memsnap") => Kind::Unsealed,
            _ => continue,
        };
        assert!(is_closed_on_exec(number), "{number}, {target}");
        keys.push((kind, number));
    }
    keys
}

/// Returns the kinds of open descriptors that a child must not inherit.
pub(crate) fn forbidden() -> Vec<Kind> {
    let mut kinds: Vec<_> = keys().into_iter().map(|(kind, _)| kind).collect();
    kinds.retain(|kind| *kind != Kind::Sealed);
    kinds.sort_unstable();
    kinds
}

/// Returns the numbers of open descriptors of this kind.
pub(crate) fn numbers_of(kind: Kind) -> Vec<RawFd> {
    keys().into_iter().filter(|key| key.0 == kind).map(|(_, number)| number).collect()
}

/// Returns the number of open descriptors, without the sockets that connect the processes of a test.
pub(crate) fn open_descriptors() -> usize {
    let entries = fs::read_dir("/proc/thread-self/fd").unwrap();
    let targets = entries.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    targets.filter(|target| !target.to_string_lossy().starts_with("socket:")).count()
}

fn is_sealed(number: RawFd) -> bool {
    // This is another open file of the same memory. Seals belong to the memory.
    let file = File::open(format!("/proc/thread-self/fd/{number}")).unwrap();
    fcntl_get_seals(&file).unwrap().contains(SealFlags::WRITE)
}

/// Makes `number` refer to another file, as if other code had closed it and opened that file.
pub(crate) fn put_in_place(other: &impl AsRawFd, number: RawFd) {
    // SAFETY: the call takes numbers and touches no memory. It closes a descriptor that memsnap owns, and
    // these tests check that memsnap stays sound nevertheless.
    let result = unsafe { libc::dup3(other.as_raw_fd(), number, libc::O_CLOEXEC) };
    assert_eq!(result, number, "{}", io::Error::last_os_error());
}

/// Gives the calling thread its own file table.
pub(crate) fn unshare_files() {
    // SAFETY: the flag affects only the file table.
    let result = unsafe { libc::unshare(libc::CLONE_FILES) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Opens a userfaultfd that write-protects asynchronously, like memsnap's.
pub(crate) fn userfaultfd() -> io::Result<OwnedFd> {
    const USER_MODE_ONLY: libc::c_int = 1;
    const API: libc::Ioctl = libc::_IOWR::<[u64; 3]>(0xaa, 0x3f);
    // SAFETY: the call takes flags only.
    let number = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | USER_MODE_ONLY) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above returned this new descriptor, and nothing else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(number.try_into().unwrap()) };
    let mut api: [u64; 3] = [0xaa, 1 << 15, 0];
    // SAFETY: `api` has the layout of `struct uffdio_api`, and outlives the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), API, &raw mut api) };
    if result == 0 { Ok(fd) } else { Err(io::Error::last_os_error()) }
}
