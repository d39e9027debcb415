//! Sharing snapshots between processes, as sealed memfds.
//!
//! [`to_fd`](SnapshotExt::to_fd) returns a descriptor of a snapshot's bytes. Send it to another process by any means
//! that carries descriptors: a Unix socket (`SCM_RIGHTS`), `pidfd_getfd` or inheritance. There,
//! [`from_fd`](SnapshotExt::from_fd) makes a snapshot of it. Both processes use the same memory, and neither can
//! change it. Views copy the pages that are written, as always.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use crate::image::flat::Flat;
use crate::image::label::Label;
use crate::snapshot::Snapshot;
use crate::{error, sys};

mod sealed {
    /// Keeps other crates from implementing the traits of this module.
    pub trait Sealed {}

    impl Sealed for crate::Snapshot {}
}

/// Methods of a [`Snapshot`] that exist only on Linux: passing it to other processes.
///
/// # Examples
///
/// ```
/// use memsnap::Snapshot;
/// use memsnap::os::linux::SnapshotExt as _;
///
/// # fn main() -> std::io::Result<()> {
/// let snapshot = Snapshot::from_slice(b"in one process")?;
/// let fd = snapshot.to_fd()?;
///
/// let received = Snapshot::from_fd(fd)?;
/// let mut view = received.view()?;
/// assert_eq!(&view[..14], b"in one process");
/// view[3..6].copy_from_slice(b"two");
/// assert_eq!(&snapshot.view()?[..14], b"in one process");
/// # Ok(())
/// # }
/// ```
pub trait SnapshotExt: sealed::Sealed + Sized {
    /// Returns a descriptor of a sealed memfd that contains this snapshot's bytes.
    ///
    /// The length of the file is [`len`](Snapshot::len), a multiple of the page size. Send
    /// [`content_len`](Snapshot::content_len) separately if the receiver needs it.
    ///
    /// Any process that has the descriptor can map or read the file. No process can write to it, not even this one:
    /// the descriptor is open for reading only, and the file is sealed with `F_SEAL_WRITE`, `F_SEAL_SHRINK` and
    /// `F_SEAL_GROW`. The descriptor is closed on `exec`. The file exists as long as any process has a descriptor or
    /// a mapping of it, even after the snapshot is dropped.
    ///
    /// # Cost
    ///
    /// The call takes a few microseconds if one memfd has all the bytes already. This is the case if the snapshot was
    /// made of bytes, of a stream or of a file that was copied, or if so many views of it were opened that memsnap
    /// wrote its pages into one file. Otherwise, all pages that are not zero are copied into a new memfd. The snapshot
    /// and its clones keep this file, so the next call copies nothing, and views usually map it. They do not keep it
    /// if such files have used up their share of the process's descriptors (an eighth).
    ///
    /// # Errors
    ///
    /// - Those of the operating system: no memory, no file descriptor (a file that is kept takes one, in addition to
    ///   the one that is returned).
    /// - `ResourceBusy` if the kernel cannot seal the file at this moment, because something else uses its pages. Try
    ///   again.
    /// - The error with which the last mutable view of the snapshot ended, if no call has returned it yet.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::fs::File;
    /// use std::os::unix::fs::FileExt;
    ///
    /// use memsnap::Snapshot;
    /// use memsnap::os::linux::SnapshotExt as _;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let file = File::from(Snapshot::from_slice(b"abc")?.to_fd()?);
    /// let mut bytes = [0; 3];
    /// file.read_exact_at(&mut bytes, 0)?;
    /// assert_eq!(&bytes, b"abc");
    /// assert!(file.write_at(b"x", 0).is_err());
    /// # Ok(())
    /// # }
    /// ```
    fn to_fd(&self) -> io::Result<OwnedFd>;

    /// Makes a snapshot of the memfd `fd`, in place.
    ///
    /// `fd` may come from [`to_fd`](Self::to_fd), or from any other program that sealed a memfd. The call copies and
    /// reads nothing, and takes a few microseconds.
    ///
    /// [`content_len`](Snapshot::content_len) is the length of the file in bytes. If that is not a multiple of the
    /// page size, the rest of the last page is zero, unless the sender wrote there through a mapping.
    ///
    /// # Trust
    ///
    /// The sender need not be trusted, because the kernel enforces the seals. It grants `F_SEAL_WRITE` only if no
    /// process has the file mapped for writing or its pages pinned, and it never removes a seal. From then on, no
    /// write, hole punch or mapping can change a byte. `F_SEAL_SHRINK` and `F_SEAL_GROW` fix the length. So no byte of
    /// a slice of a view changes while the slice exists, and the file never loses a page. `F_SEAL_FUTURE_WRITE` alone
    /// is not sufficient, because processes that mapped the file before can still write to it.
    ///
    /// The sender chooses the bytes and the length, so check the length. `fd` may share its file offset with the
    /// sender. The call neither uses nor moves the offset.
    ///
    /// Pages that are in memory belong to the sender, and stay in memory until the last process closes and unmaps the
    /// file. Holes that are read become memory of the process that reads them. A sparse file can be much longer than
    /// the available memory.
    ///
    /// # Errors
    ///
    /// - `PermissionDenied` if `fd` is not open for reading.
    /// - `InvalidInput` if the file is not a memfd, lacks one of the three seals, is in huge pages (`MFD_HUGETLB`), or
    ///   is longer than the longest slice.
    /// - Those of the operating system: no file descriptor.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::Snapshot;
    /// use memsnap::os::linux::SnapshotExt as _;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let mut snapshot = Snapshot::from_slice(b"before")?;
    /// let received = Snapshot::from_fd(snapshot.to_fd()?)?;
    /// snapshot.view_mut()?[..6].copy_from_slice(b"behind");
    /// assert_eq!(&received.view()?[..6], b"before");
    ///
    /// let file = tempfile::tempfile()?;
    /// assert!(Snapshot::from_fd(file.into()).is_err()); // not sealed, so its bytes could change
    /// # Ok(())
    /// # }
    /// ```
    fn from_fd(fd: OwnedFd) -> io::Result<Self>;
}

impl SnapshotExt for Snapshot {
    fn to_fd(&self) -> io::Result<OwnedFd> {
        let image = self.image()?;
        Flat::share(&image)
            .map_err(error::context("making a file of a snapshot for other processes", image.pages))
    }

    fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        let len = file.metadata().map_or(0, |metadata| metadata.len());
        let (file, len) =
            sys::received(file.into()).map_err(error::on("making a snapshot of a received file", len))?;
        Ok(Self::of_file(file, len, Label::default()))
    }
}

#[cfg(test)]
mod fault_tests;
