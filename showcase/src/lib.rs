#![doc = include_str!("../README.md")]
// The files that need `unsafe` allow it.
#![deny(unsafe_code)]

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod kvm;
pub mod report;
pub mod sqlite;
pub mod wasm;
