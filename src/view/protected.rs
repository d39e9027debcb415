//! Views of which parts may be inaccessible.
#![allow(unsafe_code)]

use std::io;
use std::ops::{Range, RangeBounds};

use crate::access::Access;
use crate::engine::worktree::Worktree;
use crate::pages::PageRange;
use crate::view::View;
use crate::view::kind::Protected;
use crate::{error, page_size};

/// While parts may be protected.
///
/// To read or write protected memory stops the process, but it is Rust's rule that a `&[u8]` can be read and a
/// `&mut [u8]` written in all its bytes, at any time, by code that the compiler makes up as well. So such a view is
/// no slice: [`get`](Self::get) and [`get_mut`](Self::get_mut) give those parts that have the access it takes, and
/// pointers ([`as_ptr`](Self::as_ptr), [`as_mut_ptr`](Self::as_mut_ptr)) are for those who take care themselves.
impl<S> View<S, Protected> {
    /// Says what may be done with the bytes of `range`, whole pages. [`restore`](Self::restore) and
    /// [`restore_to`](Self::restore_to) put all access back.
    ///
    /// [`take_snapshot`](Self::take_snapshot) works as ever; while it runs, pages that cannot be read but were
    /// written before can be read. Kernel calls that write to the view fail (`EFAULT`) where it is
    /// protected. Costs one system call, and one or two mappings for each range that is protected; on processors that do not keep
    /// their instruction caches coherent by themselves (Arm, RISC-V), `READ_EXECUTE` also walks through the range.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the range is not within the view or does not start and end between two pages;
    /// `PermissionDenied` for [`Access::READ_EXECUTE`] in a view opened without
    /// [`ViewOptions::executable`](crate::ViewOptions::executable). Those of the operating system, above all too many
    /// mappings; the bytes have no access that could be relied on then, until the next call or restore.
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
    /// let view = memory.into_open().expect("a restore puts access back");
    /// assert_eq!(view[2 * page], 0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// What cannot compile, since it would be a slice of bytes that cannot be read:
    ///
    /// ```compile_fail,E0608
    /// # let snapshot = memsnap::Snapshot::zeroed(1).unwrap();
    /// let mut memory = snapshot.view().unwrap().into_protected();
    /// let byte = memory[0];
    /// ```
    ///
    /// ```compile_fail,E0502
    /// # let snapshot = memsnap::Snapshot::zeroed(1).unwrap();
    /// let mut memory = snapshot.view().unwrap().into_protected();
    /// let bytes = memory.get(..);
    /// memory.protect(.., memsnap::Access::NONE).unwrap();
    /// println!("{bytes:?}");
    /// ```
    pub fn protect(&mut self, range: impl RangeBounds<usize>, access: Access) -> io::Result<()> {
        let range = self.within("protect bytes", &range)?;
        let Some(tree) = &mut self.tree else { return Ok(()) };
        if !range.start.is_multiple_of(page_size()) || !range.end.is_multiple_of(page_size()) {
            return Err(error::invalid(format!(
                "bytes {range:?} of a view cannot be protected: they are not whole pages of {} bytes",
                page_size()
            )));
        }
        if access.can_execute() && !tree.is_executable() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "bytes of a view can be made executable only if it was opened with ViewOptions::executable",
            ));
        }
        tree.protect(PageRange::new(range.start / page_size(), range.end / page_size()), access)
    }

    /// These bytes, if they are within the view and all can be read.
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
        // SAFETY: the bytes are mapped and initialized, and at most `isize::MAX`. Each page of them is recorded as readable.
        // That lasts while `self` is borrowed: `protect` and restores need `&mut self`, and `take_snapshot` changes the access
        // of pages only that are recorded as unreadable. Nobody writes, which would need `&mut self` too.
        Some(unsafe { std::slice::from_raw_parts(start.as_ptr(), range.len()) })
    }

    /// These bytes, if they are within the view and all can be written.
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
        // SAFETY: the bytes are mapped and initialized, and at most `isize::MAX`. Each page of them is recorded as writable,
        // and `self` is borrowed exclusively, so that no call changes that and nobody else refers to them.
        Some(unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), range.len()) })
    }

    /// The view as a slice again, if nothing is protected at present.
    ///
    /// # Errors
    ///
    /// The view itself, where something is.
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
    /// let mut memory = memory.into_open().expect_err("it cannot be read");
    /// memory.protect(.., Access::READ_WRITE)?;
    /// assert_eq!(memory.into_open().expect("it can")[0], 0);
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

    fn allowed(
        &self,
        range: &impl RangeBounds<usize>,
        allows: impl Fn(Access) -> bool,
    ) -> Option<(&Worktree, Range<usize>)> {
        let range = self.within("borrow bytes", range).ok()?;
        let tree = self.tree.as_ref()?;
        tree.allows(PageRange::around(&range), allows).then_some((tree, range))
    }
}
