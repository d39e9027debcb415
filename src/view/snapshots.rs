//! `View`: taking snapshots and restoring.
//!
//! These methods check their arguments. `Worktree` decides which pages are captured and rewritten.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::error;
use crate::page_size;
use crate::snapshot::Snapshot;
use crate::view::View;

/// Taking snapshots and restoring.
impl<S, A> View<S, A> {
    /// Takes a snapshot of the view's current bytes.
    ///
    /// The snapshot has copies of the pages that changed since a snapshot of the view was last taken or restored, and
    /// shares all other pages. The bytes of the view stay the same, and the view can be written as before. Several
    /// threads may call this at the same time; the calls run one after the other.
    ///
    /// The call first finds the written pages. The time for that depends on the [tracking method](crate::Tracking).
    /// It then copies the pages that changed.
    ///
    /// # Errors
    ///
    /// - Those of the operating system: no memory, no address space.
    /// - `InvalidData` if a [logged view](crate::LoggedView) [checks](crate::ViewOptions::checked) its reports and
    ///   finds a written page that was not reported.
    /// - `PermissionDenied` if the view belongs to the parent of this forked process.
    ///
    /// An error changes no byte of the view.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let root = memsnap::Snapshot::zeroed(1 << 30)?;
    /// let mut view = root.view()?;
    /// view[..5].copy_from_slice(b"first");
    /// let first = view.take_snapshot()?; // copies one page
    /// view[..5].copy_from_slice(b"later");
    /// assert_eq!(&first.view()?[..5], b"first");
    /// # Ok(())
    /// # }
    /// ```
    pub fn take_snapshot(&self) -> io::Result<Snapshot> {
        match &self.tree {
            Some(tree) => Ok(Snapshot::from(tree.capture()?)),
            None => Snapshot::zeroed(0),
        }
    }

    /// Restores the snapshot that the view was opened on.
    ///
    /// The address of the view stays the same. If the view had grown, it shrinks. A [`MutView`](crate::MutView) then
    /// shows what its snapshot contained when the view was opened.
    ///
    /// The call first finds the written pages. The time for that depends on the [tracking method](crate::Tracking).
    /// It then copies the old bytes back to the pages that were written, or discards these pages.
    /// [`keep_resident`](crate::ViewOptions::keep_resident) limits how many of them remain private memory of the
    /// view.
    ///
    /// # Errors
    ///
    /// - Those of the operating system: no address space, too many mappings. The view then shows its old bytes, or a
    ///   mixture of these and the snapshot's. It has its old length or that of the snapshot. In each case, snapshots
    ///   of the view are exact, and the next restore that succeeds restores all bytes.
    /// - `InvalidData` and `PermissionDenied`, as for [`take_snapshot`](Self::take_snapshot). After these errors, the
    ///   bytes of the view are the same as before.
    ///
    /// On Windows, a restore can fail because there is no memory even for zeroes. The view then has no bytes: its
    /// length is 0, and its other methods return errors until a restore succeeds. Its addresses stay reserved, but
    /// must not be accessed before a restore has succeeded.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::from_slice(b"clean")?;
    /// let mut view = snapshot.view()?;
    /// view[..5].copy_from_slice(b"dirty");
    /// view.restore()?;
    /// assert_eq!(view.content(), b"clean");
    /// # Ok(())
    /// # }
    /// ```
    pub fn restore(&mut self) -> io::Result<()> {
        match &mut self.tree {
            Some(tree) => tree.show(&Arc::clone(tree.root()), &[]),
            None => Ok(()),
        }
    }

    /// Does the same as [`restore`](Self::restore), except for the bytes in `ranges`, which stay as they are.
    ///
    /// Use this for data that must outlive a restore, such as the coverage map of a fuzzer, a log or a shared
    /// counter.
    ///
    /// `ranges` are ranges of bytes. They need not be whole pages, may overlap and may have any order. Whole pages
    /// within them are not copied, unless the restore has to map the whole view again. Later calls count the excluded
    /// bytes as possibly different from the snapshot. If the snapshot is shorter than the view, bytes beyond its end
    /// are not kept.
    ///
    /// # Errors
    ///
    /// - `InvalidInput` if a range is not within the view. Nothing has changed then.
    /// - Those of [`restore`](Self::restore). The bytes in the ranges stay the same after these errors, unless the
    ///   view has no bytes afterwards (on Windows, if there is no memory even for zeroes).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::zeroed(1 << 20)?;
    /// let mut view = snapshot.view()?;
    /// view[10..30].fill(1);
    /// view.restore_excluding(&[15..20])?;
    /// assert_eq!(view[10..30].iter().filter(|&&byte| byte == 1).count(), 5);
    /// assert_eq!(view[15], 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn restore_excluding(&mut self, ranges: &[Range<usize>]) -> io::Result<()> {
        let len = self.len();
        if let Some(range) = ranges.iter().find(|range| range.start > range.end || range.end > len) {
            return Err(self.outside("exclude", range));
        }
        match &mut self.tree {
            Some(tree) => tree.show(&Arc::clone(tree.root()), ranges),
            None => Ok(()),
        }
    }

    /// Makes the view show `snapshot`, at the same address.
    ///
    /// `snapshot` may be any snapshot, not only one that was taken of this view. If it has another length, the view
    /// shrinks, or grows as far as [`grow`](Self::grow) can. If other code has stored the view's length, give it the
    /// new one. If the view becomes shorter, do so before this call, because the bytes behind the new end become
    /// inaccessible.
    ///
    /// If the view's last snapshot and `snapshot` descend from one another or from a common snapshot, the time
    /// depends on the pages that differ between them and on the pages that were written. If they are unrelated, or if
    /// most pages differ, the call maps all of `snapshot`.
    ///
    /// # Errors
    ///
    /// - `InvalidInput` if the snapshot is longer than the view can become. Nothing has changed then.
    /// - The error with which a mutable view of `snapshot` ended, if no call has returned it yet. Nothing has changed
    ///   then.
    /// - Those of [`restore`](Self::restore).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let root = memsnap::Snapshot::from_slice(b"0")?;
    /// let mut view = root.view()?;
    /// view[0] = b'1';
    /// let one = view.take_snapshot()?;
    /// view.restore()?;
    /// assert_eq!(view[0], b'0');
    /// view.restore_to(&one)?;
    /// assert_eq!(view[0], b'1');
    /// # Ok(())
    /// # }
    /// ```
    pub fn restore_to(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        let Some(tree) = &mut self.tree else { return Ok(()) };
        let image = snapshot.image()?;
        let (most, wanted) = (tree.most(), image.pages * page_size());
        if wanted > most {
            return Err(error::invalid(format!(
                "a view with room for {most} bytes cannot show a snapshot of {wanted} bytes; open a view of that \
                 snapshot, or open this view with a larger ViewOptions::reserve"
            )));
        }
        tree.show(&image, &[])
    }
}

/// Ending a mutable view.
impl<A> View<&mut Snapshot, A> {
    /// Ends the view and stores its bytes in its snapshot.
    ///
    /// Dropping the view does the same, but cannot return an error. Instead, the next call on the snapshot that can
    /// fail returns it.
    ///
    /// # Errors
    ///
    /// Those of the operating system: no memory, no address space. The written bytes are kept, and the next call on
    /// the snapshot tries again to store them.
    ///
    /// In two cases there is nothing to keep, and the snapshot stays as it was: if the view belongs to the parent of
    /// this forked process, and if the view has no bytes after a [restore](Self::restore) that failed (Windows). If
    /// the view is dropped in these cases, no call returns the error.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let mut snapshot = memsnap::Snapshot::from_slice(b"draft")?;
    /// let mut view = snapshot.view_mut()?;
    /// view[..5].copy_from_slice(b"final");
    /// view.commit()?;
    /// assert_eq!(snapshot.view()?.content(), b"final");
    /// # Ok(())
    /// # }
    /// ```
    pub fn commit(mut self) -> io::Result<()> {
        self.finish()
    }
}
