//! The kernel writes to pinned memory without using page-table entries. Such writes must not change a
//! snapshot.
#![cfg(all(target_os = "linux", target_pointer_width = "64"))]

mod common;

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;

use common::script::read;
use common::unix::{of_ring, run_in_child};
use common::{assert_same, serial};
use io_uring::{IoUring, opcode, types};
use memsnap::{Access, MutView, Snapshot, page_size};

const PAGES: usize = 20;

/// A ring that writes to one buffer. The buffer is pinned as long as the ring lives.
struct Writer {
    ring: IoUring,
    file: File,
    buffer: *mut u8,
    len: usize,
}

impl Writer {
    /// Pins the `len` bytes at `buffer`, which must stay mapped while `write` is used.
    fn new(ring: IoUring, buffer: *mut u8, len: usize) -> io::Result<Self> {
        let vector = libc::iovec { iov_base: buffer.cast(), iov_len: len };
        // SAFETY: the caller keeps the memory mapped, and only `write` uses the ring.
        unsafe { ring.submitter().register_buffers(&[vector]) }?;
        Ok(Self { ring, file: tempfile::tempfile()?, buffer, len })
    }

    /// Makes the kernel fill the buffer through the pinned pages.
    fn write(&mut self, byte: u8) {
        self.file.set_len(0).unwrap();
        let bytes = vec![byte; self.len];
        std::os::unix::fs::FileExt::write_all_at(&self.file, &bytes, 0).unwrap();
        self.file.flush().unwrap();
        let len = u32::try_from(self.len).unwrap();
        let entry = opcode::ReadFixed::new(types::Fd(self.file.as_raw_fd()), self.buffer, len, 0).build();
        // SAFETY: the file lives until the read is complete, and the pages of the buffer are pinned.
        unsafe { self.ring.submission().push(&entry) }.unwrap();
        self.ring.submit_and_wait(1).unwrap();
        let done: Vec<_> = self.ring.completion().map(|entry| entry.result()).collect();
        assert_eq!(done, [i32::try_from(self.len).unwrap()]);
    }
}

fn pinned_bytes() -> Range<usize> {
    5 * page_size()..8 * page_size()
}

/// Returns a writer to some pages of `view`.
fn writer_to(ring: IoUring, view: &mut MutView<'_>) -> io::Result<Writer> {
    let range = pinned_bytes();
    let start = view.as_mut_ptr().wrapping_add(range.start);
    Writer::new(ring, start, range.len())
}

/// Takes snapshots of a view written in place, and ends the view, while the kernel writes to its pages.
fn snapshots_stay(ring: IoUring, commit: bool) -> io::Result<()> {
    let mut snapshot = Snapshot::zeroed(PAGES * page_size())?;
    let before = snapshot.clone();
    let mut view = snapshot.view_mut()?;
    view.fill(1);
    let mut writer = writer_to(ring, &mut view)?;
    let mut expected = vec![1; PAGES * page_size()];
    let mut taken = Vec::new();
    for round in 2..6 {
        taken.push((view.take_snapshot()?, expected.clone()));
        writer.write(round);
        expected[pinned_bytes()].fill(round);
        assert_same("the view, written by the kernel", &view, &expected);
        view[round as usize * page_size()] = 99;
        expected[round as usize * page_size()] = 99;
        assert_eq!(view.changes()?.len(), if round < 4 { 2 } else { 1 });
        for (snapshot, expected) in &taken {
            assert_same("a snapshot, read", &read(snapshot), expected);
            assert_same("a snapshot, viewed", &snapshot.view()?, expected);
        }
    }
    if commit {
        view.commit()?
    } else {
        drop(view)
    }
    assert_same("what was committed", &read(&snapshot), &expected);
    // The pages are still pinned although the view has ended.
    writer.write(77);
    assert_same("what was committed, viewed", &snapshot.view()?, &expected);
    for (snapshot, expected) in &taken {
        assert_same("a snapshot in the end", &read(snapshot), expected);
    }
    assert_same("the snapshot before", &read(&before), &vec![0; PAGES * page_size()]);
    Ok(())
}

/// The file of a view written in place became the base of a snapshot although a page was pinned and the
/// kernel had refused to seal the file. A later write of io_uring to the page changed the snapshot and all
/// its views.
#[test]
fn what_is_written_to_pinned_pages_changes_no_snapshot() {
    let test = "what_is_written_to_pinned_pages_changes_no_snapshot";
    let _serial = serial();
    for commit in [true, false] {
        let Some(ring) = of_ring(test, IoUring::new(4)) else { return };
        snapshots_stay(ring, commit).unwrap();
    }
}

/// The kernel does not charge these pins to this process. It charges the pins of a ring that was made before
/// a fork to the parent.
#[test]
fn nor_does_what_is_written_to_pages_that_nobody_counts() {
    let test = "nor_does_what_is_written_to_pages_that_nobody_counts";
    let _serial = serial();
    for commit in [true, false] {
        let Some(ring) = of_ring(test, IoUring::new(4)) else { return };
        run_in_child(|| {
            snapshots_stay(ring, commit).unwrap();
        });
    }
}

/// Replacing the mapping of a view written in place makes protected pages accessible, so the access had to be
/// taken away again. If that failed, the view had changed to the new snapshot nevertheless.
#[test]
fn a_protected_view_written_in_place_is_captured_by_copying() {
    let mut snapshot = Snapshot::zeroed(PAGES * page_size()).unwrap();
    let mut view = snapshot.view_mut().unwrap();
    view.fill(1);
    let mut view = view.into_protected();
    view.protect(..3 * page_size(), Access::NONE).unwrap();
    let taken = view.take_snapshot().unwrap();
    assert_same("taken", &read(&taken), &vec![1; PAGES * page_size()]);
    assert!(view.get(..page_size()).is_none());
    view.commit().unwrap();
    assert_same("committed", &read(&snapshot), &vec![1; PAGES * page_size()]);
}
