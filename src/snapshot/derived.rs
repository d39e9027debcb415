//! `Snapshot`: making a snapshot from another one, without a view.
//!
//! These methods check their arguments. `image/` decides which pages are captured.

use std::io;
use std::sync::Arc;

use crate::error;
use crate::image::writes::Write;
use crate::page_size;
use crate::snapshot::{Snapshot, checked_pages};
use crate::zero::zeroes;

/// Making a snapshot from another one, without a view.
impl Snapshot {
    /// Makes a snapshot of the bytes of this one after some writes.
    ///
    /// Each change is an offset and the bytes to write there. The changes need not be whole pages and may have any
    /// order. Where they overlap, the last one counts. The length and the content length stay the same.
    ///
    /// The new snapshot has copies of the pages whose bytes differ, and shares all other pages with this one. Pages
    /// that become zero take no memory. The time depends on the pages that the changes touch, not on the length of
    /// the snapshot: each of these pages is compared with the old one, and is copied if it differs.
    ///
    /// If there is too much to write for one call, write it in parts: `snapshot = snapshot.with_changes(part)?`. The
    /// memory of pages that only the previous snapshot has is used again as soon as that snapshot is dropped.
    ///
    /// # Errors
    ///
    /// - `InvalidInput` if a change is not within the snapshot ([`len`](Self::len)).
    /// - Those of the operating system: no memory, no address space.
    /// - The error with which the last mutable view of the snapshot ended, if no call has returned it yet. See
    ///   [`View::commit`](crate::View::commit).
    ///
    /// This snapshot stays as it is in each case.
    ///
    /// # Examples
    ///
    /// Applying the changes between two snapshots to a replica:
    ///
    /// ```
    /// use memsnap::{Snapshot, page_size};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let before = Snapshot::zeroed(1 << 30)?;
    /// let after = before.with_changes([(5, "some"), (900 * page_size() - 2, "bytes")])?;
    ///
    /// let replica = Snapshot::zeroed(1 << 30)?;
    /// let mut changed = Vec::new();
    /// for change in before.diff(&after)? {
    ///     changed.extend(change.pages().map(|page| (page.offset, page.new.to_vec())));
    /// }
    /// let replica = replica.with_changes(changed)?;
    /// assert_eq!(replica.stats().captured, 3 * page_size());
    /// assert!(replica.diff(&after)?.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_changes<B: AsRef<[u8]>>(
        &self,
        changes: impl IntoIterator<Item = (usize, B)>,
    ) -> io::Result<Self> {
        let changes: Vec<(usize, B)> = changes.into_iter().collect();
        let writes: Vec<Write<'_>> =
            changes.iter().map(|(offset, bytes)| (*offset, bytes.as_ref())).collect();
        let len = self.len();
        let is_outside =
            |(offset, bytes): &&Write<'_>| offset.checked_add(bytes.len()).is_none_or(|end| end > len);
        if let Some((offset, bytes)) = writes.iter().find(is_outside) {
            return Err(error::invalid(format!(
                "cannot change {} bytes from byte {offset} on: they are not within the snapshot, which has {len} \
                 bytes; Snapshot::resized makes a longer one",
                bytes.len()
            )));
        }
        let image = self.image()?;
        let written = image.written((image.pages, image.content_len), &writes)?;
        Ok(Self::from(written.map_or(image, Arc::new)))
    }

    /// Makes a snapshot of the bytes of this one with another length.
    ///
    /// The new snapshot is `len` bytes long, rounded up to whole pages, of which the first `content_len` bytes are
    /// its [content](Self::content_len). All bytes from `len` on are cut off. If the last page has some of these bytes,
    /// they become zero. The bytes that a longer snapshot adds are zero too, even if this snapshot was made from one
    /// that had other bytes there.
    ///
    /// `content_len` may be less than `len`. The bytes between them are kept. For example, a snapshot of a machine with
    /// larger pages can be made here with the same content length and all its bytes.
    ///
    /// The two snapshots share all pages. Only the last page is copied, if bytes other than zero are cut off in the
    /// middle of it. The time to make a longer snapshot does not depend on the lengths. The time to make a shorter one
    /// depends on the number of captured pages that are cut off.
    ///
    /// # Errors
    ///
    /// - `InvalidInput` if `content_len` exceeds `len`, or if `len` exceeds the length of the longest slice.
    /// - Those of [`with_changes`](Self::with_changes).
    ///
    /// This snapshot stays as it is in each case.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = memsnap::Snapshot::from_slice(b"Hello, World!")?;
    /// let long = snapshot.resized(1 << 20, 13)?;
    /// assert_eq!(long.len(), 1 << 20);
    /// assert_eq!(long.view()?.content(), b"Hello, World!");
    ///
    /// let short = long.resized(5, 5)?;
    /// assert_eq!(short.len(), memsnap::page_size());
    /// assert_eq!(short.resized(8, 8)?.view()?.content(), b"Hello\0\0\0");
    /// # Ok(())
    /// # }
    /// ```
    pub fn resized(&self, len: usize, content_len: usize) -> io::Result<Self> {
        let pages = checked_pages(len)?;
        if content_len > len {
            return Err(error::invalid(format!(
                "cannot make a snapshot of {len} bytes with a content of {content_len} bytes: the content must not be \
                 longer than the snapshot"
            )));
        }
        let image = self.image()?;
        let cut_off =
            (len < image.pages * page_size()).then(|| (len, &zeroes()[..pages * page_size() - len]));
        let resized = image.written((pages, content_len), cut_off.as_slice())?;
        Ok(Self::from(resized.map_or(image, Arc::new)))
    }
}
