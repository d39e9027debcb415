//! Seccomp filters that make system calls fail, as in containers.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use libc::{BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
use libc::{c_int, c_long, c_ulong, sock_filter};

/// A system call that fails with `errno`. If `argument` is set, only calls with this argument fail.
#[derive(Clone, Copy)]
pub(crate) struct Refusal {
    pub(crate) call: c_long,
    pub(crate) argument: Option<Argument>,
    pub(crate) errno: c_int,
}

#[derive(Clone, Copy)]
pub(crate) struct Argument {
    pub(crate) number: u8,
    /// The bits of the argument that are compared.
    pub(crate) mask: u32,
    pub(crate) value: u32,
}

/// `struct pm_scan_arg`.
type ScanArg = [u64; 12];

const PAGEMAP_SCAN: libc::Ioctl = libc::_IOWR::<ScanArg>(b'f' as u32, 16);

/// `USERFAULTFD_IOC_NEW`.
pub(crate) const NEW_USERFAULTFD: libc::Ioctl = libc::_IO(0xaa, 0);

pub(crate) const MFD_NOEXEC_SEAL: u32 = 8;

pub(crate) const fn refuse(call: c_long, errno: c_int) -> Refusal {
    Refusal { call, argument: None, errno }
}

pub(crate) fn refuse_pagemap_scan(errno: c_int) -> Refusal {
    refuse_ioctl(PAGEMAP_SCAN, errno)
}

pub(crate) fn refuse_ioctl(command: libc::Ioctl, errno: c_int) -> Refusal {
    // Some C libraries define commands as `int`, so that this one is negative.
    let command = u32::try_from(command as i64 & 0xFFFF_FFFF).unwrap();
    let argument = Some(Argument { number: 1, mask: u32::MAX, value: command });
    Refusal { call: libc::SYS_ioctl, argument, errno }
}

pub(crate) fn refuse_madvise(advice: c_int) -> Refusal {
    let advice = u32::try_from(advice).unwrap();
    let argument = Some(Argument { number: 2, mask: u32::MAX, value: advice });
    Refusal { call: libc::SYS_madvise, argument, errno: libc::EINVAL }
}

impl Refusal {
    /// Returns the instructions of this refusal.
    ///
    /// A call that it does not apply to falls through to the next instruction.
    fn instructions(self) -> Vec<sock_filter> {
        let load = |offset| instruction(BPF_LD | BPF_W | BPF_ABS, offset);
        let unless_equal =
            |value, skip| sock_filter { jf: skip, ..instruction(BPF_JMP | BPF_JEQ | BPF_K, value) };
        let errno = u32::try_from(self.errno).unwrap();
        let mut rest = Vec::new();
        if let Some(Argument { number, mask, value }) = self.argument {
            // The offset of the lower 32 bits of the argument in `struct seccomp_data`.
            let half = if cfg!(target_endian = "big") { 4 } else { 0 };
            rest.push(load(16 + 8 * u32::from(number) + half));
            rest.push(instruction(BPF_ALU | BPF_AND | BPF_K, mask));
            rest.push(unless_equal(value, 1));
        }
        rest.push(instruction(BPF_RET | BPF_K, libc::SECCOMP_RET_ERRNO | errno));
        let call = u32::try_from(self.call).unwrap();
        let mut all = vec![load(0), unless_equal(call, u8::try_from(rest.len()).unwrap())];
        all.append(&mut rest);
        all
    }

    fn is_in_force(self) -> bool {
        let mut arguments: [c_ulong; 3] = [0; 3];
        if let Some(Argument { number, value, .. }) = self.argument {
            arguments[usize::from(number)] = value.into();
        }
        let [first, second, third] = arguments;
        // SAFETY: the filter refuses the call. If it does not, null pointers and lengths of zero do no harm.
        let result = unsafe { libc::syscall(self.call, first, second, third, 0, 0, 0) };
        result == -1 && io::Error::last_os_error().raw_os_error() == Some(self.errno)
    }
}

fn instruction(code: u32, operand: u32) -> sock_filter {
    sock_filter { code: u16::try_from(code).unwrap(), jt: 0, jf: 0, k: operand }
}

/// Makes these calls fail from now on, in this process and its children.
pub(crate) fn install(refusals: &[Refusal]) {
    let mut program: Vec<_> = refusals.iter().flat_map(|refusal| refusal.instructions()).collect();
    program.push(instruction(BPF_RET | BPF_K, libc::SECCOMP_RET_ALLOW));
    let program =
        libc::sock_fprog { len: u16::try_from(program.len()).unwrap(), filter: program.as_mut_ptr() };
    // SAFETY: the option takes numbers only.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    // SAFETY: the program and its instructions outlive the call, which copies them.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    assert!(refusals.iter().all(|refusal| refusal.is_in_force()));
}

pub(crate) fn filters_are_available() -> bool {
    // SAFETY: the filter is a null pointer. A kernel that supports filters answers with EFAULT.
    unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, 0, 0, 0) };
    io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

/// Returns whether the kernel can write-protect pages asynchronously, and can list the written pages.
pub(crate) fn kernel_protects_pages() -> bool {
    const USER_MODE_ONLY: c_int = 1;
    /// `UFFDIO_API`, whose argument is the version and the requested features.
    const API: libc::Ioctl = libc::_IOWR::<[u64; 3]>(0xaa, 0x3f);
    const WP_ASYNC: u64 = 1 << 15;
    // SAFETY: the call takes numbers only.
    let called = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | USER_MODE_ONLY) };
    let opened = || File::options().read(true).write(true).open("/dev/userfaultfd");
    let fd = match c_int::try_from(called) {
        Ok(fd) if fd >= 0 => fd,
        _ => match opened() {
            // SAFETY: the ioctl takes a number only.
            Ok(device) => unsafe {
                libc::ioctl(device.as_raw_fd(), NEW_USERFAULTFD, libc::O_CLOEXEC | USER_MODE_ONLY)
            },
            Err(_) => return false,
        },
    };
    let mut features = [0xaa, WP_ASYNC, 0];
    // SAFETY: `features` has the layout of `struct uffdio_api`, and outlives the call.
    let can = unsafe { libc::ioctl(fd, API, &raw mut features) } == 0;
    // SAFETY: this function opened the descriptor, and does not use it any more.
    unsafe { libc::close(fd) };
    can && kernel_has_pagemap_scan()
}

pub(crate) fn kernel_has_pagemap_scan() -> bool {
    let Ok(pagemap) = File::open("/proc/self/pagemap") else { return false };
    let mut arg: ScanArg = [0; 12];
    arg[0] = size_of::<ScanArg>() as u64;
    // SAFETY: `arg` has the layout of `struct pm_scan_arg`, and outlives the call. Its range is empty, and it
    // has no output.
    unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) == 0 }
}
