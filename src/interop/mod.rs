//! What memsnap offers to other crates (`bytes`, `vm-memory`) and to other processes.

#[cfg(feature = "bytes")]
mod bytes;
pub mod os;
#[cfg(feature = "vm-memory")]
pub mod vm_memory;
