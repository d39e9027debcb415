//! userfaultfd with asynchronous write-protection (Linux 6.7): the kernel notes the first write to a
//! protected page by itself, its own writes included, and nobody has to answer a fault.
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

/// `UFFD_USER_MODE_ONLY`: faults of the kernel are not ours to handle, for which no privilege is needed. With
/// asynchronous protection there is nothing to handle in any case.
const USER_MODE_ONLY: u32 = 1;

/// Has the kernel note writes to the pages `range` of `mapping`.
pub(super) fn register(userfault: BorrowedFd<'_>, mapping: &Mapping, range: PageRange) -> Result<(), Errno> {
    call("uffdio_register").map_err(|_| Errno::NOMEM)?;
    const MODE_WP: u64 = 1 << 1;
    let start = mapping.page_ptr(range.start).addr().get() as u64;
    let register = Register { start, len: range.bytes().len() as u64, mode: MODE_WP, ioctls: 0 };
    // SAFETY: `Argument` describes `UFFDIO_REGISTER`. The range is a mapping of our own, and no byte of it
    // changes.
    unsafe { rustix::ioctl::ioctl(userfault, Argument::<_, REGISTER>(register)) }
}

/// Ends the registration of `range`. Its pages are not write-protected any more.
pub(super) fn unregister(
    userfault: BorrowedFd<'_>,
    mapping: &Mapping,
    range: PageRange,
) -> Result<(), Errno> {
    call("uffdio_unregister").map_err(|_| Errno::NOMEM)?;
    let start = mapping.page_ptr(range.start).addr().get() as u64;
    let range = Range { start, len: range.bytes().len() as u64 };
    // SAFETY: `Argument` describes `UFFDIO_UNREGISTER`. The range is a mapping of our own, and no byte of it
    // changes.
    unsafe { rustix::ioctl::ioctl(userfault, Argument::<_, UNREGISTER>(range)) }
}

/// A descriptor for asynchronous write-protection in this process.
pub(super) fn open() -> Result<OwnedFd, Errno> {
    call("userfaultfd").map_err(|_| Errno::NOMEM)?;
    const WP_ASYNC: u64 = 1 << 15;
    const VERSION: u64 = 0xaa;
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::from_bits_retain(USER_MODE_ONLY);
    // SAFETY: the descriptor changes nothing until memory is registered with it.
    let opened = unsafe { userfaultfd(flags) };
    // Containers' seccomp profiles refuse the call, but may have the device.
    let fd = opened.or_else(|refused| open_device().map_err(|_| refused))?;
    // SAFETY: `Argument` describes `UFFDIO_API`.
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
    // SAFETY: `New` describes `USERFAULTFD_IOC_NEW`.
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

/// An ioctl whose argument is a struct that the kernel reads, and may update.
struct Argument<T, const OPCODE: Opcode>(T);

// SAFETY: the opcodes above go with the structs that they name, whose layout is the kernel's; it reads and
// writes nothing else.
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

/// `USERFAULTFD_IOC_NEW`, `_IO(0xaa, 0)`, whose argument is the flags and whose result is a descriptor.
struct New;

// SAFETY: the ioctl takes no pointer.
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
        // SAFETY: the ioctl made this descriptor just now, for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
