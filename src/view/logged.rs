//! `View<S, Logged>`: reporting written bytes.
//!
//! These methods check their arguments and add to the log. `engine/dirty_log.rs` keeps the log, and
//! `engine/logged_tree.rs` decides what snapshots and restores do with it.

use std::io;
use std::ops::RangeBounds;

use crate::view::View;
use crate::view::kind::Logged;

/// Reporting written bytes. See [`LoggedView`](crate::LoggedView).
impl<S> View<S, Logged> {
    /// Reports that the bytes of `range` were written or will be written.
    ///
    /// Call this for each range that is written through a pointer, by other code or by the kernel. Call it before the
    /// next call that takes a snapshot, restores, lists changes or discards these bytes. Each page that contains a
    /// byte of the range counts as written.
    ///
    /// A report takes some nanoseconds for the first page, and less for each further page of a long range. Several
    /// threads may call this at the same time.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the range is not within the view. Nothing is reported then.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{Snapshot, ViewOptions};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = Snapshot::from_slice(b"clean")?;
    /// let mut memory = snapshot.view_with(&ViewOptions::logged())?;
    /// // SAFETY: the view has at least five bytes, and no slice of it is in use.
    /// unsafe { memory.as_mut_ptr().copy_from(b"dirty".as_ptr(), 5) };
    /// memory.mark_written(..5)?;
    /// memory.restore()?;
    /// assert_eq!(memory.content(), b"clean");
    /// # Ok(())
    /// # }
    /// ```
    pub fn mark_written(&self, range: impl RangeBounds<usize>) -> io::Result<()> {
        let range = self.within("report", &range)?;
        if let Some(tree) = &self.tree {
            tree.report(&range);
        }
        Ok(())
    }

    /// Borrows the bytes of `range` for writing, and reports them as written.
    ///
    /// Returns `None` if the range is not within the view.
    ///
    /// The report takes as long as a call of [`mark_written`](Self::mark_written). All bytes of the range count as
    /// written, even if the program does not write to them. So borrow only bytes that the program will write.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{Snapshot, ViewOptions};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = Snapshot::from_slice(b"before")?;
    /// let mut memory = snapshot.view_with(&ViewOptions::logged())?;
    /// memory.get_mut(..6).expect("within the view").copy_from_slice(b"behind");
    /// assert_eq!(memory.take_snapshot()?.view()?.content(), b"behind");
    /// assert!(memory.get_mut(..memory.len() + 1).is_none());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A logged view cannot be written like a slice, because such a write would not be reported:
    ///
    /// ```compile_fail,E0594
    /// # use memsnap::{Snapshot, ViewOptions};
    /// # let snapshot = Snapshot::zeroed(1).unwrap();
    /// let mut memory = snapshot.view_with(&ViewOptions::logged()).unwrap();
    /// memory[0] = 1;
    /// ```
    #[must_use]
    pub fn get_mut(&mut self, range: impl RangeBounds<usize>) -> Option<&mut [u8]> {
        let range = self.within("borrow", &range).ok()?;
        let tree = self.tree.as_mut()?;
        tree.report(&range);
        tree.bytes_mut().get_mut(range)
    }
}
