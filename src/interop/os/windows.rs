//! Snapshots shared between processes, as sections.
//!
//! [`to_handle`](SnapshotExt::to_handle) gives a handle on a snapshot's bytes, which goes to another process by
//! inheritance or `DuplicateHandle`. There [`from_handle`](SnapshotExt::from_handle) makes a snapshot of it. The memory
//! is the same in both processes; views copy the pages that are written, as ever.

use std::io;
use std::os::windows::io::OwnedHandle;

use crate::image::flat::Flat;
use crate::image::label::Label;
use crate::snapshot::Snapshot;
use crate::{error, sys};

mod sealed {
    /// Nobody else implements the traits of this module.
    pub trait Sealed {}

    impl Sealed for crate::Snapshot {}
}

/// What a [`Snapshot`] can do besides on Windows.
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
/// // SAFETY: the handle was made by `to_handle`, so that nobody writes to its section.
/// let received = unsafe { Snapshot::from_handle(handle, snapshot.content_len()) }?;
/// let mut view = received.view()?;
/// assert_eq!(view.content(), b"in one process");
/// view[3..6].copy_from_slice(b"two");
/// assert_eq!(snapshot.view()?.content(), b"in one process");
/// # Ok(())
/// # }
/// ```
pub trait SnapshotExt: sealed::Sealed + Sized {
    /// A handle on a section that holds this snapshot's bytes: [`len`](Snapshot::len) of them, if not more.
    ///
    /// It has the right to be mapped for reading, and no other: who has it can map the section readable or
    /// copy-on-write. It is not inherited unless made so (`SetHandleInformation`), and lasts for as long as somebody has
    /// it, whatever becomes of the snapshot. The length does not go with it: send
    /// [`content_len`](Snapshot::content_len) too.
    ///
    /// # Trust
    ///
    /// No handle that can write exists any more, not even in this process. The section's access list is empty, so that a
    /// process that may not change it cannot get such a handle either by duplicating this one with more rights. A
    /// program that runs under this one's account may change the list, as it may write into this process's
    /// memory: against that Windows has no seal.
    ///
    /// # Cost
    ///
    /// A few microseconds where the bytes are in one section already: the snapshot was made of bytes, a stream or a
    /// file that was copied, or is viewed so often that it was made flat. Otherwise all pages that are not zero are
    /// copied into a section, which is kept with the snapshot and its clones.
    ///
    /// # Errors
    ///
    /// Those of the operating system: no memory.
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
    /// // SAFETY: the handle was made by `to_handle`, so that nobody writes to its section.
    /// let earlier = unsafe { Snapshot::from_handle(handle, 6) }?;
    /// assert_eq!(earlier.view()?.content(), b"before");
    /// # Ok(())
    /// # }
    /// ```
    fn to_handle(&self) -> io::Result<OwnedHandle>;

    /// A snapshot of the first `len` bytes of a section, in place: what [`to_handle`](Self::to_handle) gave, or any other
    /// section of the page file or of a file that can be mapped for reading.
    ///
    /// Copies and reads nothing. If `len` is not whole pages, the rest of the last page is what the section has there.
    ///
    /// # Safety
    ///
    /// As long as this snapshot exists, or any view or snapshot that descends from it, nobody may change the
    /// section's bytes, in this process or another. If somebody does, slices change behind shared references.
    /// Windows has no means to make sure of that; it has to be believed of the sender. From one that need not be
    /// believed, make a snapshot of a copy: [`Snapshot::from_slice`] of the mapped section.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if fewer bytes of the section can be read (they are not there, or reserved only), or `len` is
    /// more than a slice can be; those of the operating system: the handle has not the right to be mapped for
    /// reading or is none of a section.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::Snapshot;
    /// use memsnap::os::windows::SnapshotExt as _;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let handle = Snapshot::from_slice(b"abc")?.to_handle()?;
    /// // SAFETY: the handle was made by `to_handle`, so that nobody writes to its section.
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
            return Err(error::invalid("an empty snapshot has no section".to_owned()));
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
