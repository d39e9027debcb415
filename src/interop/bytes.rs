//! Converts a view into [`Bytes`] of the `bytes` crate, which then own the view.

use ::bytes::Bytes;

use crate::view::ArcView;

/// The owner of the memory of a [`Bytes`]. The `Bytes` show the slice that `as_ref` returns.
struct Content(ArcView);

impl AsRef<[u8]> for Content {
    fn as_ref(&self) -> &[u8] {
        self.0.content()
    }
}

/// Converts a view into [`Bytes`] of its [content](crate::View::content), without a copy. Needs the feature `bytes`.
///
/// The `Bytes` own the view and show its memory. They can be cloned and sliced, and can be sent to other threads. The
/// view is dropped and its memory is freed when the last clone or slice is dropped.
///
/// The padding of the last page is not part of the content. For all bytes of the view, use `Bytes::from_owner(view)`.
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
/// drop(world); // drops the view, which kept the snapshot alive
/// assert_eq!(Arc::strong_count(&snapshot), 1);
/// # Ok(())
/// # }
/// ```
impl From<ArcView> for Bytes {
    fn from(view: ArcView) -> Self {
        Self::from_owner(Content(view))
    }
}
