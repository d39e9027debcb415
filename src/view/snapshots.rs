//! Snapshots of a view, and restores.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::error;
use crate::page_size;
use crate::snapshot::Snapshot;
use crate::view::View;

impl<S, A> View<S, A> {
    /// A new snapshot of what the view shows now.
    ///
    /// Captures the pages that changed since the last snapshot taken or restored, and shares all others.
    /// The view goes on as it was. Two threads may take snapshots of one view at the same time.
    ///
    /// # Errors
    ///
    /// Those of the operating system: no memory, no address space. `InvalidData` if a [logged view](LoggedView)
    /// [checks](crate::ViewOptions::checked) and finds a written page that was not reported. The view stays as it was.
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

    /// Puts the view back to the snapshot that it was opened on, at the same address.
    ///
    /// For a [`MutView`] that is what the snapshot held when the view was opened.
    ///
    /// # Errors
    ///
    /// Those of the operating system: no address space, too many mappings. The view then shows what it
    /// showed before, or a mixture, and is as long as before or as the snapshot; either way the next restore puts
    /// everything right, and snapshots taken of it are exact. `InvalidData` as for
    /// [`take_snapshot`](Self::take_snapshot); after this error, the view shows what it showed before.
    ///
    /// On Windows, if there is not even enough memory for that, the view has no bytes: its length is 0, and its other
    /// methods return errors until a restore succeeds. Its addresses stay reserved, but must not be accessed
    /// meanwhile.
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

    /// The same as [`restore`](Self::restore), but for the bytes in these ranges, which stay as they are: the coverage
    /// map of a fuzzer, a log, a shared counter.
    ///
    /// Exact to the byte; whole pages in the ranges cost nothing. Later calls know that they may differ from the
    /// snapshot. Ranges may overlap; bytes beyond the end of a shorter snapshot go.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a range that is not within the view, which changes nothing; otherwise as for
    /// [`restore`](Self::restore). The bytes in the ranges stay in any
    /// case, unless the view has lost its memory (on Windows, where even memory for zeroes could not be had).
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
            return Err(self.outside("leave bytes out of a restore", range));
        }
        match &mut self.tree {
            Some(tree) => tree.show(&Arc::clone(tree.root()), ranges),
            None => Ok(()),
        }
    }

    /// Has the view show another snapshot, at the same address. To a snapshot of another length, the view shrinks, or
    /// grows as far as [`grow`](Self::grow) can. Other code that keeps the view's length has to be told, and if the view
    /// shrinks, before: what is behind its end then cannot be accessed.
    ///
    /// Between snapshots that descend from one another this costs the pages that differ and the pages
    /// changed; to an unrelated one, mapping it.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the snapshot is longer than the view can be, which changes nothing; otherwise as for
    /// [`restore`](Self::restore).
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
                 snapshot, or this one with ViewOptions::reserve"
            )));
        }
        tree.show(&image, &[])
    }
}
