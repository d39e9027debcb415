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
    /// Makes a snapshot with the bytes of this one and some changes.
    ///
    /// Each change is an offset and the bytes to write there. The changes need not be whole pages, and their order
    /// does not matter unless they overlap. Where changes overlap, the last one counts. The length and the content
    /// length stay the same.
    ///
    /// The new snapshot has copies of the pages that differ, and shares all other pages with this one. Pages that
    /// become zero take no memory. The time depends on the number of pages that the changes touch, not on the length
    /// of the snapshot: each of these pages is compared with the old page, and copied if it differs.
    ///
    /// If the changes are too many for one call, pass them in parts: `snapshot = snapshot.with_changes(part)?`. When
    /// the previous snapshot is dropped, the memory of pages that only it has is used again.
    ///
    /// # Errors
    ///
    /// - `InvalidInput` if a change is not within the [length](Self::len) of the snapshot.
    /// - Errors of the operating system, if there is not enough memory or address space.
    /// - The error with which the last mutable view of the snapshot ended, if no call has returned it yet. See
    ///   [`View::commit`](crate::View::commit).
    ///
    /// After an error, this snapshot is as it was.
    ///
    /// # Examples
    ///
    /// Apply the changes between two snapshots to a replica:
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

    /// Makes a snapshot with the bytes of this one and another length.
    ///
    /// The new snapshot has `len` bytes, rounded up to whole pages. Its first `content_len` bytes are its
    /// [content](Self::content_len). All bytes from `len` on are cut off. If the last page contains some of these bytes,
    /// they become zero. The bytes that a longer snapshot adds are zero too, even if this snapshot was made from one
    /// that had other bytes there.
    ///
    /// `content_len` may be less than `len`. The bytes between the two are kept. For example, this can give a snapshot
    /// the length and the content length that it had on a machine with larger pages.
    ///
    /// The two snapshots share their pages. Only the last page is copied, and only if bytes other than zero are cut
    /// off in the middle of it. The time to make a longer snapshot does not depend on the lengths. The time to make a
    /// shorter one depends on the number of captured pages that are cut off.
    ///
    /// # Errors
    ///
    /// - `InvalidInput` if `content_len` exceeds `len`, or if `len` exceeds the length of the longest slice.
    /// - Those of [`with_changes`](Self::with_changes).
    ///
    /// After an error, this snapshot is as it was.
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
