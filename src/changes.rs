//! `Changes`: the pages in which two states of memory differ, with the bytes of both.
//!
//! This file only reads the bytes. The view and the image find the pages.

use std::fmt;
use std::iter::FusedIterator;
use std::ops::Range;
use std::sync::Arc;
use std::vec;

use crate::image::Image;
use crate::page_size;
use crate::pages::{PageRange, PageSet};

/// An iterator over the differences between two states of memory.
///
/// [`View::changes`](crate::View::changes) and [`Snapshot::diff`](crate::Snapshot::diff) return it. Each item is a
/// [`Change`]: a range of whole pages. Adjacent pages are in one range, and the ranges are in ascending order. The
/// bytes are not copied: a `Changes` keeps the snapshots alive, and borrows the view.
///
/// # Examples
///
/// Sending a change log to a replica:
///
/// ```
/// use memsnap::{Snapshot, page_size};
///
/// # fn main() -> std::io::Result<()> {
/// let before = Snapshot::zeroed(1 << 20)?;
/// let mut view = before.view()?;
/// view[5] = 1;
/// view[9 * page_size()] = 2;
/// let after = view.take_snapshot()?;
///
/// let mut replica = vec![0; 1 << 20];
/// for change in before.diff(&after)? {
///     for page in change.pages() {
///         replica[page.offset..][..page.new.len()].copy_from_slice(page.new);
///     }
/// }
/// assert_eq!(replica, after.view()?.as_slice());
/// # Ok(())
/// # }
/// ```
pub struct Changes<'a> {
    old: Side<'a>,
    new: Side<'a>,
    ranges: vec::IntoIter<PageRange>,
}

/// A range of pages that differ, with the old and the new bytes.
///
/// [`Changes`] iterates over these ranges.
///
/// # Examples
///
/// ```
/// use memsnap::{Snapshot, page_size};
///
/// # fn main() -> std::io::Result<()> {
/// let snapshot = Snapshot::zeroed(8 * page_size())?;
/// let mut view = snapshot.view()?;
/// view[2 * page_size()..4 * page_size()].fill(1);
/// let change = view.changes()?.next().expect("two pages differ");
/// assert_eq!(change.range(), 2 * page_size()..4 * page_size());
/// assert_eq!(change.pages().count(), 2);
/// # Ok(())
/// # }
/// ```
pub struct Change<'a> {
    old: Side<'a>,
    new: Side<'a>,
    range: PageRange,
}

/// A page that differs, with its old and new bytes.
///
/// [`Change::pages`] returns these.
///
/// # Examples
///
/// ```
/// use memsnap::{Snapshot, page_size};
///
/// # fn main() -> std::io::Result<()> {
/// let (short, long) = (Snapshot::zeroed(page_size())?, Snapshot::zeroed(2 * page_size())?);
/// for change in short.diff(&long)? {
///     for page in change.pages() {
///         assert_eq!(page.offset, page_size());
///         assert!(page.old.is_empty()); // beyond the end of `short`
///         assert_eq!(page.new.len(), page_size());
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct PageChange<'a> {
    /// The offset of the page in bytes.
    pub offset: usize,
    /// The old bytes of the page; empty if the page is beyond the end of the old state.
    pub old: &'a [u8],
    /// The new bytes of the page; empty if the page is beyond the end of the new state.
    pub new: &'a [u8],
}

/// The bytes of one of the two states.
#[derive(Clone)]
pub(crate) enum Side<'a> {
    /// An image. Its base is mapped already, because the image was read to find the pages.
    Image(Arc<Image>),
    Slice(&'a [u8]),
}

impl Side<'_> {
    fn page(&self, page: usize) -> &[u8] {
        match self {
            // Making another reader of this image cannot fail, because its base is mapped already.
            Self::Image(image) if page < image.pages => {
                image.reader().map_or(&[], |reader| reader.page(page))
            }
            Self::Image(_) => &[],
            Self::Slice(bytes) => bytes.get(PageRange::new(page, page + 1).bytes()).unwrap_or(&[]),
        }
    }
}

impl<'a> Changes<'a> {
    pub(crate) fn new(old: Side<'a>, new: Side<'a>, pages: &PageSet) -> Self {
        Self { old, new, ranges: pages.ranges().to_vec().into_iter() }
    }

    /// Returns `true` if no differing ranges are left.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::from_slice(b"same")?;
    /// let mut view = snapshot.view()?;
    /// view[0] = b's'; // written, but with the same byte
    /// assert!(view.changes()?.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the byte ranges that are left, without consuming them.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::zeroed(1 << 20)?;
    /// let mut view = snapshot.view()?;
    /// view[5] = 1;
    /// assert_eq!(view.changes()?.ranges(), [0..memsnap::page_size()]);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn ranges(&self) -> Vec<Range<usize>> {
        self.ranges.as_slice().iter().map(|range| range.bytes()).collect()
    }
}

impl<'a> Iterator for Changes<'a> {
    type Item = Change<'a>;

    fn next(&mut self) -> Option<Change<'a>> {
        let range = self.ranges.next()?;
        Some(Change { old: self.old.clone(), new: self.new.clone(), range })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.ranges.size_hint()
    }
}

impl ExactSizeIterator for Changes<'_> {}

impl FusedIterator for Changes<'_> {}

impl fmt::Debug for Changes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ranges()).finish()
    }
}

impl Change<'_> {
    /// Returns the range in bytes. Both ends are page boundaries.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::zeroed(1 << 20)?;
    /// let mut view = snapshot.view()?;
    /// view[100] = 1;
    /// for change in view.changes()? {
    ///     assert_eq!(change.range(), 0..memsnap::page_size());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.range.bytes()
    }

    /// Returns the pages of the range, each with its old and new bytes.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::from_slice(b"tea")?;
    /// let mut view = snapshot.view()?;
    /// view[0] = b'p';
    /// for change in view.changes()? {
    ///     for page in change.pages() {
    ///         let differing = page.old.iter().zip(page.new).filter(|(old, new)| old != new);
    ///         assert_eq!(differing.collect::<Vec<_>>(), [(&b't', &b'p')]);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn pages(&self) -> impl Iterator<Item = PageChange<'_>> {
        self.range.iter().map(|page| PageChange {
            offset: page * page_size(),
            old: self.old.page(page),
            new: self.new.page(page),
        })
    }
}

impl fmt::Debug for Change<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Change").field(&self.range()).finish()
    }
}
