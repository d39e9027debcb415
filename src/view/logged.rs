//! Views to which the program reports what it writes.

use std::io;
use std::ops::RangeBounds;

use crate::view::View;
use crate::view::kind::Logged;

/// Reporting what the program writes. See [`LoggedView`](crate::LoggedView).
impl<S> View<S, Logged> {
    /// Reports that the program has written the bytes of `range`, or is about to.
    ///
    /// Call this for every range that is written through a pointer, by other code or by the kernel. Call it before the
    /// next call that takes a snapshot, restores, lists changes or discards these bytes. Each page that has a byte of the range counts as
    /// written.
    ///
    /// A report takes some nanoseconds for a page, and less for each further page of a long range. Several threads may
    /// call this at the same time.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the range is not within the view. Then nothing is reported.
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
        let range = self.within("report bytes", &range)?;
        if let Some(tree) = &self.tree {
            tree.report(&range);
        }
        Ok(())
    }

    /// Borrows the bytes of `range` for writing, and reports them as written.
    ///
    /// Returns `None` if the range is not within the view.
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
    /// A logged view cannot be written like a slice, since such a write would not be reported:
    ///
    /// ```compile_fail,E0594
    /// # use memsnap::{Snapshot, ViewOptions};
    /// # let snapshot = Snapshot::zeroed(1).unwrap();
    /// let mut memory = snapshot.view_with(&ViewOptions::logged()).unwrap();
    /// memory[0] = 1;
    /// ```
    #[must_use]
    pub fn get_mut(&mut self, range: impl RangeBounds<usize>) -> Option<&mut [u8]> {
        let range = self.within("borrow bytes", &range).ok()?;
        let tree = self.tree.as_mut()?;
        tree.report(&range);
        tree.bytes_mut().get_mut(range)
    }
}
