//! What memsnap offers to other crates and to other processes.

#[cfg(feature = "bytes")]
mod bytes;
pub mod os;
#[cfg(feature = "vm-memory")]
pub mod vm_memory;
