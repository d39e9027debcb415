//! Reads that bypass the page cache, and writes to pages that were pinned before.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;

use memsnap::page_size;

use super::common::{pattern, serial, skip};
use super::each_kind_of_view;

/// Makes a file with these bytes. Reads of it go directly to the target, past the page cache.
fn direct_file_with(bytes: &[u8]) -> io::Result<File> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(file.path())
}

#[test]
fn bytes_read_around_the_page_cache_are_captured_and_undone() {
    let _serial = serial();
    let page = page_size();
    let mut probe = vec![0; 2 * page];
    let aligned = probe.as_ptr().align_offset(page);
    let probed =
        direct_file_with(&pattern(1, 1)).and_then(|mut file| file.read_exact(&mut probe[aligned..][..page]));
    match probed {
        // A file system that does not support O_DIRECT returns one of these errors.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
            return skip(
                "bytes_read_around_the_page_cache_are_captured_and_undone",
                format!("temporary files do not support O_DIRECT: {error}"),
            );
        }
        probed => probed.unwrap(),
    }
    let ranges = [5 * page..9 * page, 2 * page..3 * page, 20 * page..60 * page];
    each_kind_of_view(&ranges, &|destination, bytes| direct_file_with(bytes)?.read_exact(destination))
        .unwrap();
}

/// Writes of the kernel to pinned pages. They use no page-table entries, so write-protection does not notice
/// them.
#[cfg(target_pointer_width = "64")]
mod pinned {
    use std::fs::File;
    use std::io::{self, Seek, Write};
    use std::ops::Range;
    use std::os::fd::AsRawFd;

    use io_uring::{IoUring, opcode, types};
    use memsnap::{Snapshot, Tracking, View, ViewOptions, page_size};

    use super::super::PAGES;
    use super::super::common::script::read;
    use super::super::common::unix::{of_ring, run_in_child};
    use super::super::common::{assert_same, pattern, serial, supported};

    /// Makes the kernel pin these bytes of the view.
    fn register<S>(ring: &IoUring, view: &mut View<S>, range: &Range<usize>) -> io::Result<()> {
        let bytes = &mut view[range.clone()];
        let buffer = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: the view outlives the use of the buffer, which is unregistered or used only by `write`.
        unsafe { ring.submitter().register_buffers(&[buffer]) }
    }

    /// Makes the kernel write `value` to the pinned bytes `range`.
    fn write<S>(ring: &mut IoUring, view: &mut View<S>, range: &Range<usize>, value: u8) {
        let mut file: File = tempfile::tempfile().unwrap();
        file.write_all(&vec![value; range.len()]).unwrap();
        file.rewind().unwrap();
        let length = u32::try_from(range.len()).unwrap();
        let start = view[range.clone()].as_mut_ptr();
        let read_fixed = opcode::ReadFixed::new(types::Fd(file.as_raw_fd()), start, length, 0).build();
        // SAFETY: the file and the buffer live until the read is complete.
        unsafe { ring.submission().push(&read_fixed) }.unwrap();
        ring.submit_and_wait(1).unwrap();
        let done: Vec<_> = ring.completion().map(|entry| entry.result()).collect();
        assert_eq!(done, [i32::try_from(range.len()).unwrap()]);
    }

    /// The kernel uses no page-table entries when it writes to pages that are registered with an io_uring. If
    /// a view write-protected these pages, it would never find the writes.
    #[test]
    fn writes_into_memory_pinned_before_are_captured_and_undone() {
        let test = "writes_into_memory_pinned_before_are_captured_and_undone";
        let _serial = serial();
        let Some(mut ring) = of_ring(test, IoUring::new(4)) else { return };
        let root = pattern(PAGES, 1);
        let snapshot = Snapshot::from_slice(&root).unwrap();
        let mut view = snapshot.view().unwrap();
        drop(view.set_tracking(Tracking::Armed));
        let mut bytes = root.clone();
        let pinned = 5 * page_size()..7 * page_size();
        view[pinned.clone()].fill(1);
        bytes[pinned.clone()].fill(1);
        // If this view write-protects pages, this call does it.
        view.take_snapshot().unwrap();
        if of_ring(test, register(&ring, &mut view, &pinned)).is_none() {
            return;
        }
        for round in 2..8 {
            let before = view.take_snapshot().unwrap();
            write(&mut ring, &mut view, &pinned, round);
            bytes[pinned.clone()].fill(round);
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

    /// Captures and undoes what the kernel writes to pinned pages.
    ///
    /// The view was used before, and is used between the writes.
    fn is_exact<S>(what: &str, ring: &mut IoUring, view: &mut View<S>, root: &[u8]) {
        let mut bytes = root.to_vec();
        let pinned = 5 * page_size()..7 * page_size();
        view[pinned.clone()].fill(1);
        bytes[pinned.clone()].fill(1);
        // A view that may write-protect its pages does so within these rounds.
        for _ in 0..8 {
            assert_same(what, view, &bytes);
            view.take_snapshot().unwrap();
        }
        for round in 2..6 {
            register(ring, view, &pinned).unwrap();
            let mut before = view.take_snapshot().unwrap();
            for value in [round, round + 10, round + 20] {
                write(ring, view, &pinned, value);
                bytes[pinned.clone()].fill(value);
                assert_same(what, view, &bytes);
                assert_eq!(view.changes().unwrap().ranges(), std::slice::from_ref(&pinned), "{what}");
                let taken = view.take_snapshot().unwrap();
                assert_same(what, &read(&taken), &bytes);
                assert_eq!(taken.diff(&before).unwrap().ranges(), std::slice::from_ref(&pinned), "{what}");
                before = taken;
            }
            write(ring, view, &pinned, 99);
            view.restore_to(&before).unwrap();
            assert_same(what, view, &bytes);
            // The restore may have replaced the pages.
            ring.submitter().unregister_buffers().unwrap();
            register(ring, view, &pinned).unwrap();
            write(ring, view, &pinned, 100);
            view.restore().unwrap();
            assert_same(what, view, root);
            ring.submitter().unregister_buffers().unwrap();
            view.restore_to(&before).unwrap();
            assert_same(what, view, &bytes);
        }
        view.restore().unwrap();
    }

    /// The kernel charges pins to the process that made the ring. So `VmPin` of a forked child that uses its
    /// parent's ring stays 0. The views of the child were write-protected, and writes to pinned pages were
    /// missed.
    #[test]
    fn views_that_are_said_to_be_pinned_are_exact_whatever_the_kernel_counts() {
        const PAGES: usize = 2048;
        let test = "views_that_are_said_to_be_pinned_are_exact_whatever_the_kernel_counts";
        let _serial = serial();
        let Some(mut ring) = of_ring(test, IoUring::new(4)) else { return };
        let mut probed = Snapshot::zeroed(1).unwrap().into_view().unwrap();
        if of_ring(test, register(&ring, &mut probed, &(0..page_size()))).is_none() {
            return;
        }
        ring.submitter().unregister_buffers().unwrap();
        run_in_child(|| {
            let root = pattern(PAGES, 1);
            for tracking in [Tracking::Auto, Tracking::Scan, Tracking::Pagemap, Tracking::Compare] {
                let mut options = ViewOptions::new();
                options.pinned(true).tracking(tracking);
                let zeroes = (Snapshot::zeroed(root.len()).unwrap(), vec![0; root.len()]);
                for (mut snapshot, bytes) in [(Snapshot::from_slice(&root).unwrap(), root.clone()), zeroes] {
                    let what = format!("{tracking}, {}", bytes[8]);
                    let Some(mut view) = supported(test, snapshot.view_with(&options)) else { break };
                    is_exact(&what, &mut ring, &mut view, &bytes);
                    drop(view);
                    let mut view = snapshot.view_mut_with(&options).unwrap();
                    is_exact(&what, &mut ring, &mut view, &bytes);
                    let pinned = 9 * page_size()..10 * page_size();
                    register(&ring, &mut view, &pinned).unwrap();
                    let taken = view.take_snapshot().unwrap();
                    write(&mut ring, &mut view, &pinned, 77);
                    view.commit().unwrap();
                    ring.submitter().unregister_buffers().unwrap();
                    assert_same(&what, &read(&taken), &bytes);
                    let mut expected = bytes;
                    expected[pinned].fill(77);
                    assert_same(&what, &read(&snapshot), &expected);
                }
            }
        });
    }
}
