//! Bytes that the kernel writes into a view on behalf of a system call are captured, listed and undone
//! like any others.

mod common;

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut, Read, Seek, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::thread;

use common::script::{differing, read};
use common::{assert_same, pattern, skip};
use memsnap::{Snapshot, View, page_size};

const PAGES: usize = 120;

/// Has the kernel write all of `bytes` to `destination`, which is as long.
type KernelWrite<'a> = &'a dyn Fn(&mut [u8], &[u8]) -> io::Result<()>;

/// Has the kernel write to `ranges` of views of every kind, untouched and touched before.
fn each_kind_of_view(ranges: &[Range<usize>], kernel_write: KernelWrite<'_>) -> io::Result<()> {
    let root = pattern(PAGES, 1);
    let zeroes = vec![0; root.len()];
    for touched in [false, true] {
        let of_bytes = Snapshot::from_slice(&root)?;
        captured_and_undone(&mut of_bytes.view()?, &root, touched, ranges, kernel_write)?;
        let of_zeroes = Snapshot::zeroed(root.len())?;
        captured_and_undone(&mut of_zeroes.view()?, &zeroes, touched, ranges, kernel_write)?;

        // Some pages of it are copied into a view, and some mapped.
        let mut changed = root.clone();
        let mut view = of_bytes.view()?;
        changed[3 * page_size()..4 * page_size()].fill(2);
        changed[10 * page_size()..90 * page_size()].fill(3);
        view.copy_from_slice(&changed);
        let taken = view.take_snapshot()?;
        captured_and_undone(&mut taken.view()?, &changed, touched, ranges, kernel_write)?;
        view.restore()?;
        captured_and_undone(&mut view, &root, touched, ranges, kernel_write)?;

        let mut mutable = of_bytes.clone();
        captured_and_undone(&mut mutable.view_mut()?, &root, touched, ranges, kernel_write)?;
        let mut in_place = Snapshot::zeroed(root.len())?;
        captured_and_undone(&mut in_place.view_mut()?, &zeroes, touched, ranges, kernel_write)?;
    }
    Ok(())
}

fn captured_and_undone<S>(
    view: &mut View<S>,
    root: &[u8],
    touched: bool,
    ranges: &[Range<usize>],
    kernel_write: KernelWrite<'_>,
) -> io::Result<()> {
    if touched {
        assert_same("before", view, root);
    }
    let mut bytes = root.to_vec();
    for range in ranges {
        bytes[range.clone()].iter_mut().for_each(|byte| *byte = byte.wrapping_add(100));
        kernel_write(&mut view[range.clone()], &bytes[range.clone()])?;
    }
    assert_eq!(view.changes()?.ranges(), differing(&bytes, root));
    let taken = view.take_snapshot()?;
    assert_same("taken", &read(&taken), &bytes);
    assert_eq!(view.changes()?.ranges(), []);

    let range = ranges[0].clone();
    let mut again = bytes.clone();
    again[range.clone()].iter_mut().for_each(|byte| *byte ^= 0xFF);
    kernel_write(&mut view[range.clone()], &again[range.clone()])?;
    assert_eq!(taken.diff(&view.take_snapshot()?)?.ranges(), differing(&bytes, &again));
    view.restore_to(&taken)?;
    assert_same("restored to", view, &bytes);
    // Over what the image has captured, and over what it has not.
    kernel_write(&mut view[range.clone()], &again[range.clone()])?;
    view.restore_to(&taken)?;
    assert_same("restored to again", view, &bytes);
    view.restore()?;
    assert_same("restored", view, root);
    kernel_write(&mut view[range.clone()], &again[range])?;
    view.restore()?;
    assert_same("restored again", view, root);
    assert_eq!(view.changes()?.ranges(), []);
    assert_same("taken", &read(&taken), &bytes);
    Ok(())
}

/// Within a page, across pages, and at the end.
fn ranges() -> [Range<usize>; 4] {
    let page = page_size();
    [
        5 * page + 100..9 * page + 1,
        2 * page + 7..2 * page + 8,
        12 * page..13 * page,
        (PAGES - 3) * page - 1..PAGES * page,
    ]
}

fn file_with(bytes: &[u8]) -> io::Result<File> {
    let mut file = tempfile::tempfile()?;
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

#[test]
fn bytes_read_from_a_file_are_captured_and_undone() {
    each_kind_of_view(&ranges(), &|destination, bytes| file_with(bytes)?.read_exact(destination)).unwrap();
}

#[test]
fn bytes_scattered_by_readv_are_captured_and_undone() {
    each_kind_of_view(&ranges(), &|destination, bytes| {
        let (first, rest) = destination.split_at_mut(bytes.len() / 3);
        let (second, third) = rest.split_at_mut(rest.len() / 2);
        let mut buffers = [first, second, third].map(IoSliceMut::new);
        let read = file_with(bytes)?.read_vectored(&mut buffers)?;
        assert_eq!(read, bytes.len());
        Ok(())
    })
    .unwrap();
}

#[test]
fn bytes_read_from_a_pipe_are_captured_and_undone() {
    each_kind_of_view(&ranges(), &|destination, bytes| {
        let (mut reader, mut writer) = io::pipe()?;
        thread::scope(|scope| {
            let write = scope.spawn(move || writer.write_all(bytes));
            reader.read_exact(destination)?;
            write.join().unwrap()
        })
    })
    .unwrap();
}

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
    if let Err(error) = probed {
        return skip(
            "bytes_read_around_the_page_cache_are_captured_and_undone",
            format!("no O_DIRECT for temporary files: {error}"),
        );
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
    use std::os::fd::AsRawFd;

    use io_uring::{IoUring, opcode, types};
    use memsnap::Tracking;

    let test = "writes_into_memory_pinned_before_are_captured_and_undone";
    let mut ring = match IoUring::new(4) {
        Ok(ring) => ring,
        Err(error) => return skip(test, format!("io_uring: {error}")),
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
