//! What may be done with the pages of a [`Mapping`]: protection, and committing memory.
//!
//! Which pages are accessible is up to `mod.rs` and its callers.
#![allow(unsafe_code)]

use std::io;

use windows_sys::Win32::System::Diagnostics::Debug::FlushInstructionCache;
use windows_sys::Win32::System::Memory::{
    MEM_COMMIT, PAGE_EXECUTE_READ, PAGE_EXECUTE_READWRITE, PAGE_EXECUTE_WRITECOPY, PAGE_NOACCESS,
    PAGE_PROTECTION_FLAGS, PAGE_READONLY, PAGE_READWRITE, PAGE_WRITECOPY, VirtualAlloc, VirtualProtect,
};

use super::{Content, Mapping};
use crate::access::Access;
use crate::pages::PageRange;
use crate::sys::windows::page_size;
use crate::sys::windows::section::{checked, this_process};
use crate::sys::{Source, call};

impl Mapping {
    /// Sets what may be done with the bytes of `range`.
    ///
    /// If the bytes may be executed, the processor executes them as they are now. After an error, the access of each
    /// page of `range` is unspecified.
    ///
    /// # Safety
    ///
    /// No reference to bytes of `range` may exist that needs access which this call takes away.
    pub(crate) unsafe fn set_access(&self, range: PageRange, access: Access) -> io::Result<()> {
        debug_assert!(range.end <= self.pages());
        let mut mapped = self.contents(range).filter(|(_, content)| *content != Content::Placeholder);
        mapped.try_for_each(|(part, content)| {
            // SAFETY: forwarded to the caller.
            unsafe { self.protect(part, content.protection(access)) }
        })?;
        if access.can_execute() {
            call("FlushInstructionCache")?;
            let (start, len) = (self.page_ptr(range.start), range.len() * page_size());
            // SAFETY: the range is inside this mapping and can be read now. The call changes no byte.
            checked(unsafe { FlushInstructionCache(this_process(), start.as_ptr().cast(), len) })?;
        }
        Ok(())
    }

    /// Sets the protection of the pages of `range`, which are mapped.
    ///
    /// # Safety
    ///
    /// As for [`set_access`](Self::set_access).
    pub(super) unsafe fn protect(
        &self,
        range: PageRange,
        protection: PAGE_PROTECTION_FLAGS,
    ) -> io::Result<()> {
        call("VirtualProtect")?;
        let mut before = 0;
        let (start, len) = (self.address(self.before + range.start), range.len() * page_size());
        // SAFETY: the range is inside this mapping. The caller promises that no reference needs access that is taken
        // away. The old protection is written to a local variable.
        checked(unsafe { VirtualProtect(start, len, protection, &raw mut before) })
    }

    /// Returns the parts from page `start` to `end`, behind the last page, that are still mapped.
    ///
    /// `truncate` left them, because only whole regions can be released. They follow each other from `start` on.
    pub(super) fn hidden(&self, start: usize, end: usize) -> Vec<(PageRange, Content)> {
        let is_mapped = |(_, content): &(PageRange, Content)| *content != Content::Placeholder;
        self.contents(PageRange::new(start, end)).take_while(is_mapped).collect()
    }

    /// Makes a part that `truncate` left mapped accessible again, so that it shows `source`.
    pub(super) fn uncover(
        &self,
        (range, content): (PageRange, Content),
        source: Source<'_>,
    ) -> io::Result<()> {
        let (start, len) = (self.address(self.before + range.start), range.len() * page_size());
        match (content, source) {
            (Content::Zeroes { .. }, Source::Zero) => self.commit(range),
            (Content::Private, Source::Zero) | (Content::Shared, Source::Zero | Source::Shared(_)) => {
                // SAFETY: the pages were inaccessible, so no access is taken away.
                unsafe { self.protect(range, content.protection(Access::READ_WRITE)) }?;
                if let Source::Zero = source {
                    // SAFETY: the range is inside this mapping and was made writable just now, so no reference to its
                    // bytes exists yet.
                    unsafe { start.cast::<u8>().write_bytes(0, len) };
                }
                Ok(())
            }
            (Content::Stopgap, _) => {
                // SAFETY: the pages were inaccessible, so no access is taken away.
                unsafe { self.protect(range, PAGE_READONLY) }
            }
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Makes the mapped pages from `start` to `end` inaccessible.
    ///
    /// An error comes with the first page that was not made inaccessible.
    pub(super) fn cover(&self, start: usize, end: usize) -> Result<(), (usize, io::Error)> {
        let mut mapped =
            self.contents(PageRange::new(start, end)).filter(|(_, content)| *content != Content::Placeholder);
        mapped.try_for_each(|(range, _)| {
            // SAFETY: the caller of `truncate` promises that no reference to these bytes exists. In `extend`, they are
            // not a part of the span yet.
            unsafe { self.protect(range, PAGE_NOACCESS) }.map_err(|error| (range.start, error))
        })
    }

    /// Commits the pages of `range` and makes them accessible.
    ///
    /// They were inaccessible, or were mapped just now.
    pub(super) fn commit(&self, range: PageRange) -> io::Result<()> {
        call("VirtualAlloc")?;
        let (start, len) = (self.address(self.before + range.start), range.len() * page_size());
        // SAFETY: the range is inside this mapping, and no reference to its bytes exists yet.
        let start = unsafe { VirtualAlloc(start, len, MEM_COMMIT, PAGE_READWRITE) };
        if start.is_null() { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Content {
    /// Returns the protection that gives `access` to what is mapped.
    pub(super) fn protection(self, access: Access) -> PAGE_PROTECTION_FLAGS {
        match self {
            _ if !access.can_read() => PAGE_NOACCESS,
            _ if access.can_execute() => PAGE_EXECUTE_READ,
            Self::Zeroes { .. } | Self::Shared if access.can_write() => PAGE_READWRITE,
            Self::Private if access.can_write() => PAGE_WRITECOPY,
            _ => PAGE_READONLY,
        }
    }
}

/// Returns the protection with which a view is mapped if it may become executable later.
///
/// A view never allows more than the protection it was mapped with.
pub(super) fn executable(protection: PAGE_PROTECTION_FLAGS) -> PAGE_PROTECTION_FLAGS {
    match protection {
        PAGE_WRITECOPY => PAGE_EXECUTE_WRITECOPY,
        PAGE_READWRITE => PAGE_EXECUTE_READWRITE,
        PAGE_READONLY => PAGE_EXECUTE_READ,
        other => other,
    }
}
