//! What the system says of the memory of the process.

use std::io;

/// Bytes that the process has in memory.
#[cfg(not(windows))]
pub(crate) fn memory_in_use() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| io::Error::other("/proc/self/status does not tell"))
}

/// Bytes that the process has in memory.
#[cfg(windows)]
pub(crate) fn memory_in_use() -> io::Result<u64> {
    use windows_sys::Win32::System::ProcessStatus::{K32GetProcessMemoryInfo, PROCESS_MEMORY_COUNTERS};
    use windows_sys::Win32::System::Threading::GetCurrentProcess;

    let mut counters = PROCESS_MEMORY_COUNTERS::default();
    let place = &raw mut counters;
    let size = u32::try_from(size_of::<PROCESS_MEMORY_COUNTERS>()).unwrap_or(0);
    // SAFETY: the call cannot fail, and its result is a constant.
    let process = unsafe { GetCurrentProcess() };
    // SAFETY: the answer has a place as long as said.
    match unsafe { K32GetProcessMemoryInfo(process, place, size) } {
        0 => Err(io::Error::last_os_error()),
        _ => Ok(counters.WorkingSetSize as u64),
    }
}
