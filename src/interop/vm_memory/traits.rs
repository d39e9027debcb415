//! Implements vm-memory's traits for `GuestRegion`: lengths, addresses, and volatile access to the bytes.
//!
//! vm-memory validates guest addresses and decides how bytes are copied.
#![allow(unsafe_code)]

use ::vm_memory::bitmap::{BS, Bitmap as _};
use ::vm_memory::{
    Address, GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes, GuestMemoryResult,
    GuestUsize, MemoryRegionAddress, VolatileSlice,
};

use super::bitmap::GuestAccess;
use super::region::GuestRegion;

impl<S, A: GuestAccess> GuestMemoryRegion for GuestRegion<S, A> {
    type B = A::Bitmap;

    fn len(&self) -> GuestUsize {
        self.len as GuestUsize
    }

    fn start_addr(&self) -> GuestAddress {
        self.start
    }

    fn bitmap(&self) -> BS<'_, A::Bitmap> {
        self.bitmap.slice_at(0)
    }

    fn get_host_address(&self, addr: MemoryRegionAddress) -> GuestMemoryResult<*mut u8> {
        let addr = self.check_address(addr).ok_or(GuestMemoryError::InvalidBackendAddress)?;
        Ok(self.host.wrapping_add(offset(addr)?))
    }

    fn get_slice(
        &self,
        addr: MemoryRegionAddress,
        count: usize,
    ) -> GuestMemoryResult<VolatileSlice<'_, BS<'_, A::Bitmap>>> {
        // SAFETY: the `accessible` bytes from `host` on are the view's memory. They are mapped, readable and writable
        // until the next call that has the view by `&mut`, and the slice borrows the region until then. Meanwhile, all
        // other accesses are volatile too: they use slices like this one, because a method that uses the view needs the
        // region by `&mut` or by value.
        let all = unsafe { VolatileSlice::with_bitmap(self.host, self.accessible, self.bitmap(), None) };
        Ok(all.subslice(offset(addr)?, count)?)
    }
}

impl<S, A: GuestAccess> GuestMemoryRegionBytes for GuestRegion<S, A> {}

/// Returns an address in a region as an offset in bytes.
fn offset(addr: MemoryRegionAddress) -> GuestMemoryResult<usize> {
    usize::try_from(addr.raw_value()).map_err(|_| GuestMemoryError::InvalidBackendAddress)
}
