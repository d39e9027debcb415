//! Sharing snapshots between processes, as sections.
//!
//! [`to_handle`](SnapshotExt::to_handle) returns a handle on a snapshot's bytes. Pass it to another process by
//! inheritance or `DuplicateHandle`. There, [`from_handle`](SnapshotExt::from_handle) makes a snapshot of it. Both
//! processes use the same memory. Views copy the pages that are written, as always.

use std::io;
use std::os::windows::io::OwnedHandle;

use crate::image::flat::Flat;
use crate::image::label::Label;
use crate::snapshot::Snapshot;
use crate::{error, sys};

mod sealed {
    /// Keeps other crates from implementing the traits of this module.
    pub trait Sealed {}

    impl Sealed for crate::Snapshot {}
}

/// Methods of a [`Snapshot`] that exist only on Windows: passing it to other processes.
///
/// # Examples
///
/// ```
/// use memsnap::Snapshot;
/// use memsnap::os::windows::SnapshotExt as _;
///
/// # fn main() -> std::io::Result<()> {
/// let snapshot = Snapshot::from_slice(b"in one process")?;
/// let handle = snapshot.to_handle()?;
///
/// // SAFETY: the handle was made by `to_handle`, so nothing writes to its section.
/// let received = unsafe { Snapshot::from_handle(handle, snapshot.content_len()) }?;
/// let mut view = received.view()?;
/// assert_eq!(view.content(), b"in one process");
/// view[3..6].copy_from_slice(b"two");
/// assert_eq!(snapshot.view()?.content(), b"in one process");
/// # Ok(())
/// # }
/// ```
pub trait SnapshotExt: sealed::Sealed + Sized {
    /// Returns a handle on a section that contains this snapshot's bytes.
    ///
    /// The section has at least [`len`](Snapshot::len) bytes. The handle does not contain the length, so send
    /// [`content_len`](Snapshot::content_len) separately.
    ///
    /// The handle permits mapping the section for reading, and nothing else. A process that has it can map the section
    /// readable or copy-on-write. Child processes do not inherit it unless it is made inheritable
    /// (`SetHandleInformation`). The section exists as long as any process has a handle on it, even after the snapshot
    /// is dropped.
    ///
    /// # Trust
    ///
    /// No handle that permits writing exists any more, not even in this process. The access list of the section is
    /// empty. So a process that may not change this list cannot get such a handle by duplicating this one with more
    /// rights. A program that runs under the same account may change the list, just as it may write to the memory of
    /// this process. Windows has no seal that prevents that.
    ///
    /// # Cost
    ///
    /// The call takes a few microseconds if one section has all the bytes already. This is the case if the snapshot
    /// was made of bytes, of a stream or of a file that was copied, or if so many views of it were opened that memsnap
    /// wrote its pages into one section. Otherwise, all pages that are not zero are copied into a new section, which
    /// the snapshot and its clones keep.
    ///
    /// # Errors
    ///
    /// - `InvalidInput` if the snapshot is empty.
    /// - Those of the operating system: no memory.
    /// - The error with which the last mutable view of the snapshot ended, if no call has returned it yet.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::Snapshot;
    /// use memsnap::os::windows::SnapshotExt as _;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let mut snapshot = Snapshot::from_slice(b"before")?;
    /// let handle = snapshot.to_handle()?;
    /// snapshot.view_mut()?[..6].copy_from_slice(b"behind");
    /// // SAFETY: the handle was made by `to_handle`, so nothing writes to its section.
    /// let earlier = unsafe { Snapshot::from_handle(handle, 6) }?;
    /// assert_eq!(earlier.view()?.content(), b"before");
    /// # Ok(())
    /// # }
    /// ```
    fn to_handle(&self) -> io::Result<OwnedHandle>;

    /// Makes a snapshot of the first `len` bytes of a section, in place.
    ///
    /// The section may come from [`to_handle`](Self::to_handle). It may also be any other section of the page file,
    /// or of a file, that can be mapped for reading.
    ///
    /// The call copies and reads nothing. If `len` is not a multiple of the page size, the rest of the last page is
    /// what the section contains there.
    ///
    /// # Safety
    ///
    /// As long as this snapshot exists, or any view or snapshot that descends from it, nothing may change the
    /// section's bytes, in this process or another. Otherwise, bytes change behind shared references. Windows has no
    /// means to enforce this, so the sender must be trusted. If it cannot be trusted, make a snapshot of a copy:
    /// [`Snapshot::from_slice`] of the mapped section.
    ///
    /// # Errors
    ///
    /// - `InvalidInput` if fewer than `len` bytes of the section can be read, because it is shorter or because they
    ///   are reserved but not committed, or if `len` exceeds the length of the longest slice.
    /// - Those of the operating system: the handle does not permit mapping for reading, or does not refer to a
    ///   section.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::Snapshot;
    /// use memsnap::os::windows::SnapshotExt as _;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let handle = Snapshot::from_slice(b"abc")?.to_handle()?;
    /// // SAFETY: the handle was made by `to_handle`, so nothing writes to its section.
    /// assert!(unsafe { Snapshot::from_handle(handle.try_clone()?, 1 << 30) }.is_err());
    /// // SAFETY: as above.
    /// assert_eq!(unsafe { Snapshot::from_handle(handle, 3) }?.view()?.content(), b"abc");
    /// # Ok(())
    /// # }
    /// ```
    #[allow(unsafe_code)]
    unsafe fn from_handle(section: OwnedHandle, len: usize) -> io::Result<Self>;
}

#[allow(unsafe_code)]
impl SnapshotExt for Snapshot {
    fn to_handle(&self) -> io::Result<OwnedHandle> {
        let image = self.image()?;
        if image.pages == 0 {
            return Err(error::invalid(
                "an empty snapshot cannot be shared: Windows has no empty sections".to_owned(),
            ));
        }
        Flat::share(&image)
            .map_err(error::context("making a section of a snapshot for other processes", image.pages))
    }

    unsafe fn from_handle(section: OwnedHandle, len: usize) -> io::Result<Self> {
        let (file, len) = sys::received(section, len)
            .map_err(error::on("making a snapshot of a received section", len as u64))?;
        Ok(Self::of_file(file, len, Label::default()))
    }
}
