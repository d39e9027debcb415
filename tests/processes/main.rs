//! Snapshots that are passed between processes.
//!
//! Nobody can write to a file that is handed out. A file that could still change is refused. A snapshot that
//! is one file already is not copied.
#![cfg(all(target_os = "linux", not(memsnap_unix)))]

#[path = "../common/mod.rs"]
mod common;
mod copies;
mod descriptors;
mod memory_file;
mod peer;
mod refused;

use std::io::Write;
use std::mem;
use std::ops::Range;
use std::os::fd::OwnedFd;

use common::{assert_same, noise};
use memory_file::{map, memfd, read, reopen, seals, unmap};
use memsnap::os::linux::SnapshotExt as _;
use memsnap::{Snapshot, Tracking, page_size};
use peer::{Peer, receive, send, signal, to_starter, wait};
use rustix::fs::{FallocateFlags, OFlags, SealFlags};
use rustix::io::{Errno, FdFlags};
use rustix::mm::{MprotectFlags, ProtFlags};

const PAGES: usize = 100;

/// The seals of a file whose bytes and length cannot change.
const FIXED: SealFlags = SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW);

#[track_caller]
fn assert_holds(what: &str, snapshot: &Snapshot, bytes: &[u8]) {
    let mut read = vec![0xA5; snapshot.len()];
    assert_eq!(snapshot.read_at(&mut read, 0).unwrap(), read.len());
    assert_same(what, &read, bytes);
    assert_same(what, &snapshot.view().unwrap(), bytes);
}

/// Returns whether views compare all pages to find written ones, and so read all pages.
fn compares() -> bool {
    Snapshot::zeroed(1).unwrap().view().unwrap().stats().tracker == Tracking::Compare
}

/// Changes several pages, including a run that is long enough to be mapped.
fn edit(bytes: &mut [u8], value: u8) {
    let page = page_size();
    bytes[3 * page..80 * page].fill(value);
    bytes[90 * page + 7] = value;
    bytes[95 * page..96 * page].fill(0);
}

/// Returns a snapshot with captured pages, and its bytes.
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

/// Tries everything that could change the memory behind `fd`, through this descriptor and others.
#[track_caller]
fn assert_unwritable(what: &str, fd: &OwnedFd) {
    assert!(seals(fd).contains(FIXED), "{what}: {:?}", seals(fd));
    assert!(
        rustix::io::fcntl_getfd(fd).unwrap().contains(FdFlags::CLOEXEC),
        "{what}: the descriptor is not closed on exec"
    );
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
    // Kernels before 6.7 refuse this too, if the descriptor is open for writing.
    if let Ok(start) = map(fd, ProtFlags::READ, len) {
        let access = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: the mapping was just made, and no reference to its bytes exists.
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
    // SAFETY: the file has no name, and nobody writes to it any more.
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
    assert_eq!(snapshot.stats().flat, 0, "a snapshot that was filled in place was copied");
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
    // SAFETY: the view was leaked, so its memory remains mapped, and no reference to it exists.
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
