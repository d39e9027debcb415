//! Views to which the program reports what it writes.

use std::io;
use std::ops::RangeBounds;

use crate::view::View;
use crate::view::kind::Logged;

/// While the program reports what it writes. See [`LoggedView`](crate::LoggedView).
impl<S> View<S, Logged> {
    /// Reports that the program has written the bytes of `range`, or is about to.
    ///
    /// Call this for everything that is written by pointer, by other code or by the kernel, before the next call that
    /// takes a snapshot, restores or lists changes. What counts is the pages in which the range has bytes. Takes some
    /// nanoseconds for a page, and less for each further page of a long range. Several threads may call this at the same
    /// time.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a range that is not within the view, which reports nothing.
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

    /// These bytes to be written, if they are within the view. Reports them as written.
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
    /// The view cannot be written like a slice, since nobody would report that:
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
