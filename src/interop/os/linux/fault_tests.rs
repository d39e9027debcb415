//! Tests that make each single system call fail while a snapshot is passed on as a descriptor.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::OFlags;
use rustix::io::FdFlags;

use super::SnapshotExt as _;
use crate::fault_tests::{
    assert_shows, edit, make, open, pattern, show, survive, take, with_every_single_failure,
    with_failures_that_last,
};
use crate::sys::{self, fault};
use crate::{Snapshot, View, page_size};

/// Passes `snapshot`, which contains `bytes`, on through a descriptor, and uses the received snapshot.
fn pass_on(snapshot: &Snapshot, bytes: &[u8]) {
    let fd = survive(|| snapshot.to_fd(), |_| assert_shows(snapshot, bytes));
    assert_gives(&fd, bytes);
    let received = make(|| Snapshot::from_fd(fault::suspend(|| fd.try_clone())?), bytes);
    let mut view = open(&received, bytes);
    edit(&mut view, 30);
    let taken = take(&view);
    let taken_bytes = view.to_vec();
    show(&mut view, bytes, View::restore);
    for _ in 0..2 {
        let fd = survive(|| taken.to_fd(), |_| assert_shows(&taken, &taken_bytes));
        assert_gives(&fd, &taken_bytes);
    }
    open(&taken, &taken_bytes);
}

fn assert_gives(fd: &OwnedFd, bytes: &[u8]) {
    let file = File::from(fault::suspend(|| fd.try_clone().unwrap()));
    assert_eq!(file.metadata().unwrap().len(), bytes.len() as u64);
    let mut read = vec![0xA5; bytes.len()];
    file.read_exact_at(&mut read, 0).unwrap();
    assert!(read == bytes, "a file for other processes does not hold its bytes");
}

/// Passes on snapshots of bytes and of zeroes, and snapshots of views of these, before and after they have a flat
/// file.
fn passing_on() {
    let (bytes, zeroes) = (pattern(1), vec![0; pattern(1).len()]);
    let of_bytes = make(|| Snapshot::from_slice(&bytes), &bytes);
    let of_zeroes = make(|| Snapshot::zeroed(zeroes.len()), &zeroes);
    for (root, bytes) in [(&of_bytes, &bytes), (&of_zeroes, &zeroes)] {
        pass_on(root, bytes);
        let mut view = open(root, bytes);
        edit(&mut view, 7);
        let first = take(&view);
        let first_bytes = view.to_vec();
        edit(&mut view[page_size()..], 8);
        let second = take(&view);
        fault::suspend(|| (0..54).for_each(|_| drop(first.view().unwrap())));
        pass_on(&first, &first_bytes);
        pass_on(&second, &view);
    }
}

#[test]
fn every_single_failure_leaves_what_was_passed_on() {
    with_every_single_failure(passing_on);
}

#[test]
fn failures_that_last_leave_what_was_passed_on() {
    with_failures_that_last(passing_on);
}

/// Without `/proc`, the memory cannot be opened again.
#[test]
fn without_a_file_of_its_own_the_same_open_file_will_do() {
    let bytes = pattern(1);
    let snapshot = Snapshot::from_slice(&bytes).unwrap();
    let mode = |fd: &OwnedFd| rustix::fs::fcntl_getfl(fd).unwrap() & OFlags::RWMODE;
    assert_eq!(mode(&snapshot.to_fd().unwrap()), OFlags::RDONLY);
    let (sent, _) = fault::inject(2, 1, || snapshot.to_fd().unwrap());
    assert_eq!(mode(&sent), OFlags::RDWR, "a different call failed");
    rustix::io::pwrite(&sent, b"x", 0).unwrap_err();
    assert_gives(&sent, &bytes);
    rustix::io::fcntl_setfd(&sent, FdFlags::empty()).unwrap();
    let again = sent.try_clone().unwrap();
    let ((kept, _), _) = fault::inject(1, 1, || sys::received(sent).unwrap());
    assert_eq!(rustix::io::fcntl_getfd(kept.fd().unwrap()), Ok(FdFlags::CLOEXEC));
    let (received, _) = fault::inject(1, 1, || Snapshot::from_fd(again).unwrap());
    let zeroed = Snapshot::zeroed(bytes.len()).unwrap();
    for snapshot in [&snapshot, &received] {
        assert_eq!(snapshot.diff(&zeroed).unwrap().ranges(), [0..bytes.len()]);
        assert_shows(snapshot, &bytes);
        assert_gives(&snapshot.to_fd().unwrap(), &bytes);
    }
}
