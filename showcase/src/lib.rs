#![doc = include_str!("../README.md")]

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod kvm;
pub mod report;
pub mod sqlite;
pub mod wasm;
