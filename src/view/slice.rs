//! `View` as a slice of bytes, and the list of its changes.
//!
//! All bytes can be read. Unless the view is logged, they can also be written. `protected.rs` and `logged.rs` have
//! the methods that replace the slice in other kinds of views.

use std::io;
use std::ops::{Deref, DerefMut, Index, IndexMut};
use std::slice::SliceIndex;

use crate::changes::{Changes, Side};
use crate::engine::worktree::Worktree;
use crate::view::kind::Readable;
use crate::view::{ProtectedView, View};

/// Reading the bytes.
impl<S, A: Readable> View<S, A> {
    /// Returns all bytes of the view, as `&view[..]` does. The length is a multiple of the page size.
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

    /// Returns the content of the view: its bytes without the padding of the last page.
    ///
    /// Its length is the [`content_len`](crate::Snapshot::content_len) of the snapshot that the view was opened on or
    /// that was last restored, or the length that was passed to [`grow`](Self::grow) afterwards. Use
    /// [`as_slice`](Self::as_slice) for all bytes.
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

    /// Lists the pages that differ from the last snapshot, with their old and new bytes.
    ///
    /// The last snapshot is the one that was last taken of the view or restored to it. Before the first such call, it
    /// is the one that the view was opened on. The ranges consist of whole pages and are in ascending order. Adjacent
    /// pages are in one range. Bytes by which the view grew count as different.
    ///
    /// The call searches for the written pages as [`take_snapshot`](Self::take_snapshot) does, and compares each of
    /// them. The result borrows the view.
    ///
    /// # Errors
    ///
    /// - Those of the operating system: no memory, no address space.
    /// - `InvalidData` if a [logged view](crate::LoggedView) [checks](crate::ViewOptions::checked) its reports and
    ///   finds a written page that was not reported.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::zeroed(1 << 20)?;
    /// let mut view = snapshot.view()?;
    /// view[1] = 1;
    /// for change in view.changes()? {
    ///     assert_eq!(change.range(), 0..memsnap::page_size());
    ///     for page in change.pages() {
    ///         assert_eq!((page.old[1], page.new[1]), (0, 1));
    ///     }
    /// }
    /// view[1] = 0;
    /// assert!(view.changes()?.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub fn changes(&self) -> io::Result<Changes<'_>> {
        match &self.tree {
            Some(tree) => {
                let (synced, pages) = tree.changes()?;
                Ok(Changes::new(Side::Image(synced), Side::Slice(self.as_slice()), &pages))
            }
            None => Ok(Changes::new(Side::Slice(&[]), Side::Slice(&[]), &Default::default())),
        }
    }
}

/// Writing the bytes.
impl<S> View<S> {
    /// Returns all bytes of the view for writing, as `&mut view[..]` does. The length is a multiple of the page size.
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

    /// Converts the view into one of which parts can be [protected](View::protect).
    ///
    /// The result cannot be used like a slice. The conversion takes no time, and the address stays the same.
    /// [`into_open`](View::into_open) converts it back.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{Access, Snapshot};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = Snapshot::from_slice(b"tables")?;
    /// let mut memory = snapshot.view()?.into_protected();
    /// memory.protect(.., Access::READ)?;
    /// assert_eq!(memory.get(..6), Some(&b"tables"[..]));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn into_protected(self) -> ProtectedView<S> {
        self.with_access()
    }
}

impl<S, A: Readable> Deref for View<S, A> {
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

impl<S, A: Readable> AsRef<[u8]> for View<S, A> {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl<S> AsMut<[u8]> for View<S> {
    fn as_mut(&mut self) -> &mut [u8] {
        self.as_mut_slice()
    }
}

impl<I: SliceIndex<[u8]>, S, A: Readable> Index<I> for View<S, A> {
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
