//! Which snapshots are copied for other processes, and how much memory that takes.

use std::fs::File;
use std::ops::Range;
use std::thread;

use memsnap::os::linux::SnapshotExt as _;
use memsnap::{Snapshot, page_size};
use rustix::fs::SealFlags;

use super::common::linux::allocated;
use super::common::{assert_same, noise, padded, skip};
use super::memory_file::{inode, memfd, read};
use super::{FIXED, PAGES, assert_holds, assert_unwritable, captured, compares};

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
    assert_eq!(
        inode(received.to_fd().unwrap()),
        inode(&second),
        "a received file was not handed on as it is"
    );
    let taken = received.view().unwrap().take_snapshot().unwrap();
    assert_eq!(inode(taken.to_fd().unwrap()), inode(&second), "the snapshot of an unchanged view was copied");
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
    assert_same("after the snapshot was dropped", &read(&fd), &bytes);

    // Here, views make the image flat before `to_fd` is called.
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
        assert_same("requested by threads", &read(&files[0]), &bytes);
    }
}

/// Takes a snapshot of `root`, which is all zero, with single bytes changed.
///
/// Returns it with the changed ranges.
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
        return skip("sparse_snapshots_stay_sparse", "with this tracking method, the whole view is compared");
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
    // Reading zeroes in a view takes no memory, although the flat file has holes that reads could fill.
    let view = taken.view().unwrap();
    assert!((1..1000).all(|i| view[i * page] == 0));
    assert_eq!(allocated(&file), (ranges.len() * page) as u64);
}

#[test]
fn holes_of_a_received_file_are_not_looked_at() {
    if compares() {
        return skip(
            "holes_of_a_received_file_are_not_looked_at",
            "with this tracking method, the whole view is compared",
        );
    }
    let zeroed = Snapshot::zeroed(64 << 20).unwrap();
    let received = Snapshot::from_fd(zeroed.to_fd().unwrap()).unwrap();
    let (taken, ranges) = dotted(&received);
    // A test for pages of zeroes would fill the holes of the file.
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
