//! Views as guest memory of a virtual machine, for the `vm-memory` crate (0.18). Needs the feature `vm-memory`.
//!
//! [`GuestRegion`] makes a view a region of guest memory. A [`GuestRegionCollection`] of such regions is the guest
//! memory, with all methods that vm-memory has for it. Like vm-memory, this module is for 64-bit targets.
//!
//! # Examples
//!
//! ```
//! use memsnap::{Snapshot, vm_memory::GuestRegion};
//! use vm_memory::{Bytes, GuestAddress, GuestRegionCollection};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (low, high) = (Snapshot::zeroed(1 << 20)?, Snapshot::zeroed(1 << 20)?);
//! let memory = GuestRegionCollection::from_regions(vec![
//!     GuestRegion::new(low.into_view()?, GuestAddress(0))?,
//!     GuestRegion::new(high.into_view()?, GuestAddress(1 << 32))?,
//! ])?;
//! memory.write_obj(7_u64, GuestAddress((1 << 32) + 0x1000))?;
//! assert_eq!(memory.read_obj::<u64>(GuestAddress((1 << 32) + 0x1000))?, 7);
//! # Ok(())
//! # }
//! ```
//!
//! [`GuestRegionCollection`]: ::vm_memory::GuestRegionCollection

mod bitmap;
mod region;
mod traits;

pub use bitmap::{GuestAccess, LogBitmap, LogBitmapSlice};
pub use region::GuestRegion;
