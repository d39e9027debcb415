//! Descriptors by which one process can look into another's memory, or write there.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::fs::{SealFlags, fcntl_get_seals};

use super::unix::is_closed_on_exec;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    Pagemap,
    Userfaultfd,
    /// A memory file of memsnap.
    Sealed,
    /// One that can be written.
    Unsealed,
}

/// The numbers of these descriptors in the file table of the calling thread.
pub(crate) fn keys() -> Vec<(Kind, RawFd)> {
    let mut keys = Vec::new();
    for entry in fs::read_dir("/proc/thread-self/fd").unwrap() {
        let entry = entry.unwrap();
        // The descriptor of the directory is listed too; it is of no interest.
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

/// Those that a child must not have of its parent.
pub(crate) fn forbidden() -> Vec<Kind> {
    let mut kinds: Vec<_> = keys().into_iter().map(|(kind, _)| kind).collect();
    kinds.retain(|kind| *kind != Kind::Sealed);
    kinds.sort_unstable();
    kinds
}

/// The numbers of open descriptors.
pub(crate) fn numbers_of(kind: Kind) -> Vec<RawFd> {
    keys().into_iter().filter(|key| key.0 == kind).map(|(_, number)| number).collect()
}

/// The number of open descriptors, but for the sockets by which the tests' processes talk to each other.
pub(crate) fn open_descriptors() -> usize {
    let entries = fs::read_dir("/proc/thread-self/fd").unwrap();
    let targets = entries.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    targets.filter(|target| !target.to_string_lossy().starts_with("socket:")).count()
}

fn is_sealed(number: RawFd) -> bool {
    // Another open file, whose seals are the same.
    let file = File::open(format!("/proc/thread-self/fd/{number}")).unwrap();
    fcntl_get_seals(&file).unwrap().contains(SealFlags::WRITE)
}

/// Has `number` stand for another file from now on, as when somebody closed it and opened that.
pub(crate) fn put_in_place(other: &impl AsRawFd, number: RawFd) {
    // SAFETY: takes numbers only. What the number stood for is closed against memsnap's will, which is what is tested.
    let result = unsafe { libc::dup3(other.as_raw_fd(), number, libc::O_CLOEXEC) };
    assert_eq!(result, number, "{}", io::Error::last_os_error());
}

/// Gives the calling thread a file table of its own.
pub(crate) fn unshare_files() {
    // SAFETY: the flag concerns nothing but the file table.
    let result = unsafe { libc::unshare(libc::CLONE_FILES) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// A userfaultfd that write-protects asynchronously like memsnap's.
pub(crate) fn userfaultfd() -> io::Result<OwnedFd> {
    const USER_MODE_ONLY: libc::c_int = 1;
    const API: libc::Ioctl = libc::_IOWR::<[u64; 3]>(0xaa, 0x3f);
    // SAFETY: the call takes flags only.
    let number = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | USER_MODE_ONLY) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was made just now.
    let fd = unsafe { OwnedFd::from_raw_fd(number.try_into().unwrap()) };
    let mut api: [u64; 3] = [0xaa, 1 << 15, 0];
    // SAFETY: `api` is a `struct uffdio_api`.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), API, &raw mut api) };
    if result == 0 { Ok(fd) } else { Err(io::Error::last_os_error()) }
}
