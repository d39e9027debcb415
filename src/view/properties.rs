//! `View`: its address, its length, its statistics, and the choice of a tracking method.

use std::io;
use std::ptr;

use crate::engine::worktree::Worktree;
use crate::stats::ViewStats;
use crate::sys::Tracking;
use crate::view::View;

/// Address, length, statistics and tracking method.
impl<S, A> View<S, A> {
    /// Returns the length of the view in bytes, a multiple of the page size.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{Snapshot, page_size};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = Snapshot::from_slice(b"a few bytes")?;
    /// assert_eq!(snapshot.view()?.len(), page_size());
    /// # Ok(())
    /// # }
    /// ```
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.tree.as_ref().map_or(0, Worktree::len)
    }

    /// Returns `true` if the view has no bytes.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::from_slice(b"")?;
    /// assert!(snapshot.view()?.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the address of the first byte, which is the start of a page.
    ///
    /// The address stays the same as long as the view exists.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::zeroed(1)?;
    /// let mut view = snapshot.view()?;
    /// let address = view.as_ptr();
    /// view.restore()?;
    /// assert_eq!(view.as_ptr(), address);
    /// # Ok(())
    /// # }
    /// ```
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.tree.as_ref().map_or(ptr::dangling(), |tree| tree.start().as_ptr())
    }

    /// Returns the address of the first byte for writing, which is the start of a page.
    ///
    /// The address stays the same, and the pointer remains valid, as long as the view exists, also after snapshots,
    /// restores and growth. The exception is a [restore](Self::restore) on Windows that fails because no memory is
    /// left.
    ///
    /// The view finds writes through this pointer like all other writes. For a [logged view](crate::LoggedView), the
    /// program has to [report](View::mark_written) them. They must not race with calls on the view, and must not
    /// happen while a slice of the view is in use. See [memory for other code](Self#memory-for-other-code).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::zeroed(1)?;
    /// let mut view = snapshot.view()?;
    /// let pointer = view.as_mut_ptr();
    /// // SAFETY: the view has at least one byte, and no slice of it is in use.
    /// unsafe { pointer.write(1) };
    /// assert_eq!(view.changes()?.len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    #[inline]
    #[must_use]
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.tree.as_mut().map_or(ptr::dangling_mut(), |tree| tree.start().as_ptr())
    }

    /// Returns statistics: how much memory the view takes, and how its written pages are found.
    ///
    /// To count the private pages of a view that is not logged, the call may search the whole view, as a snapshot does.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::from_slice(&[1; 1 << 20])?;
    /// let mut view = snapshot.view()?;
    /// view[0] = 2;
    /// assert!(view.stats().private >= memsnap::page_size());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn stats(&self) -> ViewStats {
        self.tree.as_ref().map_or_else(ViewStats::default, Worktree::stats)
    }

    /// Changes the tracking method, by which the view finds written pages from now on.
    ///
    /// This is the option [`ViewOptions::tracking`](crate::ViewOptions::tracking) for a view that is already open. It
    /// affects the time of later calls, but not their results.
    ///
    /// # Errors
    ///
    /// - `Unsupported` if the method cannot work for this view.
    /// - Those of the operating system: no file descriptor, no memory.
    ///
    /// After an error, the view keeps its tracking method.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{Snapshot, Tracking};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = Snapshot::zeroed(1)?;
    /// let mut view = snapshot.view()?;
    /// view.set_tracking(Tracking::Compare)?;
    /// assert_eq!(view.stats().tracker, Tracking::Compare);
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_tracking(&mut self, tracking: Tracking) -> io::Result<()> {
        match &mut self.tree {
            Some(tree) => tree.set_tracking(tracking),
            None => Ok(()),
        }
    }
}
