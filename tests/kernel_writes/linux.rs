//! Writes that go around the page cache, or to pages that were pinned before.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;

use memsnap::page_size;

use super::common::{pattern, skip};
use super::each_kind_of_view;

/// A file with these bytes, from which reads go to the memory given, not to the page cache.
fn direct_file_with(bytes: &[u8]) -> io::Result<File> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(file.path())
}

#[test]
fn bytes_read_around_the_page_cache_are_captured_and_undone() {
    let page = page_size();
    let mut probe = vec![0; 2 * page];
    let aligned = probe.as_ptr().align_offset(page);
    let probed =
        direct_file_with(&pattern(1, 1)).and_then(|mut file| file.read_exact(&mut probe[aligned..][..page]));
    match probed {
        // What a file system says that cannot.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
            return skip(
                "bytes_read_around_the_page_cache_are_captured_and_undone",
                format!("no O_DIRECT for temporary files: {error}"),
            );
        }
        probed => probed.unwrap(),
    }
    let ranges = [5 * page..9 * page, 2 * page..3 * page, 20 * page..60 * page];
    each_kind_of_view(&ranges, &|destination, bytes| direct_file_with(bytes)?.read_exact(destination))
        .unwrap();
}

/// Pages that are registered with an io_uring are written by the kernel without a look at the page table, where
/// write-protection would be noticed: a view that closed them once would never learn of it.
#[test]
#[cfg(target_pointer_width = "64")]
fn writes_into_memory_pinned_before_are_captured_and_undone() {
    use std::io::Seek;
    use std::os::fd::AsRawFd;

    use io_uring::{IoUring, opcode, types};
    use memsnap::{Snapshot, Tracking};

    use super::PAGES;
    use super::common::assert_same;
    use super::common::linux::{CAP_IPC_LOCK, is_capable_of};
    use super::common::script::read;

    let test = "writes_into_memory_pinned_before_are_captured_and_undone";
    let mut ring = match IoUring::new(4) {
        // The kernel has none, or lets nobody use it; before Linux 5.12, it counts as locked memory.
        Err(error)
            if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied)
                || !is_capable_of(CAP_IPC_LOCK) =>
        {
            return skip(test, format!("io_uring: {error}"));
        }
        ring => ring.unwrap(),
    };
    let root = pattern(PAGES, 1);
    let snapshot = Snapshot::from_slice(&root).unwrap();
    let mut view = snapshot.view().unwrap();
    drop(view.set_tracking(Tracking::Armed));
    let mut bytes = root.clone();
    let pinned = 5 * page_size()..7 * page_size();
    view[pinned.clone()].fill(1);
    bytes[pinned.clone()].fill(1);
    // Closed by this, if pages are closed here at all.
    view.take_snapshot().unwrap();
    let buffer = libc::iovec { iov_base: view[pinned.clone()].as_mut_ptr().cast(), iov_len: pinned.len() };
    // SAFETY: the view outlives the ring's use of the buffer.
    if let Err(error) = unsafe { ring.submitter().register_buffers(&[buffer]) } {
        // It counts as locked memory.
        assert!(!is_capable_of(CAP_IPC_LOCK), "registering a buffer: {error}");
        return skip(test, format!("registering a buffer: {error}"));
    }
    let file = tempfile::tempfile().unwrap();
    for round in 2..8 {
        bytes[pinned.clone()].fill(round);
        (&file).rewind().unwrap();
        (&file).write_all(&bytes[pinned.clone()]).unwrap();
        let before = view.take_snapshot().unwrap();
        let length = u32::try_from(pinned.len()).unwrap();
        let read_fixed =
            opcode::ReadFixed::new(types::Fd(file.as_raw_fd()), buffer.iov_base.cast(), length, 0).build();
        // SAFETY: file and buffer live until the read is complete.
        unsafe { ring.submission().push(&read_fixed) }.unwrap();
        ring.submit_and_wait(1).unwrap();
        let done: Vec<_> = ring.completion().map(|entry| entry.result()).collect();
        assert_eq!(done, [i32::try_from(pinned.len()).unwrap()]);
        assert_same("read into", &view, &bytes);
        assert_eq!(view.changes().unwrap().ranges(), std::slice::from_ref(&pinned), "round {round}");
        let taken = view.take_snapshot().unwrap();
        assert_same("taken", &read(&taken), &bytes);
        assert_eq!(taken.diff(&before).unwrap().ranges(), std::slice::from_ref(&pinned));
    }
    drop(ring);
    view.restore().unwrap();
    assert_same("restored in the end", &view, &root);
}
