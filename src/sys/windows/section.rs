//! Calls into the system about sections and handles, views of sections that are not in a mapping, and memory sizes.
//!
//! What sections contain and who writes to them is up to `file.rs`. Views that are part of a mapping are up to
//! `memory`.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::ptr::{self, NonNull};

use windows_sys::Wdk::Foundation::{NtQueryObject, ObjectBasicInformation};
use windows_sys::Win32::Foundation::{DuplicateHandle, GENERIC_READ, HANDLE, INVALID_HANDLE_VALUE};
use windows_sys::Win32::Security::{
    ACL, ACL_REVISION, InitializeAcl, InitializeSecurityDescriptor, SECURITY_ATTRIBUTES, SECURITY_DESCRIPTOR,
    SetSecurityDescriptorDacl,
};
use windows_sys::Win32::Storage::FileSystem::{
    FILE_READ_DATA, FILE_SHARE_DELETE, FILE_SHARE_READ, FILE_SHARE_WRITE, FILE_TYPE, GetFileType, ReOpenFile,
};
use windows_sys::Win32::System::Memory::{
    CreateFileMappingW, FILE_MAP, FILE_MAP_READ, FILE_MAP_WRITE, MEM_COMMIT, MEMORY_BASIC_INFORMATION,
    MEMORY_MAPPED_VIEW_ADDRESS, MapViewOfFile, PAGE_EXECUTE_READWRITE, PAGE_PROTECTION_FLAGS, PAGE_READONLY,
    PAGE_READWRITE, SEC_COMMIT, SEC_RESERVE, UnmapViewOfFile, VirtualAlloc, VirtualQuery,
};
use windows_sys::Win32::System::SystemInformation::{
    GetSystemInfo, GlobalMemoryStatusEx, MEMORYSTATUSEX, SYSTEM_INFO,
};
use windows_sys::Win32::System::SystemServices::SECURITY_DESCRIPTOR_REVISION;
use windows_sys::Win32::System::Threading::GetCurrentProcess;
use windows_sys::Win32::System::WindowsProgramming::PUBLIC_OBJECT_BASIC_INFORMATION;

use crate::sys::call;

/// Makes a section of the page file of `len` bytes of zeroes.
///
/// It is committed as a whole. If `reserved` is set, it is only reserved, and [`View::commit`] commits parts of it.
///
/// The access list of the section is empty. So a process that got a handle cannot get more rights by duplicating the
/// handle, unless it may change the list. Programs of the owner's account may.
pub(super) fn create(len: usize, reserved: bool) -> io::Result<OwnedHandle> {
    call("CreateFileMapping")?;
    let mut list = ACL::default();
    let mut descriptor = SECURITY_DESCRIPTOR::default();
    let size = u32::try_from(size_of::<ACL>()).unwrap_or(u32::MAX);
    // SAFETY: `list` is writable and has `size` bytes.
    checked(unsafe { InitializeAcl(&raw mut list, size, ACL_REVISION) })?;
    // SAFETY: `descriptor` is a writable security descriptor.
    checked(unsafe {
        InitializeSecurityDescriptor((&raw mut descriptor).cast(), SECURITY_DESCRIPTOR_REVISION)
    })?;
    // SAFETY: both were initialized above. The descriptor points at the list afterwards, and is not used after this
    // function, so not after the list is gone.
    checked(unsafe { SetSecurityDescriptorDacl((&raw mut descriptor).cast(), 1, &raw const list, 0) })?;
    let attributes = SECURITY_ATTRIBUTES {
        nLength: u32::try_from(size_of::<SECURITY_ATTRIBUTES>()).unwrap_or(u32::MAX),
        lpSecurityDescriptor: (&raw mut descriptor).cast(),
        bInheritHandle: 0,
    };
    let kind = if reserved { SEC_RESERVE } else { SEC_COMMIT };
    // Executable views need an executable section, which the system refuses if the process forbids dynamic code.
    map_object(INVALID_HANDLE_VALUE, &raw const attributes, PAGE_EXECUTE_READWRITE | kind, len)
        .or_else(|_| map_object(INVALID_HANDLE_VALUE, &raw const attributes, PAGE_READWRITE | kind, len))
}

/// Makes a read-only section of the first `len` bytes of a file that has at least as many.
pub(super) fn of_file(file: &File, len: usize) -> io::Result<OwnedHandle> {
    call("CreateFileMapping")?;
    map_object(file.as_raw_handle(), ptr::null(), PAGE_READONLY, len)
}

/// Makes a section of a file, or of the page file if `file` is invalid.
fn map_object(
    file: HANDLE,
    attributes: *const SECURITY_ATTRIBUTES,
    protection: PAGE_PROTECTION_FLAGS,
    len: usize,
) -> io::Result<OwnedHandle> {
    let (high, low) = halves(len);
    // SAFETY: the attributes are null, or point at valid attributes of the caller. The name is null.
    let handle = unsafe { CreateFileMappingW(file, attributes, protection, high, low, ptr::null()) };
    if handle.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call returned this handle just now, so no other code owns it.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
}

/// Returns the type of the file.
///
/// It is on a disk (a file or a directory), a character device (a console, `NUL`), or a pipe or socket.
pub(super) fn file_type(file: &File) -> FILE_TYPE {
    // SAFETY: the handle is open as long as `file` exists.
    unsafe { GetFileType(file.as_raw_handle()) }
}

/// Returns whether the handle has the right to read bytes.
pub(super) fn is_readable(file: &File) -> io::Result<bool> {
    call("NtQueryObject")?;
    let mut information = PUBLIC_OBJECT_BASIC_INFORMATION::default();
    let size = u32::try_from(size_of::<PUBLIC_OBJECT_BASIC_INFORMATION>()).unwrap_or(u32::MAX);
    // SAFETY: the handle is open. `information` is writable and has `size` bytes. The pointer to the length of the
    // answer may be null.
    let status = unsafe {
        NtQueryObject(
            file.as_raw_handle(),
            ObjectBasicInformation,
            (&raw mut information).cast(),
            size,
            ptr::null_mut(),
        )
    };
    if status < 0 {
        return Err(io::Error::other(format!(
            "querying the rights of the handle (NtQueryObject) failed with status {status:#x}"
        )));
    }
    Ok(information.GrantedAccess & FILE_READ_DATA != 0)
}

/// Opens the file again for reading, so that the offset is not shared.
///
/// The system refuses if other code (such as the owner of `file`) has the file open and does not share reading, or does
/// not share writing although the file is open for writing.
pub(super) fn reopen(file: &File) -> io::Result<File> {
    call("ReOpenFile")?;
    let sharing = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
    // SAFETY: the handle is open. No flags are passed.
    let handle = unsafe { ReOpenFile(file.as_raw_handle(), GENERIC_READ, sharing, 0) };
    if handle == INVALID_HANDLE_VALUE {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call returned this handle just now, so no other code owns it.
    Ok(unsafe { File::from_raw_handle(handle) })
}

/// Returns another handle on the same section, which has only these rights.
pub(super) fn duplicate(section: &OwnedHandle, rights: FILE_MAP) -> io::Result<OwnedHandle> {
    call("DuplicateHandle")?;
    let (process, mut handle) = (this_process(), ptr::null_mut());
    let from = section.as_raw_handle();
    // SAFETY: the handles are open, and the new handle is written to a local variable.
    checked(unsafe { DuplicateHandle(process, from, process, &raw mut handle, rights, 0, 0) })?;
    // SAFETY: the call returned this handle just now, so no other code owns it.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
}

/// A view of a whole section, to copy bytes from or to.
pub(super) struct View(NonNull<u8>);

// SAFETY: a view is a range of addresses, which are the same in each thread of the process. Methods that access bytes
// are `unsafe`.
unsafe impl Send for View {}

impl View {
    /// Maps a view that can be written.
    pub(super) fn writable(section: &OwnedHandle) -> io::Result<Self> {
        Self::new(section, FILE_MAP_WRITE)
    }

    /// Maps a view that can be read.
    pub(super) fn readable(section: &OwnedHandle) -> io::Result<Self> {
        Self::new(section, FILE_MAP_READ)
    }

    fn new(section: &OwnedHandle, access: FILE_MAP) -> io::Result<Self> {
        call("MapViewOfFile")?;
        // SAFETY: the handle is open. The system picks an unused address, so no memory in use changes.
        let view = unsafe { MapViewOfFile(section.as_raw_handle(), access, 0, 0, 0) };
        NonNull::new(view.Value.cast()).map(Self).ok_or_else(io::Error::last_os_error)
    }

    /// Copies `bytes` to byte `offset`.
    ///
    /// # Safety
    ///
    /// The view must be writable and long enough. These bytes of it must be committed, and no reference to them may
    /// exist.
    pub(super) unsafe fn write(&self, bytes: &[u8], offset: usize) {
        // SAFETY: the caller promises that the view is long enough, so the result is inside it.
        let target = unsafe { self.0.add(offset) };
        // SAFETY: the caller promises that the bytes can be written and that no reference to them exists, so `bytes` is
        // elsewhere.
        unsafe { target.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
    }

    /// Commits `len` bytes at byte `offset`, which must be inside the view.
    ///
    /// Committed bytes stay as they are.
    pub(super) fn commit(&self, offset: usize, len: usize) -> io::Result<()> {
        call("VirtualAlloc")?;
        let start = self.0.as_ptr().wrapping_add(offset);
        // SAFETY: the range is inside the view. The call changes no committed byte.
        let committed = unsafe { VirtualAlloc(start.cast(), len, MEM_COMMIT, PAGE_READWRITE) };
        if committed.is_null() { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Returns the number of bytes, from the first on, that can be read.
    ///
    /// These are committed, and whole pages.
    pub(super) fn committed(&self) -> io::Result<usize> {
        let first = query(self.0)?;
        let mut len = 0_usize;
        loop {
            // SAFETY: the first `len` bytes belong to the view, so the result is inside it or one past its end.
            let region = query(unsafe { self.0.add(len) })?;
            if region.State != MEM_COMMIT || region.AllocationBase != first.AllocationBase {
                return Ok(len);
            }
            len += region.RegionSize;
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the address is the start of this view. The view is being dropped, so no reference to its bytes
        // exists.
        let _ = unsafe { UnmapViewOfFile(MEMORY_MAPPED_VIEW_ADDRESS { Value: self.0.as_ptr().cast() }) };
    }
}

/// Returns what the system reports about `address` and the pages behind it that have the same attributes.
pub(super) fn query(address: NonNull<u8>) -> io::Result<MEMORY_BASIC_INFORMATION> {
    call("VirtualQuery")?;
    let mut information = MEMORY_BASIC_INFORMATION::default();
    let size = size_of::<MEMORY_BASIC_INFORMATION>();
    // SAFETY: `information` is writable and has `size` bytes. Any address may be queried.
    let written = unsafe { VirtualQuery(address.as_ptr().cast(), &raw mut information, size) };
    if written == 0 { Err(io::Error::last_os_error()) } else { Ok(information) }
}

/// Returns the pseudo handle of the calling process.
pub(super) fn this_process() -> HANDLE {
    // SAFETY: the call takes no arguments and returns a constant.
    unsafe { GetCurrentProcess() }
}

/// Returns the result of a call that returns a `BOOL`.
pub(super) fn checked(result: i32) -> io::Result<()> {
    if result == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Returns the high and the low 32 bits of a length.
fn halves(len: usize) -> (u32, u32) {
    let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0);
    (half(len as u64 >> 32), half(len as u64))
}

/// Returns the number of bytes in a page.
pub(super) fn page_size() -> usize {
    let mut information = SYSTEM_INFO::default();
    // SAFETY: `information` is writable.
    unsafe { GetSystemInfo(&raw mut information) };
    information.dwPageSize as usize
}

/// Returns the number of bytes of free memory, or of what can still be committed if that is less.
pub(super) fn available_memory() -> Option<usize> {
    let mut status = MEMORYSTATUSEX {
        dwLength: u32::try_from(size_of::<MEMORYSTATUSEX>()).ok()?,
        ..MEMORYSTATUSEX::default()
    };
    // SAFETY: `status` is writable, and its first field is its size.
    checked(unsafe { GlobalMemoryStatusEx(&raw mut status) }).ok()?;
    usize::try_from(status.ullAvailPhys.min(status.ullAvailPageFile)).ok()
}
