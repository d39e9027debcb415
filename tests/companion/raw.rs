//! System calls on addresses of views. None of them creates a reference to the bytes there.
//!
//! Calls that write do so only at addresses that nobody else uses meanwhile. The caller guarantees this.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::ptr;

use memsnap::page_size;

pub(crate) const MADV_POPULATE_READ: i32 = 22;
pub(crate) const MADV_POPULATE_WRITE: i32 = 23;
pub(crate) const MADV_COLLAPSE: i32 = 25;

/// Converts the result of a system call that returns a length.
fn length(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn nothing(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn all(done: usize, wanted: usize) -> io::Result<()> {
    if done == wanted { Ok(()) } else { Err(io::Error::other(format!("{done} of {wanted} bytes"))) }
}

fn pointer<T>(address: usize) -> *mut T {
    ptr::with_exposed_provenance_mut(address)
}

/// Calls `madvise` with an advice that changes no byte.
pub(crate) fn advise(range: &Range<usize>, advice: i32) -> io::Result<()> {
    assert!(
        ![libc::MADV_DONTNEED, libc::MADV_FREE, libc::MADV_REMOVE, libc::MADV_WIPEONFORK].contains(&advice)
    );
    // SAFETY: such an advice changes no byte. Addresses that are not mapped are an error.
    nothing(unsafe { libc::madvise(pointer(range.start), range.len(), advice) })
}

pub(crate) fn lock(range: &Range<usize>, on_fault: bool) -> io::Result<()> {
    let flags = if on_fault { libc::MLOCK_ONFAULT } else { 0 };
    // SAFETY: locking memory changes no byte. Addresses that are not mapped are an error.
    nothing(unsafe { libc::mlock2(pointer(range.start), range.len(), flags) })
}

pub(crate) fn unlock(range: &Range<usize>) -> io::Result<()> {
    // SAFETY: unlocking memory changes no byte. Addresses that are not mapped are an error.
    nothing(unsafe { libc::munlock(pointer(range.start), range.len()) })
}

pub(crate) fn incore(range: &Range<usize>) -> io::Result<()> {
    let mut present = vec![0; range.len() / page_size()];
    // SAFETY: the vector has a byte for each page.
    nothing(unsafe { libc::mincore(pointer(range.start), range.len(), present.as_mut_ptr()) })
}

/// Returns how many private pages of the range are swapped out, according to `/proc/self/pagemap`.
pub(crate) fn swapped_pages(pagemap: &File, range: &Range<usize>) -> usize {
    let mut entries = vec![0; range.len() / page_size() * 8];
    if pagemap.read_exact_at(&mut entries, (range.start / page_size()) as u64 * 8).is_err() {
        return 0;
    }
    // Bit 62 is set if the page is swapped out, and bit 61 if it belongs to a file.
    let swapped = |entry: &&[u8]| entry[7] & 1 << 6 != 0 && entry[7] & 1 << 5 == 0;
    entries.chunks_exact(8).filter(swapped).count()
}

/// Asks the kernel to swap out all private memory of the process. The kernel may refuse some of it.
pub(crate) fn page_out_all() -> io::Result<()> {
    for line in fs::read_to_string("/proc/self/maps")?.lines() {
        let mut fields = line.split_ascii_whitespace();
        if let (Some(range), Some("rw-p")) = (fields.next(), fields.next())
            && let Some((start, end)) = range.split_once('-')
            && let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
        {
            let _ = advise(&(start..end), libc::MADV_PAGEOUT);
        }
    }
    Ok(())
}

/// Writes with plain stores. Nobody else may use these bytes meanwhile.
pub(crate) fn store(address: usize, bytes: &[u8]) {
    // SAFETY: the caller guarantees that the bytes are mapped and writable, and that nobody else uses them.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), pointer(address), bytes.len()) };
}

/// Makes the kernel read from the start of `file` to `address`.
pub(crate) fn pread(file: &File, address: usize, len: usize) -> io::Result<()> {
    let mut read = 0;
    while read < len {
        let offset = libc::off_t::try_from(read).map_err(io::Error::other)?;
        // SAFETY: the kernel checks the addresses. The caller guarantees that nobody else uses the bytes.
        let now = unsafe { libc::pread(file.as_raw_fd(), pointer(address + read), len - read, offset) };
        match length(now)? {
            0 => break,
            now => read += now,
        }
    }
    all(read, len)
}

/// Makes the kernel read from a pipe that holds at least `len` bytes.
pub(crate) fn read(pipe: BorrowedFd<'_>, address: usize, len: usize) -> io::Result<()> {
    // SAFETY: as above.
    let read = unsafe { libc::read(pipe.as_raw_fd(), pointer(address), len) };
    all(length(read)?, len)
}

/// Makes the kernel receive `len` bytes in three pieces.
pub(crate) fn receive(socket: BorrowedFd<'_>, address: usize, len: usize) -> io::Result<()> {
    let cuts = [0, len / 3, len / 2, len];
    let piece =
        |i: usize| libc::iovec { iov_base: pointer(address + cuts[i]), iov_len: cuts[i + 1] - cuts[i] };
    let mut pieces = [piece(0), piece(1), piece(2)];
    // SAFETY: all zeroes are a valid, empty message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = pieces.as_mut_ptr();
    message.msg_iovlen = pieces.len() as _;
    // SAFETY: the message refers to the pieces, which outlive the call. The caller guarantees that nobody
    // else uses the bytes.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_WAITALL) };
    all(length(received)?, len)
}

/// Writes to the memory of a process, this one or another. Nobody may use these bytes meanwhile.
pub(crate) fn vm_write(pid: i32, address: usize, bytes: &[u8]) -> io::Result<()> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: pointer(address), iov_len: bytes.len() };
    // SAFETY: the kernel only reads the local bytes. The caller guarantees that nobody uses the remote ones.
    let written = unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) };
    all(length(written)?, bytes.len())
}

/// Reads the memory of a process, this one or another.
///
/// The memory may change meanwhile or not be mapped.
pub(crate) fn vm_read(pid: i32, range: &Range<usize>) -> io::Result<()> {
    let mut buffer = vec![0_u8; range.len().min(1 << 18)];
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let remote = libc::iovec { iov_base: pointer(range.start), iov_len: buffer.len() };
    // SAFETY: the kernel writes only to the buffer, and checks the addresses that it reads.
    let read = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    length(read).map(drop)
}

/// Gives the kernel an advice on addresses of another process.
pub(crate) fn advise_other(pidfd: BorrowedFd<'_>, range: &Range<usize>, advice: i32) -> io::Result<()> {
    assert!([libc::MADV_PAGEOUT, libc::MADV_COLD, libc::MADV_WILLNEED].contains(&advice));
    let remote = libc::iovec { iov_base: pointer(range.start), iov_len: range.len() };
    let (fd, pieces, flags) = (pidfd.as_raw_fd(), 1_usize, 0_u32);
    // SAFETY: such an advice changes no byte. Addresses that are not mapped are an error.
    let done =
        unsafe { libc::syscall(libc::SYS_process_madvise, fd, &raw const remote, pieces, advice, flags) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
