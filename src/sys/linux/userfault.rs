//! Registers memory for asynchronous write-protection by userfaultfd (Linux 6.7).
//!
//! The kernel notes the first write to a write-protected page by itself, so no code has to handle page faults. This
//! includes writes that the kernel makes. `pagemap.rs` write-protects pages and lists the written ones. On older
//! kernels, [`open`] fails.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};
use rustix::mm::{UserfaultfdFlags, userfaultfd};

use crate::pages::PageRange;
use crate::sys::call;
use crate::sys::unix::Mapping;

/// `UFFD_USER_MODE_ONLY`: the descriptor does not handle page faults of the kernel.
///
/// So it needs no privilege. With asynchronous write-protection there are no page faults to handle.
const USER_MODE_ONLY: u32 = 1;

/// Registers the pages `range` of `mapping`, so that they can be write-protected.
pub(super) fn register(userfault: BorrowedFd<'_>, mapping: &Mapping, range: PageRange) -> Result<(), Errno> {
    call("uffdio_register").map_err(|_| Errno::NOMEM)?;
    const MODE_WP: u64 = 1 << 1;
    let start = mapping.page_ptr(range.start).addr().get() as u64;
    let register = Register { start, len: range.bytes().len() as u64, mode: MODE_WP, ioctls: 0 };
    // SAFETY: `Argument` describes `UFFDIO_REGISTER`. The range is inside the mapping, and no byte of it changes.
    unsafe { rustix::ioctl::ioctl(userfault, Argument::<_, REGISTER>(register)) }
}

/// Ends the registration of `range`. Its pages are no longer write-protected afterwards.
pub(super) fn unregister(
    userfault: BorrowedFd<'_>,
    mapping: &Mapping,
    range: PageRange,
) -> Result<(), Errno> {
    call("uffdio_unregister").map_err(|_| Errno::NOMEM)?;
    let start = mapping.page_ptr(range.start).addr().get() as u64;
    let range = Range { start, len: range.bytes().len() as u64 };
    // SAFETY: `Argument` describes `UFFDIO_UNREGISTER`. The range is inside the mapping, and no byte of it changes.
    unsafe { rustix::ioctl::ioctl(userfault, Argument::<_, UNREGISTER>(range)) }
}

/// Opens a userfaultfd for asynchronous write-protection in this process.
pub(super) fn open() -> Result<OwnedFd, Errno> {
    call("userfaultfd").map_err(|_| Errno::NOMEM)?;
    const WP_ASYNC: u64 = 1 << 15;
    const VERSION: u64 = 0xaa;
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::from_bits_retain(USER_MODE_ONLY);
    // SAFETY: the call only makes a descriptor, which has no effect until memory is registered with it.
    let opened = unsafe { userfaultfd(flags) };
    // The seccomp profiles of containers refuse the call, but a container may have the device.
    let fd = opened.or_else(|refused| open_device().map_err(|_| refused))?;
    // SAFETY: `Argument` describes `UFFDIO_API`, which accesses no memory but its argument.
    unsafe {
        rustix::ioctl::ioctl(
            &fd,
            Argument::<_, API>(Features { api: VERSION, features: WP_ASYNC, ioctls: 0 }),
        )
    }?;
    Ok(fd)
}

fn open_device() -> Result<OwnedFd, Errno> {
    let device = rustix::fs::open("/dev/userfaultfd", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: `New` describes `USERFAULTFD_IOC_NEW`, which accesses no memory of the program.
    unsafe { rustix::ioctl::ioctl(File::from(device), New) }
}

/// `struct uffdio_api`.
#[repr(C)]
struct Features {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

const API: Opcode = opcode::read_write::<Features>(0xaa, 0x3f);
const REGISTER: Opcode = opcode::read_write::<Register>(0xaa, 0x00);
const UNREGISTER: Opcode = opcode::read::<Range>(0xaa, 0x01);

/// An ioctl whose argument is a struct that the kernel reads and may update.
struct Argument<T, const OPCODE: Opcode>(T);

// SAFETY: each opcode above is used with the struct that it names, which has the layout of the kernel's struct. The
// kernel reads and writes that struct, which this value owns, and no other memory.
unsafe impl<T, const OPCODE: Opcode> Ioctl for Argument<T, OPCODE> {
    type Output = ();

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        OPCODE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// The ioctl `USERFAULTFD_IOC_NEW` (`_IO(0xaa, 0)`).
///
/// Its argument is a set of flags, and its result is a descriptor.
struct New;

// SAFETY: the argument of this ioctl is a number, so the kernel accesses no memory of the program. The opcode is the
// kernel's.
unsafe impl Ioctl for New {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::none(0xaa, 0x00)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::without_provenance_mut((UserfaultfdFlags::CLOEXEC.bits() | USER_MODE_ONLY) as usize)
    }

    unsafe fn output_from_ptr(fd: IoctlOutput, _: *mut c_void) -> rustix::io::Result<OwnedFd> {
        // SAFETY: the ioctl returned this descriptor just now, so no other code owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
