//! `io_uring`: reads into views, and reads into pages of a view that the kernel has pinned.

#[cfg(target_pointer_width = "64")]
pub(crate) use available::{Pins, Ring};
#[cfg(not(target_pointer_width = "64"))]
pub(crate) use lacking::{Pins, Ring};

#[cfg(target_pointer_width = "64")]
mod available {
    use std::fs::File;
    use std::io;
    use std::ops::Range;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;
    use std::ptr;

    use io_uring::{IoUring, opcode, squeue, types};
    use memsnap::page_size;

    /// A ring for ordinary reads.
    pub(crate) struct Ring(IoUring);

    impl Ring {
        pub(crate) fn new() -> io::Result<Self> {
            IoUring::new(4).map(Self)
        }

        /// Reads from the start of `file` to `address`. Nobody else may use the bytes there meanwhile.
        pub(crate) fn read(&mut self, file: &File, address: usize, len: usize) -> io::Result<()> {
            let length = u32::try_from(len).map_err(io::Error::other)?;
            let target = ptr::with_exposed_provenance_mut(address);
            self.submit(&opcode::Read::new(types::Fd(file.as_raw_fd()), target, length).build(), len)
        }

        fn submit(&mut self, entry: &squeue::Entry, len: usize) -> io::Result<()> {
            // SAFETY: this function waits until the read is complete. The file and the target live until
            // then.
            unsafe { self.0.submission().push(entry) }.map_err(io::Error::other)?;
            self.0.submit_and_wait(1)?;
            match self.0.completion().next().map(|entry| entry.result()) {
                Some(read) if usize::try_from(read) == Ok(len) => Ok(()),
                Some(error @ ..0) => Err(io::Error::from_raw_os_error(-error)),
                read => Err(io::Error::other(format!("{read:?} of {len} bytes"))),
            }
        }
    }

    /// A ring with a fixed buffer in a view.
    pub(crate) struct Pins {
        ring: Ring,
        file: File,
        pinned: Option<Range<usize>>,
    }

    impl Pins {
        pub(crate) fn new() -> io::Result<Self> {
            let mut pins = Self { ring: Ring::new()?, file: tempfile::tempfile()?, pinned: None };
            let probe = vec![0_u8; 2 * page_size()];
            let start = probe.as_ptr().expose_provenance().next_multiple_of(page_size());
            pins.pin(start..start + page_size())?;
            pins.unpin()?;
            Ok(pins)
        }

        /// Pins these pages.
        pub(crate) fn pin(&mut self, range: Range<usize>) -> io::Result<()> {
            let iov_base = ptr::with_exposed_provenance_mut(range.start);
            let buffer = libc::iovec { iov_base, iov_len: range.len() };
            // SAFETY: the kernel keeps the pages, even if the addresses are unmapped. It writes to them only
            // when `write` makes it.
            unsafe { self.ring.0.submitter().register_buffers(&[buffer]) }?;
            self.pinned = Some(range);
            Ok(())
        }

        pub(crate) fn unpin(&mut self) -> io::Result<()> {
            match self.pinned.take() {
                Some(_) => self.ring.0.submitter().unregister_buffers(),
                None => Ok(()),
            }
        }

        /// Makes the kernel write to the pinned pages. Nobody else may use them meanwhile.
        pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
            let Some(pinned) = self.pinned.clone() else { return Ok(()) };
            assert_eq!(bytes.len(), pinned.len());
            self.file.write_all_at(bytes, 0)?;
            let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
            let target = ptr::with_exposed_provenance_mut(pinned.start);
            let file = types::Fd(self.file.as_raw_fd());
            self.ring.submit(&opcode::ReadFixed::new(file, target, length, 0).build(), bytes.len())
        }
    }
}

/// The bindings for `io_uring` are for 64-bit systems only.
#[cfg(not(target_pointer_width = "64"))]
mod lacking {
    use std::fs::File;
    use std::io;
    use std::ops::Range;

    pub(crate) enum Ring {}

    pub(crate) enum Pins {}

    impl Ring {
        pub(crate) fn new() -> io::Result<Self> {
            Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the bindings for io_uring are for 64-bit systems only",
            ))
        }

        pub(crate) fn read(&mut self, _: &File, _: usize, _: usize) -> io::Result<()> {
            match *self {}
        }
    }

    impl Pins {
        pub(crate) fn new() -> io::Result<Self> {
            Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the bindings for io_uring are for 64-bit systems only",
            ))
        }

        pub(crate) fn pin(&mut self, _: Range<usize>) -> io::Result<()> {
            match *self {}
        }

        pub(crate) fn unpin(&mut self) -> io::Result<()> {
            match *self {}
        }

        pub(crate) fn write(&mut self, _: &[u8]) -> io::Result<()> {
            match *self {}
        }
    }
}
