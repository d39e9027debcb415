//! Uses of snapshots and views by other crates (`bytes`, `vm-memory`) and by other processes.
//!
//! The code here only converts types and checks arguments. `view/` and `snapshot/` do the work.

#[cfg(feature = "bytes")]
mod bytes;
pub mod os;
#[cfg(feature = "vm-memory")]
pub mod vm_memory;
