//! `View`: changing the length, and returning memory to the system.
//!
//! These methods check their arguments. `Worktree` decides how memory is returned.

use std::io;
use std::ops::RangeBounds;

use crate::access::Access;
use crate::error;
use crate::page_size;
use crate::pages::{PageRange, whole_pages};
use crate::view::View;

/// Growing, and returning memory to the system.
impl<S, A> View<S, A> {
    /// Makes the view `len` bytes long, rounded up to whole pages. The new bytes are zero.
    ///
    /// The address of the view stays the same, and the new pages take no memory until they are written. Snapshots that
    /// are taken later have the new length, and their [content](crate::Snapshot::content_len) is `len` bytes long. A
    /// restore to a shorter snapshot shrinks the view again. The pages by which it had grown then become inaccessible,
    /// and their memory is freed.
    ///
    /// If the view already has `len` bytes, because its snapshot is longer than its content, only the length of the
    /// content changes.
    ///
    /// # Errors
    ///
    /// - `InvalidInput` if `len` exceeds the length of the view and the [reserved](crate::ViewOptions::reserve)
    ///   addresses after it, or if it is less than the length of the current content.
    /// - `PermissionDenied` if the view belongs to the parent of this forked process.
    /// - Those of the operating system: no memory, too many mappings.
    ///
    /// Nothing has changed after an error.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{Snapshot, ViewOptions, page_size};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = Snapshot::from_slice(b"small")?;
    /// let mut view = snapshot.view_with(ViewOptions::new().reserve(1 << 30))?;
    /// view.grow(1 << 20)?;
    /// view[1 << 19] = 1;
    /// let large = view.take_snapshot()?;
    /// assert_eq!(large.len(), 1 << 20);
    /// view.restore()?;
    /// assert_eq!(view.len(), page_size());
    /// view.restore_to(&large)?;
    /// assert_eq!(view[1 << 19], 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn grow(&mut self, len: usize) -> io::Result<()> {
        let Some(tree) = &mut self.tree else { return Ok(()) };
        let (content, most) = (tree.content_len(), tree.most());
        let pages = whole_pages(len).filter(|pages| pages * page_size() <= most);
        match pages {
            Some(pages) if len >= content => tree.grow(len, pages),
            Some(_) => Err(error::invalid(format!(
                "a view with {content} bytes of content cannot grow to {len} bytes; to shrink it, restore it to a \
                 shorter snapshot"
            ))),
            None => Err(error::invalid(format!(
                "a view with room for {most} bytes cannot grow to {len} bytes; open it with a larger \
                 ViewOptions::reserve"
            ))),
        }
    }

    /// Makes the bytes of `range` zero, and returns the memory of whole pages to the system.
    ///
    /// A snapshot that is taken afterwards uses no memory for pages that are zero.
    ///
    /// The call does not return the memory of some pages, but writes zeroes to them: runs of less than 8 pages that
    /// the view maps from a file; any such run if the view already has many runs of zeroes over files (1,024); locked
    /// memory; and, on Windows, all private pages, because Windows cannot discard single pages.
    ///
    /// # Errors
    ///
    /// - `InvalidInput` if the range is not within the view. Nothing has changed then.
    /// - `PermissionDenied` if some of the bytes are [protected](Self::protect) against writing, or if the view
    ///   belongs to the parent of this forked process. Nothing has changed then.
    /// - `OutOfMemory`, on Windows only. The view then has no bytes, as after a [restore](Self::restore) that failed
    ///   because there was no memory for zeroes.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::from_slice(&[1; 1 << 20])?;
    /// let mut view = snapshot.view()?;
    /// view.zero(100..1 << 20)?;
    /// assert_eq!((view[99], view[100]), (1, 0));
    /// view.restore()?;
    /// assert_eq!(view[100], 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn zero(&mut self, range: impl RangeBounds<usize>) -> io::Result<()> {
        let range = self.within("zero", &range)?;
        let Some(tree) = &mut self.tree else { return Ok(()) };
        if !tree.allows(PageRange::around(&range), Access::can_write) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "bytes {range:?} of a view cannot be zeroed: some are protected against writing; make them \
                     writable by View::protect"
                ),
            ));
        }
        tree.zero(&range)
    }

    /// Restores the bytes of `range` from the last snapshot, and returns the memory of whole pages to the system.
    ///
    /// The last snapshot is the one that was last taken of the view or restored to it. Before the first such call, it
    /// is the one that the view was opened on. `discard` undoes what [`changes`](View::changes) lists in the range.
    /// Bytes beyond the end of that snapshot, by which the view grew, become zero.
    ///
    /// Use this instead of `madvise` for memory whose contents are not needed any more, such as pages that a balloon
    /// or an allocator returns. Unlike [`zero`](Self::zero), `discard` leaves nothing for the next snapshot to
    /// capture.
    ///
    /// If the last snapshot has a captured page that the view does not map from a file, the call copies its bytes, and
    /// the view keeps the memory of that page. On Windows it copies all pages that differ, because single pages cannot
    /// be discarded.
    ///
    /// # Errors
    ///
    /// - `InvalidInput` if the range is not within the view.
    /// - `PermissionDenied` if some of the bytes are [protected](Self::protect) against writing, or if the view
    ///   belongs to the parent of this forked process.
    /// - Those of the operating system: no memory, no address space.
    ///
    /// Nothing has changed after an error.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::from_slice(&[1; 1 << 20])?;
    /// let mut view = snapshot.view()?;
    /// view[..1 << 19].fill(2);
    /// let taken = view.take_snapshot()?;
    /// view.fill(3);
    /// view.discard(100..)?;
    /// assert_eq!((view[99], view[100], view[1 << 19]), (3, 2, 1));
    /// assert_eq!(view.changes()?.ranges(), [0..memsnap::page_size()]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn discard(&mut self, range: impl RangeBounds<usize>) -> io::Result<()> {
        let range = self.within("discard", &range)?;
        let Some(tree) = &mut self.tree else { return Ok(()) };
        if !tree.allows(PageRange::around(&range), Access::can_write) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "bytes {range:?} of a view cannot be discarded: some are protected against writing; make them \
                     writable by View::protect"
                ),
            ));
        }
        tree.discard(&range)
    }
}
