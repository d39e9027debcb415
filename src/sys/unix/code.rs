//! Makes the processor execute what was written to memory, by keeping its instruction caches coherent.
//!
//! Which pages are executable is up to `mapping.rs`. How it is done depends on the processor:
//!
//! | processors | how |
//! |---|---|
//! | x86, x86-64, s390x | the processor keeps its instruction caches coherent |
//! | AArch64 | the data caches are cleaned and the instruction caches invalidated, line by line. On Linux, `membarrier` (4.20) makes threads that run on other processors at this moment fetch their instructions again |
//! | AArch64 of Apple | `sys_icache_invalidate` does it |
//! | Arm, RISC-V (64 bits), on Linux and Android | a system call does it, because programs cannot |
//! | others | memsnap has no code for it, so views cannot be executable |
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

/// Makes all processors execute the `len` bytes from `start` on as they are now.
///
/// # Safety
///
/// The bytes must be mapped and readable.
pub(super) unsafe fn synchronize(start: *const u8, len: usize) -> io::Result<()> {
    call("synchronize_code")?;
    // SAFETY: forwarded to the caller.
    unsafe { imp::synchronize(start, len) }
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64", target_arch = "s390x"))]
mod imp {
    use std::io;

    #[allow(clippy::unnecessary_wraps)] // Other processors can fail.
    pub(super) unsafe fn synchronize(_start: *const u8, _len: usize) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(all(target_arch = "aarch64", not(target_vendor = "apple")))]
mod imp {
    use std::arch::asm;
    use std::io;

    #[allow(clippy::unnecessary_wraps)] // Other processors can fail.
    pub(super) unsafe fn synchronize(start: *const u8, len: usize) -> io::Result<()> {
        let (start, end) = (start.addr(), start.addr() + len);
        let cache_type: usize;
        // SAFETY: the instruction reads a register that the system allows programs to read, and changes nothing.
        unsafe { asm!("mrs {}, ctr_el0", out(reg) cache_type, options(nomem, nostack, preserves_flags)) };
        let line = |shift: u32| 4_usize << (cache_type >> shift & 0xF);
        let lines = |size: usize| (start & !(size - 1)..end).step_by(size);
        for address in lines(line(16)) {
            // SAFETY: the address is in a cache line of readable bytes. The instruction writes the line back to memory,
            // and changes no byte.
            unsafe { asm!("dc cvau, {}", in(reg) address, options(nostack, preserves_flags)) };
        }
        // SAFETY: the instruction waits until the lines are written back, and changes nothing.
        unsafe { asm!("dsb ish", options(nostack, preserves_flags)) };
        for address in lines(line(0)) {
            // SAFETY: the address is in a cache line of readable bytes. The instruction makes processors fetch the line
            // again when they execute it, and changes no byte.
            unsafe { asm!("ic ivau, {}", in(reg) address, options(nostack, preserves_flags)) };
        }
        // SAFETY: the instructions wait for that, and discard the instructions that this processor has already fetched.
        unsafe { asm!("dsb ish", "isb", options(nostack, preserves_flags)) };
        discard_fetched();
        Ok(())
    }

    /// Makes other threads of this process discard the instructions they have fetched.
    ///
    /// Does nothing if the kernel does not support that.
    #[cfg(target_os = "linux")]
    fn discard_fetched() {
        const PRIVATE_EXPEDITED_SYNC_CORE: libc::c_int = 1 << 5;
        const REGISTER: libc::c_int = 1 << 6;
        for command in [REGISTER, PRIVATE_EXPEDITED_SYNC_CORE] {
            // SAFETY: the call accesses no memory of the program.
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

    #[allow(clippy::unnecessary_wraps)] // Other processors can fail.
    pub(super) unsafe fn synchronize(start: *const u8, len: usize) -> io::Result<()> {
        // SAFETY: the caller promises that the bytes are mapped and readable. The call changes no byte.
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

    /// `cacheflush` of Arm or `riscv_flush_icache` of RISC-V.
    ///
    /// Both take the first address, the end, and flags.
    const FLUSH: libc::c_long = if cfg!(target_arch = "arm") { 0x0F_0002 } else { 259 };

    pub(super) unsafe fn synchronize(start: *const u8, len: usize) -> io::Result<()> {
        // SAFETY: the caller promises that the bytes are mapped and readable. The call changes no byte.
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
