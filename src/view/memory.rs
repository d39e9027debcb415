//! The length of a view, and memory that it gives back.

use std::io;
use std::ops::RangeBounds;

use crate::access::Access;
use crate::error;
use crate::page_size;
use crate::pages::{PageRange, whole_pages};
use crate::view::View;

impl<S, A> View<S, A> {
    /// Makes the view `len` bytes long, in whole pages, at the same address. The new bytes are zero.
    ///
    /// Snapshots taken from now on have the new length, of which `len` bytes are their content. A restore to a
    /// shorter snapshot shrinks the view again, and what it grew by is inaccessible and holds nothing then.
    /// Takes no memory.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if `len` is more than was [reserved](crate::ViewOptions::reserve) or less than the
    /// content is now; those of the operating system: no memory, too many mappings. Nothing has changed then.
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
                "a view with a content of {content} bytes cannot grow to {len}; restore it to a shorter snapshot"
            ))),
            None => Err(error::invalid(format!(
                "a view with room for {most} bytes cannot grow to {len}; open it with more ViewOptions::reserve"
            ))),
        }
    }

    /// Makes these bytes zero, and gives the memory of whole pages among them back instead of writing to it.
    ///
    /// Over the bytes of a file or of captured pages, runs of less than 8 pages are written; so is all that the view has of
    /// its own on Windows, where single pages cannot be given back. A snapshot taken afterwards keeps zero pages without
    /// memory.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a range that is not within the view, `PermissionDenied` for bytes that are
    /// [protected](Self::protect) against writing or belong to the parent of a forked process. Nothing has changed
    /// then. On Windows `OutOfMemory`: the view is then as after a [restore](Self::restore) that failed for lack of
    /// memory.
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
        let range = self.within("zero bytes", &range)?;
        let Some(tree) = &mut self.tree else { return Ok(()) };
        if !tree.allows(PageRange::around(&range), Access::can_write) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("bytes {range:?} of a view cannot be zeroed: some are protected against writing"),
            ));
        }
        tree.zero(&range)
    }

    /// Puts these bytes back to the last snapshot, and gives the memory of whole pages among them back.
    ///
    /// The last snapshot is the one that was last taken of the view or restored to it; at first, it is the one that
    /// the view was opened on. `discard` undoes what [`changes`](View::changes) lists in the range. Bytes beyond the
    /// end of that snapshot, by which the view grew, become zero.
    ///
    /// Use this for memory whose contents are no longer needed, such as pages that a balloon or an allocator returns:
    /// `madvise` must not be used there. Unlike [`zero`](Self::zero), it leaves nothing for the next snapshot to
    /// capture.
    ///
    /// Pages that were captured from a view are copied back and keep their memory, unless the view maps them. On
    /// Windows all pages are copied back, since single pages cannot be given back.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a range that is not within the view, `PermissionDenied` for bytes that are
    /// [protected](Self::protect) against writing or belong to the parent of a forked process; those of the operating
    /// system: no memory, no address space. Nothing has changed then.
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
        let range = self.within("discard bytes", &range)?;
        let Some(tree) = &mut self.tree else { return Ok(()) };
        if !tree.allows(PageRange::around(&range), Access::can_write) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("bytes {range:?} of a view cannot be discarded: some are protected against writing"),
            ));
        }
        tree.discard(&range)
    }
}
