//! `View`: the slice, `take_snapshot`, `restore`. How they work is told in `worktree.rs`.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut, Index, IndexMut, Range};
use std::ptr;
use std::slice::SliceIndex;
use std::sync::{Arc, Mutex};

use crate::options::Tracking;
use crate::snapshot::{Head, Snapshot};
use crate::stats::ViewStats;
use crate::worktree::Worktree;
use crate::{error, page_size};

/// A copy-on-write view that borrows its snapshot. See [`View`].
pub type CowView<'a> = View<&'a Snapshot>;

/// A view whose changes its snapshot holds afterwards. See [`View`] and [`Snapshot::view_mut`].
pub type MutView<'a> = View<&'a mut Snapshot>;

/// A copy-on-write view that keeps its snapshot alive. See [`View`].
pub type ArcView = View<Arc<Snapshot>>;

/// A range of memory that shows a snapshot and can be written, without changing any other view.
///
/// A view is a slice of bytes: it indexes and dereferences like one. Its address and length never
/// change. [`take_snapshot`](Self::take_snapshot) makes a snapshot of what it shows,
/// [`restore`](Self::restore) and [`restore_to`](Self::restore_to) have it show a snapshot again. All of
/// them cost what changed, not what there is. Bytes that the kernel writes for a system call
/// (`read` into the view) count like others.
///
/// Dropping a view frees what it holds privately; for a [`MutView`] see [`commit`](Self::commit).
///
/// Memory of a view that is registered with the kernel for writes of its own (fixed buffers of io_uring, RDMA)
/// is captured as it is at that moment, but has to be registered again after a restore, which may replace it.
///
/// # Fork
///
/// A copy-on-write view and its snapshots go on in a forked child, where they and the parent's never
/// see each other's changes. A [`MutView`] of a snapshot that was all zeroes stays with the parent: in
/// the child its bytes must not be touched, and its methods return errors. As ever with `fork`, objects that
/// another thread was using at that moment must not be used in the child.
pub struct View<S> {
    /// `None` only while the view is being dropped or committed.
    tree: Option<Worktree>,
    /// Where a mutable view leaves its changes.
    head: Option<Arc<Mutex<Head>>>,
    _snapshot: S,
}

impl<S> View<S> {
    pub(crate) fn new(tree: Worktree, head: Option<Arc<Mutex<Head>>>, snapshot: S) -> Self {
        Self { tree: Some(tree), head, _snapshot: snapshot }
    }

    /// A new snapshot of what the view shows now.
    ///
    /// Captures the pages that changed since the last snapshot taken or restored, and shares all others.
    /// The view goes on as it was. Two threads may take snapshots of one view at the same time.
    ///
    /// # Errors
    ///
    /// Those of the operating system: no memory, no address space. The view stays as it was.
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
    /// showed before, or a mixture; either way the next restore puts everything right, and snapshots taken
    /// of it are exact.
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
            Some(tree) => tree.show(&Arc::clone(tree.root())),
            None => Ok(()),
        }
    }

    /// Has the view show another snapshot of the same length, at the same address.
    ///
    /// Between snapshots that descend from one another this costs the pages that differ and the pages
    /// changed; to an unrelated one, mapping it.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the lengths differ, which changes nothing; otherwise as for
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
        let (here, there) = (tree.bytes().len(), image.pages * page_size());
        if here != there {
            return Err(error::invalid(format!(
                "a view of {here} bytes cannot show a snapshot of {there} bytes; open a view of that snapshot"
            )));
        }
        tree.show(&image)
    }

    /// The byte ranges in which the view differs from the snapshot that was last taken of it or restored
    /// to it: whole pages, ascending, neighbours as one range.
    ///
    /// # Errors
    ///
    /// Those of the operating system: no memory, no address space.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::zeroed(1 << 20)?;
    /// let mut view = snapshot.view()?;
    /// view[1] = 1;
    /// assert_eq!(view.changes()?, [0..memsnap::page_size()]);
    /// view[1] = 0;
    /// assert_eq!(view.changes()?, []);
    /// # Ok(())
    /// # }
    /// ```
    pub fn changes(&self) -> io::Result<Vec<Range<usize>>> {
        match &self.tree {
            Some(tree) => Ok(tree.changes()?.byte_ranges()),
            None => Ok(Vec::new()),
        }
    }

    /// All bytes of the view, whole pages; the same as `&view[..]`.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::from_slice(b"abc")?;
    /// assert!(snapshot.view()?.as_slice().starts_with(b"abc\0"));
    /// # Ok(())
    /// # }
    /// ```
    #[inline]
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.tree.as_ref().map_or(&[], Worktree::bytes)
    }

    /// All bytes of the view, whole pages; the same as `&mut view[..]`.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::Read;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::zeroed(1)?;
    /// let mut view = snapshot.view()?;
    /// let read = (&b"from anywhere"[..]).read(view.as_mut_slice())?;
    /// assert_eq!(&view[..read], b"from anywhere");
    /// # Ok(())
    /// # }
    /// ```
    #[inline]
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.tree.as_mut().map_or(&mut [], Worktree::bytes_mut)
    }

    /// As many bytes as the snapshot that the view shows was made with: without the rest of the last page.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::from_slice(b"13 characters")?;
    /// assert_eq!(snapshot.view()?.content(), b"13 characters");
    /// # Ok(())
    /// # }
    /// ```
    #[inline]
    #[must_use]
    pub fn content(&self) -> &[u8] {
        &self.as_slice()[..self.tree.as_ref().map_or(0, Worktree::content_len)]
    }

    /// The address of the first byte, aligned to a page. It stays the same as long as the view lives.
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

    /// The address of the first byte, aligned to a page. It stays the same as long as the view lives.
    ///
    /// Writes through it are tracked like others. They must not race with calls on the view, nor happen
    /// while a slice of it is in use.
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

    /// The length in bytes: whole pages.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Whether there is not a single byte.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the view holds.
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
        let Some(tree) = &self.tree else { return ViewStats::default() };
        let (private, mappings) = tree.footprint();
        ViewStats { tracker: tree.tracker(), private: private * page_size(), mappings }
    }

    /// Has the written pages be found in another way from now on, which changes nothing but costs.
    #[doc(hidden)]
    pub fn set_tracking(&mut self, tracking: Tracking) {
        if let Some(tree) = &mut self.tree {
            tree.set_tracking(tracking);
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        match (self.tree.take(), &self.head) {
            (Some(tree), Some(head)) => Head::finish(head, tree),
            _ => Ok(()),
        }
    }
}

impl MutView<'_> {
    /// Ends the view: the snapshot holds what it shows.
    ///
    /// Dropping the view does the same, but cannot say if it failed: then the next fallible call on the
    /// snapshot returns the error.
    ///
    /// # Errors
    ///
    /// Those of the operating system: no memory, no address space. Nothing written is lost: the changes are
    /// kept, and the next call on the snapshot tries again.
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

impl<S> Drop for View<S> {
    fn drop(&mut self) {
        if let Err(error) = self.finish()
            && let Some(head) = &self.head
        {
            Head::report_later(head, error);
        }
    }
}

impl<S> Deref for View<S> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl<S> DerefMut for View<S> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        self.as_mut_slice()
    }
}

impl<S> AsRef<[u8]> for View<S> {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl<S> AsMut<[u8]> for View<S> {
    fn as_mut(&mut self) -> &mut [u8] {
        self.as_mut_slice()
    }
}

impl<I: SliceIndex<[u8]>, S> Index<I> for View<S> {
    type Output = I::Output;

    #[inline]
    fn index(&self, index: I) -> &I::Output {
        &self.as_slice()[index]
    }
}

impl<I: SliceIndex<[u8]>, S> IndexMut<I> for View<S> {
    #[inline]
    fn index_mut(&mut self, index: I) -> &mut I::Output {
        &mut self.as_mut_slice()[index]
    }
}

impl<S> fmt::Debug for View<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("len", &self.len()).field("stats", &self.stats()).finish_non_exhaustive()
    }
}
