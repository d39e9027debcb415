//! Snapshots and views that ask for huge pages get them if the system has any, and show the right bytes.
#![cfg(all(target_os = "linux", not(memsnap_unix)))]

mod common;

use std::io::{ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::ptr;

use common::kinds::{TRACKINGS, goes_on};
use common::maps::areas;
use common::script::read;
use common::{assert_same, pattern, serial, skip};
use memsnap::{HugePages, Populate, Snapshot, SnapshotOptions, View, ViewOptions, page_size};

const HUGE: usize = 2 << 20;

#[test]
fn huge_pages_are_used_where_they_are_wished_for() {
    const TEST: &str = "huge_pages_are_used_where_they_are_wished_for";
    let _serial = serial();
    let bytes = pattern(4 * HUGE / page_size(), 1);
    let (mut plain, mut huge) = (ViewOptions::new(), ViewOptions::new());
    plain.huge_pages(HugePages::Never);
    huge.huge_pages(HugePages::Advise).reserve(8 * HUGE);
    let anonymous = |view: &View<&Snapshot>| -> usize {
        areas(view.as_ptr(), view.len()).iter().map(|area| area.bytes("AnonHugePages")).sum()
    };
    let zeroed = Snapshot::zeroed(bytes.len()).unwrap();
    let mut view = zeroed.view_with(&huge).unwrap();
    assert_eq!(view.as_ptr().addr() % HUGE, 0);
    // The kernel may refuse a request for huge pages, so this makes several requests.
    let granted = (0..10).any(|_| {
        view.restore().unwrap();
        view.copy_from_slice(&bytes);
        anonymous(&view) > 0
    });
    if kernel_gives_huge_pages(false) {
        assert!(granted);
    } else {
        skip(TEST, "the kernel gives no huge pages for anonymous memory");
    }
    view.grow(8 * HUGE).unwrap();
    view.restore().unwrap();
    let mut small = zeroed.view_with(&plain).unwrap();
    small.copy_from_slice(&bytes);
    assert_eq!(anonymous(&small), 0);

    let granted = (0..10).any(|_| {
        let snapshot = SnapshotOptions::new().huge_pages(HugePages::Advise).from_slice(&bytes).unwrap();
        let view = snapshot.view_with(&huge).unwrap();
        assert_same("of bytes", &view, &bytes);
        let areas = areas(view.as_ptr(), view.len());
        areas.iter().any(|area| area.bytes("ShmemPmdMapped") + area.bytes("FilePmdMapped") > 0)
    });
    if kernel_gives_huge_pages(true) {
        assert!(granted);
    } else {
        skip(TEST, "the kernel moves no file into huge pages");
    }
}

/// Returns whether memory gets huge pages on request: anonymous memory, or the pages of a mapped file.
fn kernel_gives_huge_pages(of_file: bool) -> bool {
    let len = 4 * HUGE;
    let (mut fd, mut flags) = (-1, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let file = tempfile::tempfile_in("/dev/shm").and_then(|mut file| {
        file.write_all(&vec![1; len])?;
        Ok(file)
    });
    if of_file {
        let Ok(file) = &file else { return false };
        (fd, flags) = (file.as_raw_fd(), libc::MAP_PRIVATE);
    }
    // SAFETY: a new mapping at an address that the kernel chooses touches no memory in use.
    let start = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
    assert_ne!(start, libc::MAP_FAILED);
    let start: *mut u8 = start.cast();
    let whole = start.wrapping_add(start.addr().next_multiple_of(HUGE) - start.addr());
    /// `libc` defines this constant only for glibc.
    const MADV_COLLAPSE: libc::c_int = 25;
    let advice = if of_file { MADV_COLLAPSE } else { libc::MADV_HUGEPAGE };
    // SAFETY: the range is within the mapping, which is one huge page longer.
    unsafe { libc::madvise(whole.cast(), len - HUGE, advice) };
    if of_file {
        // SAFETY: as above.
        unsafe { whole.read_volatile() };
    } else {
        // SAFETY: as above.
        unsafe { whole.write_volatile(1) };
    }
    let fields = ["AnonHugePages", "ShmemPmdMapped", "FilePmdMapped"];
    let areas = areas(start, len);
    let given = areas.iter().any(|area| fields.iter().any(|field| area.bytes(field) > 0));
    // SAFETY: this function made the mapping and does not use it any more.
    unsafe { libc::munmap(start.cast(), len) };
    given
}

#[test]
fn views_in_huge_pages_are_exact_however_they_are_tracked() {
    let _serial = serial();
    let bytes = pattern(2 * HUGE / page_size(), 1);
    let mut options = SnapshotOptions::new();
    options.huge_pages(HugePages::Advise);
    let of_bytes = options.from_slice(&bytes).unwrap();
    let of_zeroes = options.zeroed(bytes.len()).unwrap();
    for &tracking in TRACKINGS {
        for populate in [Populate::No, Populate::Read, Populate::Write] {
            for (snapshot, bytes) in [(&of_bytes, &bytes), (&of_zeroes, &vec![0; bytes.len()])] {
                let what = format!("{tracking}, {populate:?}");
                let mut huge = ViewOptions::new();
                huge.huge_pages(HugePages::Advise).tracking(tracking).populate(populate);
                let mut view = match snapshot.view_with(&huge) {
                    Err(error) if error.kind() == ErrorKind::Unsupported => continue,
                    view => view.unwrap(),
                };
                goes_on(&what, &mut view, bytes);
                view[HUGE + 7] ^= 0xFF;
                assert_eq!(view.take_snapshot().unwrap().stats().captured, page_size(), "{what}");
                view.restore().unwrap();
                view.zero(100..HUGE + 5).unwrap();
                let taken = view.take_snapshot().unwrap();
                let mut expected = bytes.clone();
                expected[100..HUGE + 5].fill(0);
                assert_same(&what, &read(&taken), &expected);
                view.restore().unwrap();
                goes_on(&what, &mut view, bytes);
                goes_on(&what, &mut taken.view_with(&huge).unwrap(), &expected);
                goes_on(&what, &mut snapshot.clone().view_mut_with(&huge).unwrap(), bytes);
            }
        }
    }
}
