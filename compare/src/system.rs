//! What the system says of its memory.

use std::io;

/// Bytes that are not in use.
#[cfg(not(windows))]
pub(crate) fn available() -> io::Result<u64> {
    let info = std::fs::read_to_string("/proc/meminfo")?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| io::Error::other("/proc/meminfo names no available memory"))
}

/// Bytes that are not in use.
#[cfg(windows)]
pub(crate) fn available() -> io::Result<u64> {
    use windows_sys::Win32::System::SystemInformation::{GlobalMemoryStatusEx, MEMORYSTATUSEX};

    let length = u32::try_from(size_of::<MEMORYSTATUSEX>()).unwrap_or(0);
    let mut status = MEMORYSTATUSEX { dwLength: length, ..MEMORYSTATUSEX::default() };
    // SAFETY: the answer has a place as long as said.
    match unsafe { GlobalMemoryStatusEx(&raw mut status) } {
        0 => Err(io::Error::last_os_error()),
        _ => Ok(status.ullAvailPhys),
    }
}
