//! Descriptors: what happens to their offsets and leases, how many are open, and which are inherited.

use std::env;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use memsnap::os::linux::SnapshotExt as _;
use memsnap::{Snapshot, page_size};
use rustix::fs::OFlags;
use rustix::io::FdFlags;

use super::common::alone::{command, passed};
use super::common::linux::closed_on_exec;
use super::common::unix::Limit;
use super::common::{alone, assert_same, message, noise, skip};
use super::memory_file::{memfd, read, reopen};
use super::peer::ROLE;
use super::{FIXED, PAGES, assert_holds, captured, edit};

#[test]
fn offsets_are_left_alone() {
    let bytes = noise(PAGES * page_size(), 9);
    let mut sender = File::from(memfd(bytes.len() as u64, &bytes, FIXED));
    sender.seek(SeekFrom::Start(5)).unwrap();
    let received = Snapshot::from_fd(sender.try_clone().unwrap().into()).unwrap();
    assert!(!received.diff(&captured(1).0).unwrap().is_empty());
    drop(received.to_fd().unwrap());
    assert_eq!(sender.stream_position().unwrap(), 5);

    let snapshot = Snapshot::from_slice(&bytes).unwrap();
    for _ in 0..2 {
        let mut read = Vec::new();
        File::from(snapshot.to_fd().unwrap()).read_to_end(&mut read).unwrap();
        assert_same("read from its start", &read, &bytes);
    }
}

/// A process that opens a file with a lease waits until the holder gives it up, for up to 45 seconds.
#[test]
fn a_lease_of_the_sender_holds_nobody_up() {
    let bytes = noise(page_size(), 9);
    // A write lease needs a file that was opened by its path, and that is open only once.
    let sender = reopen(memfd(bytes.len() as u64, &bytes, FIXED), OFlags::RDWR).unwrap();
    // SAFETY: the call takes no pointer.
    if unsafe { libc::fcntl(sender.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) } != 0 {
        let error = io::Error::last_os_error();
        // A kernel that has no leases, or none on memory files, returns one of these errors.
        assert!(matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported), "a lease: {error}");
        return skip("a_lease_of_the_sender_holds_nobody_up", format!("no lease: {error}"));
    }
    // If another process opens the file, the kernel sends the holder this signal, which would end this
    // process.
    // SAFETY: ignoring a signal runs no code.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    let begun = Instant::now();
    let received = Snapshot::from_fd(sender.try_clone().unwrap()).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_holds("leased", &received, &bytes);
    let mut sender = File::from(sender);
    sender.seek(SeekFrom::Start(5)).unwrap();
    assert_eq!(received.diff(&Snapshot::zeroed(page_size()).unwrap()).unwrap().ranges(), [0..page_size()]);
    assert_eq!(sender.stream_position().unwrap(), 5);
    assert_same("handed on", &read(&received.to_fd().unwrap()), &bytes);
}

#[test]
fn what_was_received_is_closed_on_exec() {
    alone("what_was_received_is_closed_on_exec", || {
        let fd = Snapshot::from_slice(b"bytes").unwrap().to_fd().unwrap();
        rustix::io::fcntl_setfd(&fd, FdFlags::empty()).unwrap();
        assert_eq!(closed_on_exec(), [false]);
        let _received = Snapshot::from_fd(fd).unwrap();
        assert_eq!(closed_on_exec(), [true]);
    });
}

#[test]
fn files_that_are_kept_leave_most_descriptors_free() {
    alone("files_that_are_kept_leave_most_descriptors_free", || {
        let _limit = Limit::descriptors_to(400);
        let snapshots: Vec<_> = (0..100).map(sparse).collect();
        let held = || fs::read_dir("/proc/self/fd").unwrap().count();
        let before = held();
        for (snapshot, bytes) in &snapshots {
            assert_same("handed out", &read(&snapshot.to_fd().unwrap()), bytes);
        }
        assert_eq!(held() - before, 50, "memsnap does not keep an eighth of the descriptors");
        let kept = |(snapshot, _): &&(Snapshot, Vec<u8>)| snapshot.stats().flat > 0;
        assert_eq!(snapshots.iter().filter(kept).count(), 50);
        for (snapshot, bytes) in &snapshots {
            assert_same("handed out again", &read(&snapshot.to_fd().unwrap()), bytes);
        }
        drop(snapshots);
        assert!(held() <= before);
    });
}

/// Returns a snapshot that has no descriptor, and its bytes.
fn sparse(seed: u8) -> (Snapshot, Vec<u8>) {
    let root = Snapshot::zeroed(PAGES * page_size()).unwrap();
    let mut view = root.view().unwrap();
    edit(&mut view, seed + 1);
    (view.take_snapshot().unwrap(), view.to_vec())
}

#[test]
fn without_descriptors_there_is_an_error_and_later_a_file() {
    alone("without_descriptors_there_is_an_error_and_later_a_file", || {
        let root = Snapshot::from_slice(&noise(PAGES * page_size(), 1)).unwrap();
        let (changed, bytes) = sparse(1);
        let limit = Limit::descriptors();
        for snapshot in [&root, &changed] {
            let error = snapshot.to_fd().unwrap_err();
            assert!(message(&error).contains("for other processes"), "{error}");
            assert!(message(&error).contains("ulimit -n"), "{error}");
        }
        drop(limit);
        assert_same("with descriptors", &read(&changed.to_fd().unwrap()), &bytes);
        let fd = root.to_fd().unwrap();

        // A received file needs no other descriptor.
        let limit = Limit::descriptors();
        let received = Snapshot::from_fd(fd).unwrap();
        assert_holds("received", &received, &noise(PAGES * page_size(), 1));
        drop(limit);
    });
}

#[test]
fn a_descriptor_can_be_inherited() {
    const TEST: &str = "a_descriptor_can_be_inherited";
    let (snapshot, bytes) = captured(6);
    if env::var_os(ROLE).is_some_and(|role| role == TEST) {
        let fd = BorrowedFd::try_clone_to_owned(&io::stdin().as_fd()).unwrap();
        assert_holds("inherited", &Snapshot::from_fd(fd).unwrap(), &bytes);
        return;
    }
    let output = command(TEST).env(ROLE, TEST).stdin(snapshot.to_fd().unwrap()).output().unwrap();
    assert!(passed(&output), "{}", String::from_utf8_lossy(&output.stderr));
}
