//! If there are not enough addresses for a size, the error names the size.
//!
//! No size overflows or is truncated.

#![cfg(all(target_os = "linux", not(memsnap_unix)))]

mod common;

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use common::{alone, message, skip};
use memsnap::os::linux::SnapshotExt as _;
use memsnap::{Snapshot, Tracking, ViewOptions, page_size};
use rustix::fs::{MemfdFlags, SealFlags};

/// A length that does not fit into 32 bits.
///
/// Its lower 32 bits are those of a little more than a gibibyte.
const LONG: u64 = (5 << 30) + 7;

/// A sixteenth of the addresses of a process on most machines.
const LARGE: usize = if usize::BITS == 64 { usize::MAX >> 21 } else { usize::MAX >> 4 } + 1;

/// Makes a file of `LONG` bytes that takes little memory. Its last byte is 1.
fn long_file(flags: MemfdFlags) -> File {
    let file = File::from(rustix::fs::memfd_create("long", flags).unwrap());
    file.set_len(LONG).unwrap();
    file.write_all_at(&[1], LONG - 1).unwrap();
    file
}

#[track_caller]
fn is_long_or_refused(what: &str, result: io::Result<Snapshot>) {
    match (result, usize::try_from(LONG)) {
        (Ok(snapshot), Ok(len)) => {
            let mut last = [0; 2];
            assert_eq!(snapshot.read_at(&mut last, len - 2).unwrap(), 2, "{what}");
            assert_eq!(last, [0, 1], "{what}");
            assert_eq!(snapshot.len(), len.next_multiple_of(page_size()), "{what}");
        }
        (Err(error), Err(_)) => {
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{what}: {error}");
            assert!(message(&error).contains(&LONG.to_string()), "{what}: {}", message(&error));
        }
        (result, _) => panic!("{what}: {result:?}"),
    }
}

#[test]
fn files_of_more_than_32_bits_are_taken_whole_or_refused() {
    let file = long_file(MemfdFlags::CLOEXEC);
    is_long_or_refused("from_file", Snapshot::from_file(file.try_clone().unwrap()));
    // SAFETY: nobody else has the file, and nobody writes to it.
    is_long_or_refused("map_file", unsafe { Snapshot::map_file(&file) });
}

#[test]
fn received_memory_of_more_than_32_bits_is_taken_whole_or_refused() {
    let file = long_file(MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
    rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW).unwrap();
    is_long_or_refused("from_fd", Snapshot::from_fd(OwnedFd::from(file)));
}

#[test]
fn when_addresses_run_out_views_are_refused_and_those_open_go_on() {
    const TEST: &str = "when_addresses_run_out_views_are_refused_and_those_open_go_on";
    let found_by = Snapshot::zeroed(1).unwrap().view().unwrap().stats().tracker;
    if usize::BITS == 64 && (found_by != Tracking::Scan || common::forced_tier().is_some()) {
        return skip(TEST, "only PAGEMAP_SCAN can skip so many pages that were never touched");
    }
    alone(TEST, || {
        let snapshot = Snapshot::zeroed(LARGE).unwrap();
        let mut views = Vec::new();
        let error = loop {
            assert!(views.len() < 1 << 12, "the addresses do not run out");
            match snapshot.view() {
                Ok(view) => views.push(view),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
        assert!(message(&error).contains(&LARGE.to_string()), "{error}");
        let room = snapshot.view_with(ViewOptions::new().reserve(2 * LARGE)).map(drop).unwrap_err();
        assert_eq!(room.kind(), ErrorKind::OutOfMemory, "{room}");

        for view in &mut views {
            view[LARGE - 1] = 1;
            let taken = view.take_snapshot().unwrap();
            view.restore().unwrap();
            assert_eq!(view[LARGE - 1], 0);
            let mut last = [0];
            assert_eq!(taken.read_at(&mut last, LARGE - 1).unwrap(), 1);
            assert_eq!(last, [1]);
        }
        drop(views.pop());
        drop(snapshot.view().unwrap());
    });
}

#[test]
fn the_longest_snapshot_has_an_end() {
    let longest = isize::MAX as usize / page_size() * page_size();
    let snapshot = Snapshot::zeroed(longest).unwrap();
    assert_eq!((snapshot.len(), snapshot.stats().mapped), (longest, longest));
    assert_eq!(snapshot.read_at(&mut [1; 9], longest - 3).unwrap(), 3);
    assert_eq!(snapshot.read_at(&mut [1; 9], longest).unwrap(), 0);
    assert_eq!(snapshot.read_at(&mut [1; 9], usize::MAX).unwrap(), 0);
    assert_eq!(snapshot.diff(&Snapshot::zeroed(longest).unwrap()).unwrap().ranges(), []);
    let longer = ViewOptions::new().reserve(longest + 1).clone();
    let error = snapshot.view_with(&longer).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    // Some 32-bit processes have half of all addresses free.
    match snapshot.view() {
        Ok(view) => assert_eq!((view.len(), view[longest - 1]), (longest, 0)),
        Err(error) => assert!(message(&error).contains(&longest.to_string()), "{error}"),
    }
}
