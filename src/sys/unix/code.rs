//! Memory that is run: what was written reaches the instruction caches.
//!
//! | processors | how |
//! |---|---|
//! | x86, x86-64, s390x | they keep instructions coherent themselves |
//! | AArch64 | the data caches are cleaned and the instruction caches invalidated, line by line; on Linux, `membarrier` (4.20) has threads that run at this moment on other processors fetch their instructions anew |
//! | AArch64 of Apple | `sys_icache_invalidate` |
//! | Arm, RISC-V (64 bits), on Linux and Android | system calls that are made for it, as their programs cannot do it themselves |
//! | others | not supported: views there cannot be executable |
#![allow(unsafe_code)]

use std::io;

use crate::sys::call;

/// Whether views can be executable.
pub(crate) const RUNS_CODE: bool = cfg!(any(
    target_arch = "x86",
    target_arch = "x86_64",
    target_arch = "s390x",
    target_arch = "aarch64",
    all(any(target_arch = "arm", target_arch = "riscv64"), any(target_os = "linux", target_os = "android")),
));

/// Has the `len` bytes from `start` on run as what they are now.
///
/// # Safety
///
/// The bytes are mapped and can be read.
pub(super) unsafe fn synchronize(start: *const u8, len: usize) -> io::Result<()> {
    call("synchronize_code")?;
    // SAFETY: forwarded to the caller.
    unsafe { imp::synchronize(start, len) }
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64", target_arch = "s390x"))]
mod imp {
    use std::io;

    #[allow(clippy::unnecessary_wraps)] // Not everywhere.
    pub(super) unsafe fn synchronize(_start: *const u8, _len: usize) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(all(target_arch = "aarch64", not(target_vendor = "apple")))]
mod imp {
    use std::arch::asm;
    use std::io;

    #[allow(clippy::unnecessary_wraps)] // Not everywhere.
    pub(super) unsafe fn synchronize(start: *const u8, len: usize) -> io::Result<()> {
        let (start, end) = (start.addr(), start.addr() + len);
        let cache_type: usize;
        // SAFETY: reads a register that the system lets programs read.
        unsafe { asm!("mrs {}, ctr_el0", out(reg) cache_type, options(nomem, nostack, preserves_flags)) };
        let line = |shift: u32| 4_usize << (cache_type >> shift & 0xF);
        let lines = |size: usize| (start & !(size - 1)..end).step_by(size);
        for address in lines(line(16)) {
            // SAFETY: writes the line of a mapped address, which can be read, back to memory; no byte changes.
            unsafe { asm!("dc cvau, {}", in(reg) address, options(nostack, preserves_flags)) };
        }
        // SAFETY: waits for that.
        unsafe { asm!("dsb ish", options(nostack, preserves_flags)) };
        for address in lines(line(0)) {
            // SAFETY: has the line of a mapped address fetched anew when it is run.
            unsafe { asm!("ic ivau, {}", in(reg) address, options(nostack, preserves_flags)) };
        }
        // SAFETY: waits for that, and discards what this processor has fetched already.
        unsafe { asm!("dsb ish", "isb", options(nostack, preserves_flags)) };
        discard_fetched();
        Ok(())
    }

    /// Has the other threads of this process discard what they have fetched, where the kernel can do that.
    #[cfg(target_os = "linux")]
    fn discard_fetched() {
        const PRIVATE_EXPEDITED_SYNC_CORE: libc::c_int = 1 << 5;
        const REGISTER: libc::c_int = 1 << 6;
        for command in [REGISTER, PRIVATE_EXPEDITED_SYNC_CORE] {
            // SAFETY: the call touches no memory of the program.
            unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn discard_fetched() {}
}

#[cfg(all(target_arch = "aarch64", target_vendor = "apple"))]
mod imp {
    use std::ffi::c_void;
    use std::io;

    unsafe extern "C" {
        fn sys_icache_invalidate(start: *mut c_void, len: usize);
    }

    #[allow(clippy::unnecessary_wraps)] // Not everywhere.
    pub(super) unsafe fn synchronize(start: *const u8, len: usize) -> io::Result<()> {
        // SAFETY: the bytes are mapped and can be read, as the caller promises; none changes.
        unsafe { sys_icache_invalidate(start.cast_mut().cast(), len) };
        Ok(())
    }
}

#[cfg(all(
    any(target_arch = "arm", target_arch = "riscv64"),
    any(target_os = "linux", target_os = "android")
))]
mod imp {
    use std::io;

    /// `cacheflush` of Arm, `riscv_flush_icache` of RISC-V. Both take the first address, the end, and flags.
    const FLUSH: libc::c_long = if cfg!(target_arch = "arm") { 0x0F_0002 } else { 259 };

    pub(super) unsafe fn synchronize(start: *const u8, len: usize) -> io::Result<()> {
        // SAFETY: the bytes are mapped and can be read, as the caller promises; none changes.
        let result = unsafe { libc::syscall(FLUSH, start, start.wrapping_add(len), 0_usize) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(not(any(
    target_arch = "x86",
    target_arch = "x86_64",
    target_arch = "s390x",
    target_arch = "aarch64",
    all(any(target_arch = "arm", target_arch = "riscv64"), any(target_os = "linux", target_os = "android")),
)))]
mod imp {
    use std::io;

    pub(super) unsafe fn synchronize(_start: *const u8, _len: usize) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
