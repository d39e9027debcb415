//! The memory of this process, as the system counts it.

use std::io;

/// Returns how many bytes of this process are resident.
#[cfg(not(windows))]
pub(crate) fn memory_in_use() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| io::Error::other("/proc/self/status has no VmRSS"))
}

/// Returns how many bytes of this process are resident.
#[cfg(windows)]
pub(crate) fn memory_in_use() -> io::Result<u64> {
    use windows_sys::Win32::System::ProcessStatus::{K32GetProcessMemoryInfo, PROCESS_MEMORY_COUNTERS};
    use windows_sys::Win32::System::Threading::GetCurrentProcess;

    let mut counters = PROCESS_MEMORY_COUNTERS::default();
    let counters_at = &raw mut counters;
    let size = u32::try_from(size_of::<PROCESS_MEMORY_COUNTERS>()).unwrap_or(0);
    // SAFETY: the call takes no arguments, and returns a constant that stands for this process.
    let process = unsafe { GetCurrentProcess() };
    // SAFETY: the call writes at most `size` bytes to `counters`, which is this long.
    match unsafe { K32GetProcessMemoryInfo(process, counters_at, size) } {
        0 => Err(io::Error::last_os_error()),
        _ => Ok(counters.WorkingSetSize as u64),
    }
}
