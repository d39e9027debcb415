//! Snapshots shared between processes, as sealed memfds.
//!
//! [`to_fd`](SnapshotExt::to_fd) gives a descriptor of a snapshot's bytes, which goes to another process by
//! whatever carries descriptors: a Unix socket (`SCM_RIGHTS`), `pidfd_getfd`, inheritance. There
//! [`from_fd`](SnapshotExt::from_fd) makes a snapshot of it. The memory is the same in both processes, and
//! neither can change it: views copy the pages that are written, as ever.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use crate::image::flat::Flat;
use crate::image::label::Label;
use crate::snapshot::Snapshot;
use crate::{error, sys};

mod sealed {
    /// Nobody else implements the traits of this module.
    pub trait Sealed {}

    impl Sealed for crate::Snapshot {}
}

/// What a [`Snapshot`] can do besides on Linux.
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
    /// A descriptor of a sealed memfd that holds this snapshot's bytes: whole pages, [`len`](Snapshot::len)
    /// bytes.
    ///
    /// Any process that has it can map or read it, and none can ever write to it, not even this one: it is open
    /// for reading only, and sealed with `F_SEAL_WRITE`, `F_SEAL_SHRINK` and `F_SEAL_GROW`. It is closed on `exec`,
    /// and lasts for as long as somebody has it, whatever becomes of the snapshot.
    ///
    /// [`content_len`](Snapshot::content_len) does not go with it. Where it matters, send the number too.
    ///
    /// Costs a few microseconds where the bytes are in one memfd already: the snapshot was made of bytes, a
    /// stream or a file that was copied, or is viewed so often that it was made flat. Otherwise all pages that are
    /// not zero are copied into a memfd. It is kept with the snapshot and its clones, so that the next
    /// call copies nothing, and views mostly map it. Where such files have taken up their share of the process's
    /// descriptors already, it is not kept.
    ///
    /// # Errors
    ///
    /// Those of the operating system: no memory, no file descriptor (a kept file takes one, besides the
    /// one returned); `ResourceBusy` if the kernel cannot seal the file at this moment.
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

    /// A snapshot of the memfd `fd`, in place: what [`to_fd`](Self::to_fd) gave, or what any other program sealed.
    ///
    /// Copies and reads nothing, and takes a few microseconds. [`content_len`](Snapshot::content_len) is the
    /// length of the file in bytes; if that is not whole pages, the rest of the last page is zero unless the
    /// sender wrote there through a mapping.
    ///
    /// # Trust
    ///
    /// The sender need not be trusted; the kernel is. It grants `F_SEAL_WRITE` only when nobody has the file mapped
    /// for writing or its pages pinned, and takes no seal back. From then on no write, hole punch or mapping
    /// changes a byte; `F_SEAL_SHRINK` and `F_SEAL_GROW` fix the length. So slices of views never change behind
    /// shared references, and no page of them goes away. `F_SEAL_FUTURE_WRITE` alone does not do: it leaves
    /// those who mapped the file before able to write.
    ///
    /// What the sender decides is bytes and length, so a length that makes sense is the caller's to check. The
    /// offset of `fd` stays shared with the sender and is neither used nor moved.
    ///
    /// Pages in memory are the sender's, and stay there until the last process closes and unmaps the file. Holes
    /// that are read become memory on the reader's account: a sparse file can be much longer than the memory
    /// that there is.
    ///
    /// # Errors
    ///
    /// `PermissionDenied` if `fd` is not open for reading; `InvalidInput` if it is not a memfd, lacks one of the three
    /// seals, is in huge pages (`MFD_HUGETLB`), or is longer than a slice can be; those of the operating system: no
    /// descriptor.
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
    /// assert!(Snapshot::from_fd(file.into()).is_err()); // could change
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
