//! Differences, with the bytes of both sides at hand.

use std::fmt;
use std::iter::FusedIterator;
use std::ops::Range;
use std::sync::Arc;
use std::vec;

use crate::image::Image;
use crate::page_size;
use crate::pages::{PageRange, PageSet};

/// Where two states of memory differ: whole pages, ascending, neighbours as one [`Change`].
///
/// From [`View::changes`](crate::View::changes) and [`Snapshot::diff`](crate::Snapshot::diff).
pub struct Changes<'a> {
    old: Side<'a>,
    new: Side<'a>,
    ranges: vec::IntoIter<PageRange>,
}

/// One range of bytes that differ, and what they were and are.
pub struct Change<'a> {
    old: Side<'a>,
    new: Side<'a>,
    range: PageRange,
}

/// One page that differs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct PageChange<'a> {
    /// Where the page starts, in bytes.
    pub offset: usize,
    /// What it was, one page long; empty beyond the end of the old state.
    pub old: &'a [u8],
    /// What it is, one page long; empty beyond the end of the new state.
    pub new: &'a [u8],
}

/// The bytes of one state.
#[derive(Clone)]
pub(crate) enum Side<'a> {
    /// Of an image that was read before, so that its base is mapped.
    Image(Arc<Image>),
    Slice(&'a [u8]),
}

impl Side<'_> {
    fn page(&self, page: usize) -> &[u8] {
        match self {
            // To read again cannot fail.
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

    /// Whether nothing differs, or nothing is left of it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The byte ranges that are left, without their bytes.
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
    /// Where the bytes are.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.range.bytes()
    }

    /// The pages of the range, with their bytes on both sides.
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
