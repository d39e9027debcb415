//! Snapshots that go from process to process: nobody can write to what is handed out, nothing that could
//! change is taken in, and nothing is copied that is in one file already.
#![cfg(all(target_os = "linux", not(memsnap_unix)))]

#[path = "../common/mod.rs"]
mod common;
mod memory_file;
mod peer;

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::mem::{self};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use common::linux::{allocated, closed_on_exec, memory_files};
use common::unix::Limit;
use common::{alone, assert_same, message, noise, padded, skip};
use memory_file::{inode, map, memfd, read, reopen, seals, unmap};
use memsnap::os::linux::SnapshotExt as _;
use memsnap::{Snapshot, Tracking, page_size};
use peer::{Peer, ROLE, receive, send, signal, to_starter, wait};
use rustix::fs::{FallocateFlags, MemfdFlags, OFlags, SealFlags};
use rustix::io::{Errno, FdFlags};
use rustix::mm::{MprotectFlags, ProtFlags};

const PAGES: usize = 100;

/// Neither a byte nor the length can change.
const FIXED: SealFlags = SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW);

#[track_caller]
fn assert_holds(what: &str, snapshot: &Snapshot, bytes: &[u8]) {
    let mut read = vec![0xA5; snapshot.len()];
    assert_eq!(snapshot.read_at(&mut read, 0).unwrap(), read.len());
    assert_same(what, &read, bytes);
    assert_same(what, &snapshot.view().unwrap(), bytes);
}

/// Whether written pages are found by comparing all, which reads all.
fn compares() -> bool {
    Snapshot::zeroed(1).unwrap().view().unwrap().stats().tracker == Tracking::Compare
}

/// Changes pages here and there, among them a run that is worth a mapping.
fn edit(bytes: &mut [u8], value: u8) {
    let page = page_size();
    bytes[3 * page..80 * page].fill(value);
    bytes[90 * page + 7] = value;
    bytes[95 * page..96 * page].fill(0);
}

/// A snapshot with captured pages, and its bytes.
fn captured(value: u8) -> (Snapshot, Vec<u8>) {
    let root = Snapshot::from_slice(&noise(PAGES * page_size(), 1)).unwrap();
    let mut view = root.view().unwrap();
    edit(&mut view, value);
    (view.take_snapshot().unwrap(), view.to_vec())
}

#[test]
fn a_snapshot_goes_to_another_process_and_comes_back_changed() {
    const TEST: &str = "a_snapshot_goes_to_another_process_and_comes_back_changed";
    let (snapshot, bytes) = captured(7);
    let mut changed = bytes.clone();
    edit(&mut changed[page_size()..], 8);

    if let Some(socket) = to_starter(TEST) {
        let received = Snapshot::from_fd(receive(&socket)).unwrap();
        assert_eq!((received.len(), received.content_len()), (bytes.len(), bytes.len()));
        let mut view = received.view().unwrap();
        assert_same("received", &view, &bytes);
        edit(&mut view[page_size()..], 8);
        let taken = view.take_snapshot().unwrap();
        send(&socket, taken.to_fd().unwrap());
        wait(&socket);
        assert_same("the view, after the starter wrote to its own", &view, &changed);
        assert_holds("taken, after the starter wrote to its views", &taken, &changed);
        view.restore().unwrap();
        assert_same("restored", &view, &bytes);
        return;
    }

    let peer = Peer::start(TEST);
    let mut earlier = snapshot.view().unwrap();
    send(&peer.socket, snapshot.to_fd().unwrap());
    let received = Snapshot::from_fd(receive(&peer.socket)).unwrap();
    assert_same("a view from before", &earlier, &bytes);
    assert_holds("the snapshot that was sent", &snapshot, &bytes);
    assert_holds("the snapshot that came back", &received, &changed);
    let mut view = received.view().unwrap();
    view.fill(1);
    earlier.fill(2);
    assert_holds("the snapshot that was sent, after writes to a view", &snapshot, &bytes);
    assert_holds("the snapshot that came back, after writes to a view", &received, &changed);
    signal(&peer.socket);
    peer.join();
    assert_holds("the snapshot that came back, after the end of its process", &received, &changed);
    view.restore_to(&snapshot).unwrap();
    assert_same("restored to what was sent", &view, &bytes);
    view.restore().unwrap();
    assert_same("restored", &view, &changed);
}

/// Tries all that could change the memory behind `fd`, by this handle or another.
#[track_caller]
fn assert_unwritable(what: &str, fd: &OwnedFd) {
    assert!(seals(fd).contains(FIXED), "{what}: {:?}", seals(fd));
    assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(FdFlags::CLOEXEC), "{what}: not closed on exec");
    let before = read(fd);
    assert_handle_is_unwritable(what, fd, before.len());
    for flags in [OFlags::RDWR, OFlags::WRONLY, OFlags::RDWR | OFlags::APPEND] {
        if let Ok(other) = reopen(fd, flags) {
            assert_handle_is_unwritable(&format!("{what}, opened with {flags:?}"), &other, before.len());
        }
    }
    if !before.is_empty() {
        reopen(fd, OFlags::RDWR | OFlags::TRUNC).unwrap_err();
    }
    assert_same(what, &read(fd), &before);
}

#[track_caller]
fn assert_handle_is_unwritable(what: &str, fd: &OwnedFd, len: usize) {
    let page = page_size();
    let refused = |attempt: &str, result: Result<(), Errno>| {
        let refusals = [Errno::PERM, Errno::BADF, Errno::ACCESS, Errno::INVAL];
        assert!(result.is_err_and(|error| refusals.contains(&error)), "{what}: {attempt}: {result:?}");
    };
    refused("write", rustix::io::write(fd, b"x").map(drop));
    refused("pwrite", rustix::io::pwrite(fd, b"x", 0).map(drop));
    refused("pwrite at the end", rustix::io::pwrite(fd, b"x", len as u64).map(drop));
    refused("grow", rustix::fs::ftruncate(fd, (len + page) as u64));
    refused("fallocate", rustix::fs::fallocate(fd, FallocateFlags::empty(), len as u64, page as u64));
    if len == 0 {
        return;
    }
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    refused("shrink", rustix::fs::ftruncate(fd, (len - page) as u64));
    refused("empty", rustix::fs::ftruncate(fd, 0));
    refused("punch a hole", rustix::fs::fallocate(fd, punch, 0, page as u64));
    let read_write = ProtFlags::READ | ProtFlags::WRITE;
    refused("map for writing", map(fd, read_write, len).map(|start| unmap(start, len)));
    refused("map for writing only", map(fd, ProtFlags::WRITE, len).map(|start| unmap(start, len)));
    // Kernels before 6.7 refuse this too, by a handle that is open for writing.
    if let Ok(start) = map(fd, ProtFlags::READ, len) {
        let access = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: the mapping was made just now, and nobody has a reference to its bytes.
        refused("mprotect", unsafe { rustix::mm::mprotect(start.cast(), len, access) });
        unmap(start, len);
    }
}

#[test]
fn nobody_can_write_to_what_was_handed_out() {
    let bytes = noise(PAGES * page_size(), 1);
    let from_slice = Snapshot::from_slice(&bytes).unwrap();
    let from_reader = Snapshot::from_reader(&bytes[..]).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    // SAFETY: the file is unnamed, and nobody writes to it any more.
    let mapped = unsafe { Snapshot::map_file(&file) }.unwrap();
    let from_file = Snapshot::from_file(file).unwrap();
    let from_fd = Snapshot::from_fd(memfd(bytes.len() as u64, &bytes, FIXED | SealFlags::SEAL)).unwrap();
    for (what, snapshot) in [
        ("from_slice", &from_slice),
        ("from_reader", &from_reader),
        ("from_file", &from_file),
        ("map_file", &mapped),
        ("from_fd", &from_fd),
    ] {
        let fd = snapshot.to_fd().unwrap();
        assert_same(what, &read(&fd), &bytes);
        assert_unwritable(what, &fd);
        assert_holds(what, &Snapshot::from_fd(fd).unwrap(), &bytes);
    }

    let (snapshot, bytes) = captured(9);
    let fd = snapshot.to_fd().unwrap();
    assert_same("captured", &read(&fd), &bytes);
    assert_unwritable("captured", &fd);

    let mut snapshot = Snapshot::zeroed(PAGES * page_size()).unwrap();
    let fd = snapshot.to_fd().unwrap();
    assert_same("zeroed", &read(&fd), &vec![0; PAGES * page_size()]);
    assert_unwritable("zeroed", &fd);
    snapshot.view_mut().unwrap().copy_from_slice(&bytes);
    let fd = snapshot.to_fd().unwrap();
    assert_same("filled in place", &read(&fd), &bytes);
    assert_unwritable("filled in place", &fd);
    assert_eq!(snapshot.stats().flat, 0, "filled in place, and copied all the same");
}

#[test]
fn an_empty_snapshot_makes_a_round_trip() {
    let empty = Snapshot::zeroed(0).unwrap();
    let fd = empty.to_fd().unwrap();
    assert_unwritable("empty", &fd);
    let received = Snapshot::from_fd(fd).unwrap();
    assert!(received.is_empty());
    assert_eq!(received.content_len(), 0);
    assert_eq!(received.view().unwrap().take_snapshot().unwrap().to_fd().map(|fd| read(&fd)).unwrap(), []);
    assert!(Snapshot::from_fd(memfd(0, b"", FIXED)).unwrap().is_empty());
}

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
        // What a kernel says that has none.
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

#[test]
fn what_is_in_one_file_is_not_copied() {
    let bytes = noise(PAGES * page_size(), 3);
    let snapshot = Snapshot::from_slice(&bytes).unwrap();
    let before = snapshot.stats();
    let (first, second) = (snapshot.to_fd().unwrap(), snapshot.clone().to_fd().unwrap());
    assert_eq!(inode(&first), inode(&second));
    assert_eq!(snapshot.stats(), before);
    assert_eq!(before.flat, 0);

    let received = Snapshot::from_fd(first).unwrap();
    assert_eq!(inode(received.to_fd().unwrap()), inode(&second), "what was received is handed on");
    let taken = received.view().unwrap().take_snapshot().unwrap();
    assert_eq!(inode(taken.to_fd().unwrap()), inode(&second), "an unchanged view's snapshot");
}

#[test]
fn a_changed_snapshot_is_copied_once_and_its_views_map_the_copy() {
    let (snapshot, bytes) = captured(4);
    assert_eq!(snapshot.stats().flat, 0);
    let fd = snapshot.to_fd().unwrap();
    let page = page_size() as u64;
    let copy = snapshot.stats().flat;
    assert!((PAGES as u64 - 1) * page <= copy && copy <= PAGES as u64 * page, "{copy} bytes");
    assert_eq!(inode(snapshot.to_fd().unwrap()), inode(&fd));
    assert_eq!(inode(snapshot.clone().to_fd().unwrap()), inode(&fd));
    assert_eq!(snapshot.stats().flat, copy);
    let view = snapshot.view().unwrap();
    assert_eq!(view.stats().mappings, 1);
    assert!(view.stats().private == 0 || compares());
    assert_same("mapped", &view, &bytes);
    drop(view);
    drop(snapshot);
    assert_same("outlives the snapshot", &read(&fd), &bytes);

    // The other way round: made flat for views first.
    let (snapshot, bytes) = captured(5);
    (0..80).for_each(|_| drop(snapshot.view().unwrap()));
    let flat = snapshot.stats().flat;
    assert!(flat > 0);
    assert_same("flat", &read(&snapshot.to_fd().unwrap()), &bytes);
    assert_eq!(snapshot.stats().flat, flat);
}

#[test]
fn threads_that_ask_at_once_get_one_file() {
    for seed in 0..10 {
        let (snapshot, bytes) = captured(seed);
        let files: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        assert_same("viewed", &snapshot.view().unwrap(), &bytes);
                        snapshot.to_fd().unwrap()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(files.iter().all(|fd| inode(fd) == inode(&files[0])));
        assert_same("made by threads", &read(&files[0]), &bytes);
    }
}

/// `root`, which is all zero, with a byte here and there.
fn dotted(root: &Snapshot) -> (Snapshot, Vec<Range<usize>>) {
    let (len, page) = (root.len(), page_size());
    let places = [0, len / 2, len - page];
    let mut view = root.view().unwrap();
    places.iter().for_each(|&place| view[place] = 1);
    (view.take_snapshot().unwrap(), places.iter().map(|&place| place..place + page).collect())
}

#[test]
fn sparse_snapshots_stay_sparse() {
    if compares() {
        return skip("sparse_snapshots_stay_sparse", "views are compared in full");
    }
    let page = page_size();
    let len = if cfg!(target_pointer_width = "64") { 1 << 40 } else { 1 << 28 };
    let zeroed = Snapshot::zeroed(len).unwrap();
    let file = File::from(zeroed.to_fd().unwrap());
    assert_eq!((file.metadata().unwrap().len(), allocated(&file)), (len as u64, 0));

    let (taken, ranges) = dotted(&zeroed);
    let file = File::from(taken.to_fd().unwrap());
    assert_eq!(allocated(&file), (ranges.len() * page) as u64);
    assert_eq!(inode(taken.to_fd().unwrap()), inode(&file));
    assert_eq!(taken.diff(&zeroed).unwrap().ranges(), ranges);
    // Looking at zeroes of a view takes no memory, though there is a file now whose holes it could fill.
    let view = taken.view().unwrap();
    assert!((1..1000).all(|i| view[i * page] == 0));
    assert_eq!(allocated(&file), (ranges.len() * page) as u64);
}

#[test]
fn holes_of_a_received_file_are_not_looked_at() {
    if compares() {
        return skip("holes_of_a_received_file_are_not_looked_at", "views are compared in full");
    }
    let zeroed = Snapshot::zeroed(64 << 20).unwrap();
    let received = Snapshot::from_fd(zeroed.to_fd().unwrap()).unwrap();
    let (taken, ranges) = dotted(&received);
    // Finding what is zero in the file's pages would fill them.
    let before = received.stats().base;
    let file = File::from(taken.to_fd().unwrap());
    assert_eq!(allocated(&file), (ranges.len() * page_size()) as u64);
    let again = Snapshot::from_fd(file.into()).unwrap();
    assert_eq!(again.diff(&zeroed).unwrap().ranges(), ranges);
    assert!(received.diff(&zeroed).unwrap().is_empty());
    assert_eq!(received.stats().base, before);
    assert!(before <= (ranges.len() * page_size()) as u64);
}

#[test]
fn a_file_of_any_length_is_taken_in_whole_pages() {
    let page = page_size();
    for len in [1, page - 1, page, page + 1, 5 * page + 77] {
        let bytes = noise(len, 6);
        let what = format!("{len} bytes");
        let snapshot = Snapshot::from_fd(memfd(len as u64, &bytes, FIXED)).unwrap();
        assert_eq!(snapshot.content_len(), len);
        assert_same(&what, snapshot.view().unwrap().content(), &bytes);
        assert_holds(&what, &snapshot, &padded(bytes.clone()));
        let fd = snapshot.to_fd().unwrap();
        assert_unwritable(&what, &fd);
        assert_same(&what, &read(&fd), &padded(bytes));
        assert_eq!(inode(snapshot.to_fd().unwrap()), inode(&fd));
    }
}

/// A program can write behind the end of its file, into the rest of the last page, through a mapping.
#[test]
fn what_the_sender_left_behind_the_end_is_no_content() {
    let page = page_size();
    let fd = memfd(10, b"0123456789", SealFlags::empty());
    let start = map(&fd, ProtFlags::READ | ProtFlags::WRITE, page).unwrap();
    // SAFETY: the byte is in the mapping, to which nobody has a reference.
    unsafe { start.wrapping_add(100).write(7) };
    unmap(start, page);
    rustix::fs::fcntl_add_seals(&fd, FIXED).unwrap();
    let snapshot = Snapshot::from_fd(fd).unwrap();
    let view = snapshot.view().unwrap();
    assert_eq!(view.content(), b"0123456789");
    assert_same("handed on", &read(&snapshot.to_fd().unwrap()), &view);
}

#[test]
fn holes_of_a_received_file_are_zeroes() {
    let page = page_size();
    let bytes = noise(page, 6);
    let fd = memfd(10 * page as u64, &bytes, SealFlags::empty());
    rustix::io::pwrite(&fd, &bytes, 5 * page as u64).unwrap();
    rustix::fs::fcntl_add_seals(&fd, FIXED).unwrap();
    let mut expected = vec![0; 10 * page];
    expected[..page].copy_from_slice(&bytes);
    expected[5 * page..6 * page].copy_from_slice(&bytes);
    let snapshot = Snapshot::from_fd(fd).unwrap();
    assert_holds("with holes", &snapshot, &expected);
    assert_eq!(
        snapshot.diff(&Snapshot::zeroed(10 * page).unwrap()).unwrap().ranges(),
        [0..page, 5 * page..6 * page]
    );
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

#[test]
fn a_received_snapshot_is_one_like_others() {
    let bytes = noise(PAGES * page_size(), 8);
    let mut received = Snapshot::from_fd(memfd(bytes.len() as u64, &bytes, FIXED)).unwrap();
    let root = received.clone();
    let mut view = root.view().unwrap();
    edit(&mut view, 1);
    let (first, first_bytes) = (view.take_snapshot().unwrap(), view.to_vec());
    assert_eq!(first.diff(&root).unwrap().ranges(), view_differences(&first_bytes, &bytes));
    view.restore().unwrap();
    assert_same("restored", &view, &bytes);
    view.restore_to(&first).unwrap();
    assert_same("restored to a descendant", &view, &first_bytes);
    let (other, other_bytes) = captured(2);
    view.restore_to(&other).unwrap();
    assert_same("restored to an unrelated one", &view, &other_bytes);
    view.restore().unwrap();
    assert_same("restored from there", &view, &bytes);

    let mut mutable = received.view_mut().unwrap();
    edit(&mut mutable, 3);
    let written = mutable.to_vec();
    mutable.commit().unwrap();
    assert_holds("committed", &received, &written);
    assert_holds("its clone", &root, &bytes);
    assert_same("handed on", &read(&received.to_fd().unwrap()), &written);
}

fn view_differences(left: &[u8], right: &[u8]) -> Vec<Range<usize>> {
    let page = page_size();
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let pages = left.chunks(page).zip(right.chunks(page)).enumerate();
    for (i, _) in pages.filter(|(_, (left, right))| left != right) {
        match ranges.last_mut() {
            Some(last) if last.end == i * page => last.end += page,
            _ => ranges.push(i * page..(i + 1) * page),
        }
    }
    ranges
}

#[test]
fn a_leaked_mutable_view_writes_to_no_file_that_is_handed_out() {
    let page = page_size();
    let mut snapshot = Snapshot::zeroed(PAGES * page).unwrap();
    let mut view = snapshot.view_mut().unwrap();
    view[0] = 1;
    let start = view.as_mut_ptr();
    mem::forget(view);
    let fd = snapshot.to_fd().unwrap();
    assert_unwritable("zeroed", &fd);
    // SAFETY: the view was leaked, so that its memory stays, and nobody has a reference to it.
    unsafe { start.wrapping_add(page).write(2) };
    assert_same("zeroed", &read(&fd), &vec![0; PAGES * page]);

    let mut view = snapshot.view_mut().unwrap();
    view[0] = 1;
    let taken = view.take_snapshot().unwrap();
    let (start, bytes) = (view.as_mut_ptr(), view.to_vec());
    mem::forget(view);
    let fd = taken.to_fd().unwrap();
    assert_unwritable("taken of it", &fd);
    // SAFETY: as above.
    unsafe { start.wrapping_add(page).write(2) };
    assert_same("taken of it", &read(&fd), &bytes);
}

/// A second mapping of a mutable view's memory keeps the kernel from sealing the file. It became the base of the snapshot
/// all the same, whose bytes changed when the second mapping was written.
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
        // SAFETY: nobody has a reference to the memory of the alias, or of the view.
        unsafe { alias.wrapping_add(page).write(98) };
        assert_eq!(view[page], 98, "the view is still written in place");
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

/// Who opens a file under a lease waits for its holder, up to 45 seconds.
#[test]
fn a_lease_of_the_sender_holds_nobody_up() {
    let bytes = noise(page_size(), 9);
    // Of a file that only one has open, by its path.
    let sender = reopen(memfd(bytes.len() as u64, &bytes, FIXED), OFlags::RDWR).unwrap();
    // SAFETY: the call takes no pointer.
    if unsafe { libc::fcntl(sender.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) } != 0 {
        let error = io::Error::last_os_error();
        // What a kernel says that has no leases, or none of files in memory.
        assert!(matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported), "a lease: {error}");
        return skip("a_lease_of_the_sender_holds_nobody_up", format!("no lease: {error}"));
    }
    // The holder is told of whoever wants the file by a signal that would end the process.
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
        assert_eq!(held() - before, 50, "an eighth of the descriptors");
        let kept = |(snapshot, _): &&(Snapshot, Vec<u8>)| snapshot.stats().flat > 0;
        assert_eq!(snapshots.iter().filter(kept).count(), 50);
        for (snapshot, bytes) in &snapshots {
            assert_same("handed out again", &read(&snapshot.to_fd().unwrap()), bytes);
        }
        drop(snapshots);
        assert!(held() <= before);
    });
}

/// A snapshot that takes no descriptor.
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
    let status = Command::new(env::current_exe().unwrap())
        .args([TEST, "--exact"])
        .env(ROLE, TEST)
        .stdin(snapshot.to_fd().unwrap())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}
