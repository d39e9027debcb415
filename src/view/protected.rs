//! `View<S, Protected>`: protecting parts of a view, and borrowing what is not protected.
//!
//! These methods check their arguments. `engine/worktree.rs` changes the access and records it.
#![allow(unsafe_code)]

use std::io;
use std::ops::{Range, RangeBounds};

use crate::access::Access;
use crate::engine::worktree::Worktree;
use crate::pages::PageRange;
use crate::view::View;
use crate::view::kind::Protected;
use crate::{error, page_size};

/// Protecting parts of the view. See [`ProtectedView`](crate::ProtectedView).
impl<S> View<S, Protected> {
    /// Sets the access to the bytes of `range`, which consists of whole pages.
    ///
    /// A [`restore`](Self::restore) or [`restore_to`](Self::restore_to) makes all pages readable and writable again.
    /// [`take_snapshot`](Self::take_snapshot) also captures protected pages. During that call, written pages that are
    /// protected against reading are readable. If the kernel has to write to protected bytes of the view, the system
    /// call fails (`EFAULT`).
    ///
    /// The call usually makes one system call. Each range that is protected takes one or two mappings of the process.
    /// Some processors do not keep their instruction caches coherent by themselves (Arm, RISC-V). There,
    /// `READ_EXECUTE` also takes time that depends on the length of the range.
    ///
    /// # Errors
    ///
    /// - `InvalidInput` if the range is not within the view, or if it does not start and end at page boundaries.
    /// - `PermissionDenied` for [`Access::READ_EXECUTE`] if the view was opened without
    ///   [`ViewOptions::executable`](crate::ViewOptions::executable).
    /// - Those of the operating system, mostly too many mappings. The access to the bytes is then unspecified until a
    ///   later call of `protect` for them, or a restore, succeeds.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{Access, Snapshot, page_size};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let page = page_size();
    /// let snapshot = Snapshot::zeroed(3 * page)?;
    /// let mut memory = snapshot.view()?.into_protected();
    /// memory.protect(page..2 * page, Access::READ)?;
    /// memory.protect(2 * page.., Access::NONE)?;
    /// assert!(memory.get(..2 * page).is_some() && memory.get(2 * page..).is_none());
    /// assert!(memory.get_mut(..page).is_some() && memory.get_mut(page..2 * page).is_none());
    /// memory.restore()?;
    /// let view = memory.into_open().expect("after a restore, nothing is protected");
    /// assert_eq!(view[2 * page], 0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The compiler rejects an index into a protected view, since the byte may not be readable:
    ///
    /// ```compile_fail,E0608
    /// # let snapshot = memsnap::Snapshot::zeroed(1).unwrap();
    /// let mut memory = snapshot.view().unwrap().into_protected();
    /// let byte = memory[0];
    /// ```
    ///
    /// It also rejects a call of `protect` while bytes of the view are borrowed:
    ///
    /// ```compile_fail,E0502
    /// # let snapshot = memsnap::Snapshot::zeroed(1).unwrap();
    /// let mut memory = snapshot.view().unwrap().into_protected();
    /// let bytes = memory.get(..);
    /// memory.protect(.., memsnap::Access::NONE).unwrap();
    /// println!("{bytes:?}");
    /// ```
    pub fn protect(&mut self, range: impl RangeBounds<usize>, access: Access) -> io::Result<()> {
        let range = self.within("protect", &range)?;
        let Some(tree) = &mut self.tree else { return Ok(()) };
        if !range.start.is_multiple_of(page_size()) || !range.end.is_multiple_of(page_size()) {
            return Err(error::invalid(format!(
                "cannot protect bytes {range:?} of a view: they are not whole pages of {} bytes; round both ends to \
                 a multiple of page_size()",
                page_size()
            )));
        }
        if access.can_execute() && !tree.is_executable() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "cannot make bytes of a view executable: the view was opened without ViewOptions::executable",
            ));
        }
        tree.protect(PageRange::new(range.start / page_size(), range.end / page_size()), access)
    }

    /// Borrows the bytes of `range` for reading.
    ///
    /// Returns `None` if the range is not within the view, or if some of the bytes cannot be read.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::from_slice(b"readable")?;
    /// let memory = snapshot.view()?.into_protected();
    /// assert_eq!(memory.get(..4), Some(&b"read"[..]));
    /// assert!(memory.get(..memory.len() + 1).is_none());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn get(&self, range: impl RangeBounds<usize>) -> Option<&[u8]> {
        let (tree, range) = self.allowed(&range, Access::can_read)?;
        // SAFETY: `within` found the range to be inside the view, which is one mapping.
        let start = unsafe { tree.start().add(range.start) };
        // SAFETY: the bytes are mapped and initialized, and at most `isize::MAX`. Each page of them is recorded as
        // readable. This does not change while `self` is borrowed: `protect` and restores need `&mut self`, and
        // `take_snapshot` changes the access only to pages that are recorded as unreadable. (It may map the same bytes
        // again, which no reader can notice.) Nothing writes to the bytes, since a write needs `&mut self` too.
        Some(unsafe { std::slice::from_raw_parts(start.as_ptr(), range.len()) })
    }

    /// Borrows the bytes of `range` for writing.
    ///
    /// Returns `None` if the range is not within the view, or if some of the bytes cannot be written.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{Access, Snapshot};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = Snapshot::from_slice(b"writable")?;
    /// let mut memory = snapshot.view()?.into_protected();
    /// memory.get_mut(..5).unwrap().copy_from_slice(b"Write");
    /// memory.protect(.., Access::READ)?;
    /// assert_eq!(memory.get(..8), Some(&b"Writeble"[..]));
    /// assert!(memory.get_mut(..5).is_none());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn get_mut(&mut self, range: impl RangeBounds<usize>) -> Option<&mut [u8]> {
        let (tree, range) = self.allowed(&range, Access::can_write)?;
        // SAFETY: `within` found the range to be inside the view, which is one mapping.
        let start = unsafe { tree.start().add(range.start) };
        // SAFETY: the bytes are mapped and initialized, and at most `isize::MAX`. Each page of them is recorded as
        // writable. `self` is borrowed exclusively, so no call changes that, and no other reference to the bytes
        // exists.
        Some(unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), range.len()) })
    }

    /// Converts the view back into one that can be used like a slice, if no part of it is protected.
    ///
    /// The conversion takes no time, and the address stays the same.
    ///
    /// # Errors
    ///
    /// The view itself, if a part of it is protected.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{Access, Snapshot};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = Snapshot::zeroed(1)?;
    /// let mut memory = snapshot.view()?.into_protected();
    /// memory.protect(.., Access::NONE)?;
    /// let mut memory = memory.into_open().expect_err("the view is protected");
    /// memory.protect(.., Access::READ_WRITE)?;
    /// let view = memory.into_open().expect("nothing is protected");
    /// assert_eq!(view[0], 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_open(self) -> Result<View<S>, Self> {
        if self.tree.as_ref().is_some_and(Worktree::is_protected) {
            Err(self)
        } else {
            Ok(self.with_access())
        }
    }

    /// Returns the working tree and the bounds of `range`, if each of its pages has an access that `allows`.
    fn allowed(
        &self,
        range: &impl RangeBounds<usize>,
        allows: impl Fn(Access) -> bool,
    ) -> Option<(&Worktree, Range<usize>)> {
        let range = self.within("borrow", range).ok()?;
        let tree = self.tree.as_ref()?;
        tree.allows(PageRange::around(&range), allows).then_some((tree, range))
    }
}
