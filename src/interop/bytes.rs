//! A view as [`Bytes`] of the `bytes` crate.

use ::bytes::Bytes;

use crate::view::ArcView;

/// What [`Bytes`] owns: it shows what its owner gives as a slice.
struct Content(ArcView);

impl AsRef<[u8]> for Content {
    fn as_ref(&self) -> &[u8] {
        self.0.content()
    }
}

/// The [content](crate::View::content) of a view, without a copy. Needs the feature `bytes`.
///
/// `Bytes` owns the view, and can be cloned and sliced: it shows the view's own memory, as it was when
/// converted. When the last clone or slice is dropped, so is the view, and its memory is given back.
///
/// The rest of the last page is not part of it; `Bytes::from_owner(view)` has all of the view.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
///
/// use bytes::Bytes;
///
/// # fn main() -> std::io::Result<()> {
/// let snapshot = Arc::new(memsnap::Snapshot::from_slice(b"Hello, World!")?);
/// let bytes = Bytes::from(snapshot.view_arc()?);
/// assert_eq!(bytes, "Hello, World!");
///
/// let world = bytes.slice(7..12);
/// drop(bytes);
/// assert_eq!(world, "World");
/// drop(world); // now the view is dropped, and no longer keeps the snapshot alive
/// assert_eq!(Arc::strong_count(&snapshot), 1);
/// # Ok(())
/// # }
/// ```
impl From<ArcView> for Bytes {
    fn from(view: ArcView) -> Self {
        Self::from_owner(Content(view))
    }
}
