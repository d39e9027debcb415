//! What only one operating system has.

#[cfg(target_os = "linux")]
pub mod linux;
