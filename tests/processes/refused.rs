//! Files that could still change, and other files that are refused.

use std::env;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use memsnap::os::linux::SnapshotExt as _;
use memsnap::{Snapshot, page_size};
use rustix::fs::{MemfdFlags, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::ProtFlags;

use super::common::linux::memory_files;
use super::common::{alone, assert_same, message, noise, skip};
use super::memory_file::{inode, map, memfd, read, reopen, seals, unmap};
use super::{FIXED, PAGES, assert_holds, assert_unwritable, edit};

#[track_caller]
fn assert_refused(what: &str, fd: impl Into<OwnedFd>, kind: ErrorKind, reasons: &[&str]) {
    let error = Snapshot::from_fd(fd.into()).expect_err(what);
    let message = message(&error);
    assert_eq!(error.kind(), kind, "{what}: {message}");
    for reason in ["making a snapshot of a received file"].iter().chain(reasons) {
        assert!(message.contains(reason), "{what}: no {reason:?} in {message:?}");
    }
}

#[test]
fn a_memfd_that_lacks_a_seal_is_refused_and_the_error_names_it() {
    let bytes = noise(3 * page_size(), 2);
    let all = [
        (SealFlags::SHRINK, "F_SEAL_SHRINK"),
        (SealFlags::GROW, "F_SEAL_GROW"),
        (SealFlags::WRITE, "F_SEAL_WRITE"),
    ];
    for chosen in 0..8_u32 {
        let has = |i: usize| chosen & (1 << i) != 0;
        let base = (0..3).filter(|&i| has(i)).map(|i| all[i].0).collect::<SealFlags>();
        for more in [
            SealFlags::empty(),
            SealFlags::SEAL,
            SealFlags::FUTURE_WRITE,
            SealFlags::FUTURE_WRITE | SealFlags::SEAL,
        ] {
            let what = format!("{:?}", base | more);
            let fd = memfd(bytes.len() as u64, &bytes, base | more);
            if base == FIXED {
                assert_holds(&what, &Snapshot::from_fd(fd).unwrap(), &bytes);
                continue;
            }
            let missing: Vec<_> = (0..3).filter(|&i| !has(i)).map(|i| all[i].1).collect();
            let lacks = format!("the memfd lacks {}: ", missing.join(" and "));
            let future = more.contains(SealFlags::FUTURE_WRITE);
            let enough = if future { "F_SEAL_FUTURE_WRITE is not enough" } else { "the sender has to" };
            assert_refused(&what, fd, ErrorKind::InvalidInput, &[&lacks, enough]);
        }
    }
}

#[test]
fn what_is_no_memory_file_for_reading_is_refused() {
    let bytes = noise(3 * page_size(), 2);
    let invalid = ErrorKind::InvalidInput;
    let denied = ErrorKind::PermissionDenied;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    assert_refused("disk file", file, invalid, &[]);
    if let Ok(mut file) = tempfile::tempfile_in("/dev/shm") {
        file.write_all(&bytes).unwrap();
        assert_refused("file on tmpfs", file, invalid, &[]);
    }
    let (reader, writer) = io::pipe().unwrap();
    assert_refused("pipe", reader, invalid, &["not a memfd"]);
    assert_refused("pipe, write end", writer, denied, &["not open for reading"]);
    assert_refused("socket", UnixStream::pair().unwrap().0, invalid, &["not a memfd"]);
    assert_refused("directory", File::open(env::temp_dir()).unwrap(), invalid, &["not a memfd"]);
    assert_refused("device", File::open("/dev/zero").unwrap(), invalid, &["not a memfd"]);

    let sealed = memfd(bytes.len() as u64, &bytes, FIXED);
    let path = reopen(&sealed, OFlags::PATH).unwrap();
    assert_refused("path", path, denied, &["not open for reading"]);
    let write_only = reopen(&sealed, OFlags::WRONLY).unwrap();
    assert_refused("write-only", write_only, denied, &["not open for reading"]);
    let append_only = reopen(&sealed, OFlags::WRONLY | OFlags::APPEND).unwrap();
    assert_refused("append-only", append_only, denied, &["not open for reading"]);
    let read_only = reopen(&sealed, OFlags::RDONLY).unwrap();
    assert_holds("read-only", &Snapshot::from_fd(read_only).unwrap(), &bytes);

    let long = memfd(i64::MAX.unsigned_abs(), b"", FIXED);
    assert_refused("longer than a slice", long, invalid, &["a slice can hold"]);
}

#[test]
fn huge_pages_are_refused() {
    let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
    let huge = match rustix::fs::memfd_create("huge", flags) {
        // A kernel that does not support this returns one of these errors.
        Err(error @ (Errno::INVAL | Errno::NODEV | Errno::NOSYS)) => {
            return skip("huge_pages_are_refused", format!("no memfd in huge pages: {error}"));
        }
        huge => huge.unwrap(),
    };
    let page = u64::try_from(rustix::fs::fstat(&huge).unwrap().st_blksize).unwrap();
    rustix::fs::ftruncate(&huge, page).unwrap();
    rustix::fs::fcntl_add_seals(&huge, FIXED).unwrap();
    assert_refused("huge", huge, ErrorKind::InvalidInput, &["huge pages", "MFD_HUGETLB"]);
}

/// A program can write through a mapping to the rest of the last page, behind the end of the file.
#[test]
fn what_the_sender_left_behind_the_end_is_no_content() {
    let page = page_size();
    let fd = memfd(10, b"0123456789", SealFlags::empty());
    let start = map(&fd, ProtFlags::READ | ProtFlags::WRITE, page).unwrap();
    // SAFETY: the byte is in the mapping, to which no reference exists.
    unsafe { start.wrapping_add(100).write(7) };
    unmap(start, page);
    rustix::fs::fcntl_add_seals(&fd, FIXED).unwrap();
    let snapshot = Snapshot::from_fd(fd).unwrap();
    let view = snapshot.view().unwrap();
    assert_eq!(view.content(), b"0123456789");
    assert_same("handed on", &read(&snapshot.to_fd().unwrap()), &view);
}

#[test]
fn who_can_still_write_cannot_seal_and_is_refused() {
    let page = page_size();
    let fd = memfd(page as u64, &noise(page, 7), SealFlags::SHRINK | SealFlags::GROW);
    let start = map(&fd, ProtFlags::READ | ProtFlags::WRITE, page).unwrap();
    assert_eq!(rustix::fs::fcntl_add_seals(&fd, SealFlags::WRITE), Err(Errno::BUSY));
    let refused = |what| {
        assert_refused(what, fd.try_clone().unwrap(), ErrorKind::InvalidInput, &["F_SEAL_WRITE"]);
    };
    refused("mapped for writing");
    rustix::fs::fcntl_add_seals(&fd, SealFlags::FUTURE_WRITE).unwrap();
    refused("mapped for writing, sealed against future writes");
    unmap(start, page);
    rustix::fs::fcntl_add_seals(&fd, SealFlags::WRITE).unwrap();
    assert_holds("sealed", &Snapshot::from_fd(fd).unwrap(), &noise(page, 7));
}

/// The kernel does not seal the memory file of a mutable view while a second mapping of it exists. The file
/// became the base of the snapshot anyway. A write through the second mapping then changed the bytes of the
/// snapshot.
#[test]
fn a_file_that_somebody_can_still_write_becomes_no_base() {
    const TEST: &str = "a_file_that_somebody_can_still_write_becomes_no_base";
    alone(TEST, || {
        let page = page_size();
        let mut snapshot = Snapshot::zeroed(PAGES * page).unwrap();
        let mut view = snapshot.view_mut().unwrap();
        edit(&mut view, 5);
        let bytes = view.to_vec();
        let base = reopen(memory_files().remove(0), OFlags::RDWR).unwrap();
        let alias = map(&base, ProtFlags::READ | ProtFlags::WRITE, PAGES * page).unwrap();
        let taken = view.take_snapshot().unwrap();
        // SAFETY: no reference exists to the memory of the second mapping or of the view.
        unsafe { alias.wrapping_add(page).write(98) };
        assert_eq!(view[page], 98, "the view is not written in place");
        assert_same("taken", &taken.view().unwrap(), &bytes);
        // SAFETY: as above.
        unsafe { alias.wrapping_add(page).write(bytes[page]) };
        view.commit().unwrap();
        assert!(!seals(&base).intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE));

        let fd = snapshot.to_fd().unwrap();
        assert_ne!(inode(&fd), inode(&base));
        assert_unwritable("copied", &fd);
        // SAFETY: as above.
        unsafe { alias.wrapping_add(page).write(99) };
        assert_same("committed", &snapshot.view().unwrap(), &bytes);
        assert_same("copied", &read(&fd), &bytes);
        assert_eq!(inode(snapshot.to_fd().unwrap()), inode(&fd), "copied again");
        assert_refused("the file itself", base, ErrorKind::InvalidInput, &["F_SEAL_WRITE"]);
    });
}
