//! Ordinary Rust values that can be rolled back.

#[cfg(not(feature = "testing"))]
mod allocator;
#[cfg(feature = "testing")]
pub mod allocator;
