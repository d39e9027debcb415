//! What the system says of a range of addresses, without touching it in a way that could stop the process.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use memsnap::page_size;

/// A mapping of this process.
#[derive(Debug)]
pub(crate) struct Area {
    pub(crate) range: Range<usize>,
    /// As in `rw-p`.
    pub(crate) access: String,
    pub(crate) name: String,
    /// The lines of `/proc/self/smaps` below the first.
    details: String,
}

impl Area {
    /// A number of `/proc/self/smaps`, in bytes; 0 if it is not there.
    pub(crate) fn bytes(&self, field: &str) -> usize {
        let line = self.details.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).map_or("0", str::trim);
        kib.parse::<usize>().unwrap() * 1024
    }
}

/// The mappings that have some of the `len` bytes from `start` on.
pub(crate) fn areas(start: *const u8, len: usize) -> Vec<Area> {
    let wanted = start.addr()..start.addr() + len;
    let mut areas: Vec<Area> = Vec::new();
    for line in fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        if let Some(area) = first_line(line) {
            areas.push(area);
        } else if let Some(area) = areas.last_mut() {
            area.details.push_str(line);
            area.details.push('\n');
        }
    }
    areas.retain(|area| area.range.start < wanted.end && wanted.start < area.range.end);
    areas
}

fn first_line(line: &str) -> Option<Area> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let hexadecimal = |digits| usize::from_str_radix(digits, 16).ok();
    let range = hexadecimal(start)?..hexadecimal(end)?;
    let access = words.next()?.to_owned();
    let name = words.nth(3).unwrap_or("").trim().to_owned();
    Some(Area { range, access, name, details: String::new() })
}

/// What may be done with each of `pages` pages from `start` on, as in `rw-`; `gap` where nothing is mapped.
pub(crate) fn access(start: *const u8, pages: usize) -> Vec<String> {
    let areas = areas(start, pages * page_size());
    let addresses = (0..pages).map(|page| start.addr() + page * page_size());
    let of = |address| areas.iter().find(|area| area.range.contains(&address));
    addresses.map(|address| of(address).map_or("gap".into(), |area| area.access[..3].to_owned())).collect()
}

/// Whether each of `pages` pages from `start` on is accessible like this, as in `rw-`.
#[track_caller]
pub(crate) fn assert_access(what: &str, start: *const u8, pages: usize, expected: &str) {
    let access = access(start, pages);
    let other = access.iter().position(|access| access != expected);
    assert_eq!(other, None, "{what}: {} of {pages} pages", other.map_or("", |page| &access[page]));
}

/// The pages from `start` on that are in memory, the page of zeroes included.
pub(crate) fn present(start: *const u8, pages: usize) -> usize {
    const PRESENT: u64 = 1 << 63;
    let mut entries = vec![0; pages * 8];
    let first = (start.addr() / page_size()) as u64;
    File::open("/proc/self/pagemap").unwrap().read_exact_at(&mut entries, first * 8).unwrap();
    let entries = entries.chunks_exact(8).map(|entry| u64::from_ne_bytes(entry.try_into().unwrap()));
    entries.filter(|entry| entry & PRESENT != 0).count()
}

/// The byte at `address`, if the kernel can read it for this process.
pub(crate) fn try_read(address: *const u8) -> Option<u8> {
    let (mut reader, writer) = io::pipe().unwrap();
    // SAFETY: whatever the address is, the kernel reads there or says that it cannot.
    let written = unsafe { libc::write(writer.as_raw_fd(), address.cast(), 1) };
    if written != 1 {
        assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::EFAULT));
        return None;
    }
    let mut byte = [0];
    reader.read_exact(&mut byte).unwrap();
    Some(byte[0])
}

/// Has the kernel write `byte` at `address`, of memory that is the caller's and that no reference is to.
pub(crate) fn try_write(address: *mut u8, byte: u8) -> bool {
    let (reader, mut writer) = io::pipe().unwrap();
    writer.write_all(&[byte]).unwrap();
    // SAFETY: the kernel writes there, where the caller may, or says that it cannot.
    let read = unsafe { libc::read(reader.as_raw_fd(), address.cast(), 1) };
    assert!(read == 1 || io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT));
    read == 1
}

/// Address ranges that take up all mappings that the process may have, until it is dropped.
pub(crate) struct AllMappings {
    start: *mut libc::c_void,
    len: usize,
}

impl AllMappings {
    /// `Err` tells why that cannot be done within a test.
    pub(crate) fn take() -> Result<Self, String> {
        let limit = fs::read_to_string("/proc/sys/vm/max_map_count").map_err(|error| error.to_string())?;
        let limit: usize = limit.trim().parse().map_err(|_| format!("max_map_count is {limit:?}"))?;
        if limit > 300_000 {
            return Err(format!("max_map_count is {limit}"));
        }
        let (len, flags) =
            (2 * limit * page_size(), libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
        // SAFETY: a new mapping at an address that the kernel picks.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error().to_string());
        }
        let all = Self { start, len };
        for page in (0..2 * limit).step_by(2) {
            let address = start.wrapping_byte_add(page * page_size());
            // SAFETY: the page is of the mapping made above, which nobody uses.
            if unsafe { libc::mprotect(address, page_size(), libc::PROT_READ) } != 0 {
                break;
            }
        }
        // What one call more would have taken too many of. These few stay.
        for _ in 0..limit {
            let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
            // SAFETY: as above.
            let one = unsafe { libc::mmap(std::ptr::null_mut(), page_size(), libc::PROT_NONE, flags, -1, 0) };
            if one == libc::MAP_FAILED {
                return Ok(all);
            }
        }
        Err("there is no limit to mappings".into())
    }
}

impl Drop for AllMappings {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `take`, and nobody uses it.
        unsafe { libc::munmap(self.start, self.len) };
    }
}
