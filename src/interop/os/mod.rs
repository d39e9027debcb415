//! Features of a single operating system: passing snapshots between processes.

#[cfg(all(target_os = "linux", not(memsnap_unix)))]
pub mod linux;
#[cfg(windows)]
pub mod windows;
