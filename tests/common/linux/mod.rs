//! Functions for Linux that the tests of limits, files and memory use.

pub(crate) mod ksm;
pub(crate) mod seccomp;
mod swap;

use std::fs::{self, File};
use std::io;

use memsnap::page_size;
use rustix::process::Resource;
pub(crate) use swap::SwapFile;

use super::alone::alone_with;
use super::unix::Limit;
use super::{maps, skip};

/// Runs `body` [alone](super::alone), in a process whose heap can still grow once no mapping can be made.
pub(crate) fn with_steady_heap(test: &str, body: impl FnOnce()) {
    if !cfg!(target_env = "gnu") {
        return skip(test, "only glibc has settings that keep its heap from making new mappings");
    }
    // There is one heap. It grows in steps so large that the test needs only one.
    let top = (64 << 20).to_string();
    let heap = [("MALLOC_ARENA_MAX", "1"), ("MALLOC_MMAP_MAX_", "0"), ("MALLOC_TOP_PAD_", top.as_str())];
    alone_with(test, &heap, body);
}

pub(crate) const CAP_IPC_LOCK: u32 = 14;
pub(crate) const CAP_SYS_CHROOT: u32 = 18;
pub(crate) const CAP_SYS_ADMIN: u32 = 21;

/// Returns whether this process has a capability on the whole machine, not only within a container.
pub(crate) fn is_capable_of(capability: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    let capabilities = u64::from_str_radix(capabilities.trim(), 16).unwrap();
    let users = fs::read_to_string("/proc/self/uid_map").unwrap();
    let all_users = ["0", "0", "4294967295"];
    capabilities & 1 << capability != 0 && users.split_ascii_whitespace().eq(all_users)
}

/// Returns whether the system may refuse addresses that this process does not write to.
pub(crate) fn addresses_are_limited() -> bool {
    let overcommit = fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap();
    overcommit.trim() == "2" || rustix::process::getrlimit(Resource::As).current.is_some()
}

/// Returns how many mappings the process may have.
///
/// `Err` says that a test cannot use them up, since they are too many.
pub(crate) fn mappings_limit() -> Result<usize, String> {
    let limit = fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    if limit > 300_000 { Err(format!("max_map_count is {limit}")) } else { Ok(limit) }
}

/// Returns the numbers of this process's descriptors of memsnap's memory files.
fn memory_descriptors() -> Vec<String> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir("/proc/self/fd").unwrap() {
        let entry = entry.unwrap();
        // `/proc` also lists the descriptor of the directory, which is closed by now.
        let target = fs::read_link(entry.path()).unwrap_or_default();
        if target.to_string_lossy().starts_with("/memfd:memsnap") {
            numbers.push(entry.file_name().into_string().unwrap());
        }
    }
    numbers
}

/// Opens the memory files of memsnap that are open in this process once more.
pub(crate) fn memory_files() -> Vec<File> {
    let paths = memory_descriptors().into_iter().map(|number| format!("/proc/self/fd/{number}"));
    paths.map(|path| File::open(path).unwrap()).collect()
}

/// Returns, for each descriptor of a memory file of memsnap, whether it is closed on exec.
pub(crate) fn closed_on_exec() -> Vec<bool> {
    const O_CLOEXEC: u32 = 0o2_000_000;
    let flags = memory_descriptors().into_iter().map(|number| {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        u32::from_str_radix(flags.trim(), 8).unwrap()
    });
    flags.map(|flags| flags & O_CLOEXEC != 0).collect()
}

/// Returns how many bytes of memory or of disk space a file uses.
pub(crate) fn allocated(file: &File) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512
}

/// Returns how much memory the memory files of memsnap use, mapped or not, if the system reports it.
#[allow(clippy::unnecessary_wraps)] // Other systems do not report it.
pub(crate) fn memory_file_bytes() -> Option<u64> {
    Some(memory_files().iter().map(allocated).sum())
}

impl Limit {
    /// Allows the process to map at most `spare` more bytes of address space.
    pub(crate) fn address_space(spare: usize) -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let used = maps::kib(&status, "VmSize:").unwrap();
        Self::set(Resource::As, (used + spare) as u64)
    }
}

/// Address ranges that use up all mappings of the process until the value is dropped.
pub(crate) struct AllMappings {
    start: *mut libc::c_void,
    len: usize,
}

impl AllMappings {
    /// Uses up all mappings. `Err` says why a test cannot do this.
    pub(crate) fn take() -> Result<Self, String> {
        let limit = mappings_limit()?;
        let (len, flags) =
            (2 * limit * page_size(), libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
        // SAFETY: creates a new mapping at an address that the kernel chooses.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        let all = Self { start, len };
        for page in (0..2 * limit).step_by(2) {
            let address = start.wrapping_byte_add(page * page_size());
            // SAFETY: the page belongs to the mapping made above, which nobody uses.
            if unsafe { libc::mprotect(address, page_size(), libc::PROT_READ) } != 0 {
                break;
            }
        }
        // A call that needs two more mappings fails while one is still left. These mappings use up the last
        // ones, and are never unmapped.
        for _ in 0..limit {
            let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
            // SAFETY: as above.
            let one = unsafe { libc::mmap(std::ptr::null_mut(), page_size(), libc::PROT_NONE, flags, -1, 0) };
            if one == libc::MAP_FAILED {
                return Ok(all);
            }
        }
        panic!("{limit} more mappings were made without reaching the limit");
    }
}

impl Drop for AllMappings {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `take`, and nobody uses it.
        unsafe { libc::munmap(self.start, self.len) };
    }
}
