//! Reserving addresses: inaccessible pages, in which a mapping can grow.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::{self, NonNull};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::error::address_in_use;
use crate::sys::call;
use crate::sys::system::{NO_REPLACE, NO_RESERVE};

/// Maps `len` inaccessible bytes, which take address space but no memory.
///
/// # Safety
///
/// With `MAP_FIXED` in `flags`, the addresses must belong to a mapping of the caller, and no reference to bytes there may
/// exist.
pub(super) unsafe fn reserve(address: *mut c_void, len: usize, flags: MapFlags) -> io::Result<NonNull<u8>> {
    let flags = MapFlags::PRIVATE | NO_RESERVE | flags;
    // SAFETY: forwarded to the caller.
    let mapped = unsafe { mmap_anonymous(address, len, ProtFlags::empty(), flags) }?;
    NonNull::new(mapped.cast()).ok_or_else(|| io::Error::other("mmap returned address zero"))
}

/// Maps `len` inaccessible bytes, of which the first `before` bytes are before `address`.
///
/// Fails if other memory is there.
pub(super) fn reserve_at(address: NonZeroUsize, before: usize, len: usize) -> io::Result<NonNull<u8>> {
    let in_use = || address_in_use(address.get(), len);
    let wanted = address.get().checked_sub(before).ok_or_else(in_use)?;
    call("mmap")?;
    // SAFETY: with NO_REPLACE, or without MAP_FIXED, the kernel replaces no mapping, so no memory in use changes.
    match unsafe { reserve(ptr::without_provenance_mut(wanted), len, NO_REPLACE) } {
        Ok(area) if area.addr().get() == wanted => Ok(area),
        Ok(elsewhere) => {
            // This system treats the address as a hint, and it was in use.
            // SAFETY: the mapping was made just now, and its address was not stored anywhere.
            let _ = unsafe { munmap(elsewhere.as_ptr().cast(), len) };
            Err(in_use())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(in_use()),
        Err(error) => Err(error),
    }
}
