//! Sections, views of them that are not part of a mapping, and what the system says of its memory.
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

/// A section of the page file, `len` bytes long, all zero: committed as a whole, or `reserved` only, to be committed
/// by [`View::commit`].
///
/// Its access list is empty. So nobody whom its owner gave a handle can get more rights by duplicating that, unless he
/// may change the list, as programs of the owner's own account may.
pub(super) fn create(len: usize, reserved: bool) -> io::Result<OwnedHandle> {
    call("CreateFileMapping")?;
    let mut list = ACL::default();
    let mut descriptor = SECURITY_DESCRIPTOR::default();
    let size = u32::try_from(size_of::<ACL>()).unwrap_or(u32::MAX);
    // SAFETY: the list is as long as said.
    checked(unsafe { InitializeAcl(&raw mut list, size, ACL_REVISION) })?;
    // SAFETY: the descriptor is one.
    checked(unsafe {
        InitializeSecurityDescriptor((&raw mut descriptor).cast(), SECURITY_DESCRIPTOR_REVISION)
    })?;
    // SAFETY: both were initialized above, and are used as long as they are there.
    checked(unsafe { SetSecurityDescriptorDacl((&raw mut descriptor).cast(), 1, &raw const list, 0) })?;
    let attributes = SECURITY_ATTRIBUTES {
        nLength: u32::try_from(size_of::<SECURITY_ATTRIBUTES>()).unwrap_or(u32::MAX),
        lpSecurityDescriptor: (&raw mut descriptor).cast(),
        bInheritHandle: 0,
    };
    let kind = if reserved { SEC_RESERVE } else { SEC_COMMIT };
    // Views can be executable only if the section may be, which a process that forbids dynamic code cannot have.
    map_object(INVALID_HANDLE_VALUE, &raw const attributes, PAGE_EXECUTE_READWRITE | kind, len)
        .or_else(|_| map_object(INVALID_HANDLE_VALUE, &raw const attributes, PAGE_READWRITE | kind, len))
}

/// A section of the first `len` bytes of a file, which has as many, to be read.
pub(super) fn of_file(file: &File, len: usize) -> io::Result<OwnedHandle> {
    call("CreateFileMapping")?;
    map_object(file.as_raw_handle(), ptr::null(), PAGE_READONLY, len)
}

fn map_object(
    file: HANDLE,
    attributes: *const SECURITY_ATTRIBUTES,
    protection: PAGE_PROTECTION_FLAGS,
    len: usize,
) -> io::Result<OwnedHandle> {
    let (high, low) = halves(len);
    // SAFETY: the attributes are none or the caller's, and whole.
    let handle = unsafe { CreateFileMappingW(file, attributes, protection, high, low, ptr::null()) };
    if handle.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the handle was made just now, for us.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
}

/// What it is: on disk (a file or a directory), a character device (a console, `NUL`), or a pipe or socket.
pub(super) fn file_type(file: &File) -> FILE_TYPE {
    // SAFETY: the handle is open.
    unsafe { GetFileType(file.as_raw_handle()) }
}

/// Whether the handle gives the right to read bytes.
pub(super) fn is_readable(file: &File) -> io::Result<bool> {
    call("NtQueryObject")?;
    let mut information = PUBLIC_OBJECT_BASIC_INFORMATION::default();
    let size = u32::try_from(size_of::<PUBLIC_OBJECT_BASIC_INFORMATION>()).unwrap_or(u32::MAX);
    // SAFETY: the handle is open; the answer has a place as long as said, and its length is not asked for.
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
        return Err(io::Error::other(format!("NtQueryObject: status {status:#x}")));
    }
    Ok(information.GrantedAccess & FILE_READ_DATA != 0)
}

/// Another file object of the same file, for reading only, whose offset is nobody else's.
///
/// Refused if somebody (who may be the owner of `file`) has the file open and does not share reading, or writing where
/// others write.
pub(super) fn reopen(file: &File) -> io::Result<File> {
    call("ReOpenFile")?;
    let sharing = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
    // SAFETY: the handle is open; no flags.
    let handle = unsafe { ReOpenFile(file.as_raw_handle(), GENERIC_READ, sharing, 0) };
    if handle == INVALID_HANDLE_VALUE {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the handle was made just now, for us.
    Ok(unsafe { File::from_raw_handle(handle) })
}

/// Another handle on the same section, with these rights and no others.
pub(super) fn duplicate(section: &OwnedHandle, rights: FILE_MAP) -> io::Result<OwnedHandle> {
    call("DuplicateHandle")?;
    let (process, mut handle) = (this_process(), ptr::null_mut());
    let from = section.as_raw_handle();
    // SAFETY: the handles are open, and the result has a place.
    checked(unsafe { DuplicateHandle(process, from, process, &raw mut handle, rights, 0, 0) })?;
    // SAFETY: the handle was made just now, for us.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
}

/// A view of all of a section, to copy from or to.
pub(super) struct View(NonNull<u8>);

// SAFETY: a view is a range of addresses of the process; methods that touch bytes are `unsafe`.
unsafe impl Send for View {}

impl View {
    /// To be written.
    pub(super) fn writable(section: &OwnedHandle) -> io::Result<Self> {
        Self::new(section, FILE_MAP_WRITE)
    }

    /// To be read.
    pub(super) fn readable(section: &OwnedHandle) -> io::Result<Self> {
        Self::new(section, FILE_MAP_READ)
    }

    fn new(section: &OwnedHandle, access: FILE_MAP) -> io::Result<Self> {
        call("MapViewOfFile")?;
        // SAFETY: the system picks an unused address, so that no memory in use changes.
        let view = unsafe { MapViewOfFile(section.as_raw_handle(), access, 0, 0, 0) };
        NonNull::new(view.Value.cast()).map(Self).ok_or_else(io::Error::last_os_error)
    }

    /// Copies `bytes` to byte `offset`.
    ///
    /// # Safety
    ///
    /// The view is writable and long enough, those bytes of it are committed, and nobody holds a reference to them.
    pub(super) unsafe fn write(&self, bytes: &[u8], offset: usize) {
        // SAFETY: the caller's promise.
        let target = unsafe { self.0.add(offset) };
        // SAFETY: as above.
        unsafe { target.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
    }

    /// Commits `len` bytes at byte `offset`, which the view has; those that are committed stay as they are.
    pub(super) fn commit(&self, offset: usize, len: usize) -> io::Result<()> {
        call("VirtualAlloc")?;
        let start = self.0.as_ptr().wrapping_add(offset);
        // SAFETY: the range is within the view, and nothing that is committed changes.
        let committed = unsafe { VirtualAlloc(start.cast(), len, MEM_COMMIT, PAGE_READWRITE) };
        if committed.is_null() { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Bytes from the first on that can be read: those committed, in whole pages.
    pub(super) fn committed(&self) -> io::Result<usize> {
        let first = query(self.0)?;
        let mut len = 0_usize;
        loop {
            // SAFETY: the range asked for so far is the view's, so that this is at most one past its end.
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
        // SAFETY: the view is this one's, and its owner is going, so that no references are left.
        let _ = unsafe { UnmapViewOfFile(MEMORY_MAPPED_VIEW_ADDRESS { Value: self.0.as_ptr().cast() }) };
    }
}

/// What the system says of the pages from `address` on that are alike.
pub(super) fn query(address: NonNull<u8>) -> io::Result<MEMORY_BASIC_INFORMATION> {
    call("VirtualQuery")?;
    let mut information = MEMORY_BASIC_INFORMATION::default();
    let size = size_of::<MEMORY_BASIC_INFORMATION>();
    // SAFETY: the answer has a place as long as said; any address may be asked about.
    let written = unsafe { VirtualQuery(address.as_ptr().cast(), &raw mut information, size) };
    if written == 0 { Err(io::Error::last_os_error()) } else { Ok(information) }
}

pub(super) fn this_process() -> HANDLE {
    // SAFETY: the call cannot fail, and its result is a constant.
    unsafe { GetCurrentProcess() }
}

/// What a call says that returns a `BOOL`.
pub(super) fn checked(result: i32) -> io::Result<()> {
    if result == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn halves(len: usize) -> (u32, u32) {
    let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0);
    (half(len as u64 >> 32), half(len as u64))
}

pub(super) fn page_size() -> usize {
    let mut information = SYSTEM_INFO::default();
    // SAFETY: the answer has a place.
    unsafe { GetSystemInfo(&raw mut information) };
    information.dwPageSize as usize
}

pub(super) fn available_memory() -> Option<usize> {
    let mut status = MEMORYSTATUSEX {
        dwLength: u32::try_from(size_of::<MEMORYSTATUSEX>()).ok()?,
        ..MEMORYSTATUSEX::default()
    };
    // SAFETY: the answer has a place as long as said.
    checked(unsafe { GlobalMemoryStatusEx(&raw mut status) }).ok()?;
    usize::try_from(status.ullAvailPhys.min(status.ullAvailPageFile)).ok()
}
