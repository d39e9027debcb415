//! A view as a slice of bytes.
//!
//! All bytes can be read. Unless the view is logged, they can also be written.

use std::io;
use std::ops::{Deref, DerefMut, Index, IndexMut};
use std::slice::SliceIndex;

use crate::changes::{Changes, Side};
use crate::engine::worktree::Worktree;
use crate::view::kind::Readable;
use crate::view::{ProtectedView, View};

/// While all bytes can be read.
impl<S, A: Readable> View<S, A> {
    /// Where the view differs from the snapshot that was last taken of it or restored to it, with the bytes
    /// of both: whole pages, ascending, neighbours as one range. What the view grew by counts as different.
    ///
    /// Costs what finding the changes for a snapshot costs, and a comparison of each page found.
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
}

/// While all bytes can be read and written.
impl<S> View<S> {
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

    /// Lets parts of the view be [protected](View::protect); it is no slice from then on. Costs nothing.
    ///
    /// # Examples
    ///
    /// See [`protect`](View::protect).
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
