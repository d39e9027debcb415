//! The mappings, the access and the memory of addresses, as the system reports them. No access here can stop
//! the process.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::slice;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use memsnap::page_size;

use super::LINUX;

/// A mapping of this process.
#[derive(Debug)]
pub(crate) struct Area {
    pub(crate) range: Range<usize>,
    /// The permissions, such as `rw-p`.
    pub(crate) access: String,
    pub(crate) name: String,
    /// The lines of `/proc/self/smaps` after the first line of the mapping.
    details: String,
}

impl Area {
    /// Returns a number from `/proc/self/smaps`, in bytes, or 0 if the field is missing.
    pub(crate) fn bytes(&self, field: &str) -> usize {
        let line = self.details.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).map_or("0", str::trim);
        kib.parse::<usize>().unwrap() * 1024
    }
}

/// Returns the mappings that overlap the `len` bytes from `start`. Linux only.
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

/// Returns the access to each of `pages` pages from `start`, such as `rw-`, or `gap` if nothing is mapped
/// there.
fn access(start: *const u8, pages: usize) -> Vec<String> {
    let areas = areas(start, pages * page_size());
    let addresses = (0..pages).map(|page| start.addr() + page * page_size());
    let of = |address| areas.iter().find(|area| area.range.contains(&address));
    addresses.map(|address| of(address).map_or("gap".into(), |area| area.access[..3].to_owned())).collect()
}

/// Checks that each of `pages` pages from `start` has the access `expected`, such as `rw-`.
///
/// If the system does not list mappings, this reads and writes some of the pages instead. It writes the byte
/// that is there already.
#[track_caller]
pub(crate) fn assert_access(what: &str, start: *const u8, pages: usize, expected: &str) {
    if LINUX {
        let access = access(start, pages);
        let other = access.iter().position(|access| access != expected);
        assert_eq!(other, None, "{what}: {} of {pages} pages", other.map_or("", |page| &access[page]));
        return;
    }
    for page in (0..pages).step_by(pages / 20 + 1).chain(pages.checked_sub(1)) {
        let address = start.wrapping_add(page * page_size());
        let byte = try_read(address);
        assert_eq!(byte.is_some(), expected.starts_with('r'), "{what}: reading page {page} of {pages}");
        let written = try_write(address.cast_mut(), byte.unwrap_or(0));
        assert_eq!(written, expected.contains('w'), "{what}: writing page {page} of {pages}");
    }
}

/// Returns how many pages from `start` are resident, including zero pages, if the system reports it.
pub(crate) fn present(start: *const u8, pages: usize) -> Option<usize> {
    const PRESENT: u64 = 1 << 63;
    if !LINUX {
        return None;
    }
    let mut entries = vec![0; pages * 8];
    let first = (start.addr() / page_size()) as u64;
    let mut pagemap = File::open("/proc/self/pagemap").unwrap();
    pagemap.seek(SeekFrom::Start(first * 8)).unwrap();
    pagemap.read_exact(&mut entries).unwrap();
    let entries = entries.chunks_exact(8).map(|entry| u64::from_ne_bytes(entry.try_into().unwrap()));
    Some(entries.filter(|entry| entry & PRESENT != 0).count())
}

/// The memory that is mapped in this process, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) rss: usize,
    /// Anonymous memory.
    pub(crate) anonymous: usize,
    /// Pages of memory files that are mapped.
    pub(crate) shared: usize,
}

/// Returns the memory that is mapped in this process, if the system reports it.
pub(crate) fn memory() -> Option<Memory> {
    if !LINUX {
        return None;
    }
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let field = |name| kib(&rollup, name).unwrap_or_else(|| panic!("no {name} in\n{rollup}"));
    Some(Memory { rss: field("Rss:"), anonymous: field("Pss_Anon:"), shared: field("Pss_Shmem:") })
}

pub(crate) fn kib(report: &str, name: &str) -> Option<usize> {
    let line = report.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? * 1024)
}

/// A file into which the system copies bytes.
fn file() -> MutexGuard<'static, File> {
    static FILE: LazyLock<Mutex<File>> = LazyLock::new(|| Mutex::new(tempfile::tempfile().unwrap()));
    FILE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the byte at `address` if the system can read it for this process.
pub(crate) fn try_read(address: *const u8) -> Option<u8> {
    let mut file = file();
    file.rewind().unwrap();
    // SAFETY: no Rust code reads through this slice. Only the system does, and it returns an error if it
    // cannot read there.
    let there = unsafe { slice::from_raw_parts(address, 1) };
    if file.write(there).ok()? == 0 {
        return None;
    }
    let mut byte = [0];
    file.rewind().unwrap();
    file.read_exact(&mut byte).unwrap();
    Some(byte[0])
}

/// Makes the system write `byte` at `address`, in memory that belongs to the caller and that no reference
/// points to.
pub(crate) fn try_write(address: *mut u8, byte: u8) -> bool {
    let mut file = file();
    file.rewind().unwrap();
    file.write_all(&[byte]).unwrap();
    file.rewind().unwrap();
    // SAFETY: no Rust code accesses this slice. Only the system writes there, and it returns an error if it
    // cannot. The caller owns the byte, and has no other reference to it.
    let there = unsafe { slice::from_raw_parts_mut(address, 1) };
    file.read(there).is_ok_and(|read| read == 1)
}
