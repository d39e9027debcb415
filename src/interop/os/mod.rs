//! What only one operating system has.

#[cfg(all(target_os = "linux", not(memsnap_unix)))]
pub mod linux;
#[cfg(windows)]
pub mod windows;
