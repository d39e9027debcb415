//! Bytes that the kernel writes to a view for a system call are captured, listed and undone like any others.

#[path = "../common/mod.rs"]
mod common;
#[cfg(all(target_os = "linux", not(memsnap_unix)))]
mod linux;

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::ops::Range;
use std::thread;

use common::script::{differing, read};
use common::{assert_same, pattern, serial};
use memsnap::{Snapshot, View, page_size};

const PAGES: usize = 120;

/// Makes the kernel write all of `bytes` to `destination`, which has the same length.
type KernelWrite<'a> = &'a dyn Fn(&mut [u8], &[u8]) -> io::Result<()>;

/// Makes the kernel write to `ranges` of views of every kind, touched before or not.
fn each_kind_of_view(ranges: &[Range<usize>], kernel_write: KernelWrite<'_>) -> io::Result<()> {
    let root = pattern(PAGES, 1);
    let zeroes = vec![0; root.len()];
    for touched in [false, true] {
        let of_bytes = Snapshot::from_slice(&root)?;
        captured_and_undone(&mut of_bytes.view()?, &root, touched, ranges, kernel_write)?;
        let of_zeroes = Snapshot::zeroed(root.len())?;
        captured_and_undone(&mut of_zeroes.view()?, &zeroes, touched, ranges, kernel_write)?;

        // Some pages of this snapshot are copied into a view, and some are mapped.
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
    // The range has pages that the image captured and pages that it did not.
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

/// Returns ranges within a page, across pages, and at the end.
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
    let _serial = serial();
    each_kind_of_view(&ranges(), &|destination, bytes| file_with(bytes)?.read_exact(destination)).unwrap();
}

#[test]
#[cfg(unix)]
fn bytes_scattered_by_readv_are_captured_and_undone() {
    let _serial = serial();
    each_kind_of_view(&ranges(), &|destination, bytes| {
        let (first, rest) = destination.split_at_mut(bytes.len() / 3);
        let (second, third) = rest.split_at_mut(rest.len() / 2);
        let mut buffers = [first, second, third].map(io::IoSliceMut::new);
        let read = file_with(bytes)?.read_vectored(&mut buffers)?;
        assert_eq!(read, bytes.len());
        Ok(())
    })
    .unwrap();
}

#[test]
fn bytes_read_from_a_pipe_are_captured_and_undone() {
    let _serial = serial();
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
