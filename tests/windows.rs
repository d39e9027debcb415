//! Tests of what is difficult on Windows.
//!
//! These are ranges that must never be free, commit charge, handles, and files that others have open.

#![cfg(windows)]

mod common;

use std::env;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use memsnap::os::windows::SnapshotExt as _;
use memsnap::{Access, Snapshot, Tracking, ViewOptions, page_size};
use windows_sys::Win32::Foundation::{DuplicateHandle, HANDLE_FLAG_INHERIT, SetHandleInformation};
use windows_sys::Win32::System::Memory::{
    FILE_MAP_WRITE, MEM_COMMIT, MEM_RELEASE, MEM_RESERVE, MapViewOfFile, PAGE_READWRITE, VirtualAlloc,
    VirtualFree,
};
use windows_sys::Win32::System::Threading::{GetCurrentProcess, GetProcessHandleCount};

fn pattern(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 61 + salt).to_le_bytes()[0]).collect()
}

fn handles() -> u32 {
    let mut count = 0;
    // SAFETY: the call returns a constant that stands for this process.
    let process = unsafe { GetCurrentProcess() };
    // SAFETY: as above.
    assert_ne!(unsafe { GetProcessHandleCount(process, &raw mut count) }, 0);
    count
}

#[test]
fn no_allocation_lands_in_a_view_that_is_mapped_anew() {
    const LEN: usize = 1 << 20;
    let done = AtomicBool::new(false);
    let images = [pattern(LEN, 0), pattern(LEN, 1)];
    let snapshots = images.each_ref().map(|bytes| Snapshot::from_slice(bytes).unwrap());
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let kept: Vec<_> = (0..16)
                        .map(|i| {
                            let kind = MEM_RESERVE | MEM_COMMIT;
                            // SAFETY: the system chooses an unused address.
                            let start =
                                unsafe { VirtualAlloc(ptr::null(), LEN >> (i % 5), kind, PAGE_READWRITE) };
                            assert!(!start.is_null());
                            // SAFETY: the page belongs to this test, and is writable.
                            unsafe { start.cast::<u8>().write(0xEE) };
                            start
                        })
                        .collect();
                    for start in kept {
                        // SAFETY: the memory belongs to this test, and nobody else uses it.
                        assert_eq!(unsafe { start.cast::<u8>().read() }, 0xEE);
                        // SAFETY: as above.
                        assert_ne!(unsafe { VirtualFree(start, 0, MEM_RELEASE) }, 0);
                    }
                }
            });
        }
        let mut view = snapshots[0].view().unwrap();
        let address = view.as_ptr();
        for round in 1..400 {
            view[round * 7 % LEN] ^= 1;
            view.restore_to(&snapshots[round % 2]).unwrap();
            assert!(view[..] == images[round % 2][..] && view.as_ptr() == address);
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn what_the_system_reads_into_a_view_is_captured() {
    let mut file = tempfile::tempfile().unwrap();
    let bytes = pattern(3 * page_size(), 5);
    file.write_all(&bytes).unwrap();
    for root in [Snapshot::zeroed(1 << 20).unwrap(), Snapshot::from_slice(&vec![9; 1 << 20]).unwrap()] {
        let mut view = root.view().unwrap();
        assert_eq!(view.take_snapshot().unwrap().stats().captured, 0);
        let place = 40 * page_size() + 10..43 * page_size() + 10;
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_exact(&mut view[place.clone()]).unwrap();
        let taken = view.take_snapshot().unwrap();
        assert_eq!(taken.stats().captured, 4 * page_size());
        assert!(taken.view().unwrap()[place.clone()] == bytes[..]);
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_exact(&mut view[..page_size()]).unwrap();
        view.restore().unwrap();
        assert!(view[..] == root.view().unwrap()[..]);
    }
}

#[test]
fn what_is_reserved_takes_no_memory() {
    let snapshot = Snapshot::from_slice(&[7]).unwrap();
    let mut views = Vec::new();
    for _ in 0..8 {
        views.push(snapshot.view_with(ViewOptions::new().reserve(1 << 40).guard(0, 1 << 32)).unwrap());
    }
    for view in &mut views {
        view.grow(1 << 20).unwrap();
        view[(1 << 20) - 1] = 1;
        view.restore().unwrap();
        assert_eq!(view.len(), page_size());
        view.grow(1 << 20).unwrap();
        assert_eq!((view[0], view[(1 << 20) - 1]), (7, 0));
    }
    let mut snapshot = Snapshot::zeroed(1).unwrap();
    let mut view = snapshot.view_mut_with(ViewOptions::new().reserve(1 << 40)).unwrap();
    view.grow(1 << 20).unwrap();
    view[1 << 19] = 3;
    view.commit().unwrap();
    assert_eq!(snapshot.view().unwrap()[1 << 19], 3);
}

#[test]
fn pages_written_and_zeroed_again_can_be_anything_in_between() {
    let snapshot = Snapshot::zeroed(1 << 20).unwrap();
    let mut view = snapshot.view_with(ViewOptions::new().reserve(1 << 21)).unwrap();
    assert_eq!(view.stats().tracker, expected_tracking());
    for round in 1..20_usize {
        let value = round.to_le_bytes()[0];
        view.grow(1 << 21).unwrap();
        assert!(view[1 << 20..].iter().all(|&byte| byte == 0));
        view.fill(value);
        let grown = view.take_snapshot().unwrap();
        view.zero(5..1 << 20).unwrap();
        assert!(view[5..1 << 20].iter().all(|&byte| byte == 0));
        view.restore().unwrap();
        assert_eq!(view.len(), 1 << 20);
        view.restore_to(&grown).unwrap();
        assert!(view.iter().all(|&byte| byte == value));
        view.restore().unwrap();
    }
}

fn expected_tracking() -> Tracking {
    if common::forced_tier().as_deref() == Some("compare") { Tracking::Compare } else { Tracking::WorkingSet }
}

#[test]
fn a_file_that_others_have_open_can_be_copied_and_mapped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    for len in [0, 1, page_size(), page_size() + 1, (1 << 16) - 1, (1 << 18) + 5] {
        let bytes = pattern(len, 3);
        let mut writer = OpenOptions::new().create(true).truncate(true).write(true).open(&path).unwrap();
        writer.write_all(&bytes).unwrap();
        let mut reader = File::open(&path).unwrap();
        reader.seek(SeekFrom::Start(1)).unwrap();
        let duplicate = reader.try_clone().unwrap();
        let copied = Snapshot::from_file(duplicate).unwrap();
        // SAFETY: nobody writes to the file before the snapshot is dropped.
        let mapped = unsafe { Snapshot::map_file(&reader) }.unwrap();
        assert_eq!(reader.stream_position().unwrap(), 1, "the caller's offset moved");
        for snapshot in [&copied, &mapped] {
            assert_eq!(snapshot.content_len(), len);
            let mut view = snapshot.view().unwrap();
            assert!(view.content() == bytes);
            assert!(view[len..].iter().all(|&byte| byte == 0));
            view.fill(1);
            let taken = view.take_snapshot().unwrap();
            view.restore().unwrap();
            assert!(view.content() == bytes);
            assert!(taken.view().unwrap().iter().all(|&byte| byte == 1));
        }
        drop(mapped);
        writer.write_all(b"more").unwrap();
        assert!(copied.view().unwrap().content() == bytes);
    }
    let writer = OpenOptions::new().write(true).open(&path).unwrap();
    assert_eq!(Snapshot::from_file(writer).unwrap_err().kind(), ErrorKind::PermissionDenied);
}

/// A file that cannot be opened or read through a second handle is read through the caller's handle.
#[test]
fn a_file_that_its_owner_does_not_share_can_be_copied_and_mapped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let bytes = pattern(3 * page_size() + 5, 4);
    std::fs::write(&path, &bytes).unwrap();
    for (sharing, locked) in [(0, false), (7, true)] {
        let mut file = OpenOptions::new().read(true).write(true).share_mode(sharing).open(&path).unwrap();
        if locked {
            file.lock().unwrap();
        }
        file.seek(SeekFrom::Start(7)).unwrap();
        // SAFETY: nobody writes to the file.
        let mapped = unsafe { Snapshot::map_file(&file) }.unwrap();
        for snapshot in [mapped, Snapshot::from_file(file.try_clone().unwrap()).unwrap()] {
            assert!(snapshot.view().unwrap().content() == bytes);
        }
        assert_eq!(file.stream_position().unwrap(), 7, "the caller's offset moved");
    }
}

/// A snapshot of a device that never ends would be read until memory is exhausted.
#[test]
fn a_character_device_is_refused_and_the_error_says_what_to_do() {
    let error = Snapshot::from_file(File::open("NUL").unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains("from_reader(file.take("), "{error}");
}

#[test]
fn handles_are_given_back() {
    let use_some = || {
        let snapshot = Snapshot::from_slice(&pattern(1 << 20, 0)).unwrap();
        let mut view = snapshot.view().unwrap();
        view[..1 << 19].fill(1);
        let taken = view.take_snapshot().unwrap();
        (0..70).for_each(|_| drop(taken.view().unwrap()));
        drop(taken.to_handle().unwrap());
        drop(Snapshot::from_reader(&[1; 100][..]).unwrap());
        let mut zeroed = Snapshot::zeroed(1 << 20).unwrap();
        zeroed.view_mut().unwrap().fill(2);
    };
    use_some();
    let before = handles();
    (0..5).for_each(|_| use_some());
    // Other tests have handles open too.
    assert!(handles() <= before + 40, "the number of handles rose from {before} to {}", handles());
}

#[test]
fn ten_thousand_views_are_no_problem() {
    let snapshot = Snapshot::from_slice(&pattern(3 * page_size(), 0)).unwrap();
    let mut views: Vec<_> = (0..10_000).map(|_| snapshot.view().unwrap()).collect();
    for (number, view) in views.iter_mut().enumerate() {
        view[page_size()] = number.to_le_bytes()[0];
    }
    assert!(views.iter().enumerate().all(|(number, view)| view[page_size()] == number.to_le_bytes()[0]));
}

#[test]
fn code_can_be_run_in_an_executable_view_of_bytes_and_of_zeroes() {
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    for root in [Snapshot::zeroed(1).unwrap(), Snapshot::from_slice(&[0xCC; 100]).unwrap()] {
        let mut view = root.view_with(ViewOptions::new().executable(true)).unwrap();
        view[..6].copy_from_slice(&[0xB8, 42, 0, 0, 0, 0xC3]); // mov eax, 42; ret
        let start = view.as_ptr();
        let mut view = view.into_protected();
        view.protect(.., Access::READ_EXECUTE).unwrap();
        // SAFETY: the bytes are the code of a function of this type.
        let function: extern "C" fn() -> i32 = unsafe { std::mem::transmute(start) };
        assert_eq!(function(), 42);
        view.restore().unwrap();
    }
}

#[test]
fn a_handle_cannot_be_written_through() {
    let snapshot = Snapshot::from_slice(&[1; 100]).unwrap();
    let handle = snapshot.to_handle().unwrap();
    // SAFETY: the system chooses an unused address.
    let view = unsafe { MapViewOfFile(handle.as_raw_handle(), FILE_MAP_WRITE, 0, 0, 0) };
    assert!(view.Value.is_null());
    // SAFETY: the call returns a constant that stands for this process.
    let process = unsafe { GetCurrentProcess() };
    let (mut more, from) = (ptr::null_mut(), handle.as_raw_handle());
    // SAFETY: the handles are open, and `more` can hold the result.
    let duplicated = unsafe { DuplicateHandle(process, from, process, &raw mut more, FILE_MAP_WRITE, 0, 0) };
    assert_eq!(duplicated, 0, "an empty access list gives no rights");
}

/// The environment variable that gives a child the handle of the snapshot.
const HANDLE: &str = "MEMSNAP_TEST_HANDLE";

#[test]
fn another_process_sees_the_snapshot() {
    const LEN: usize = (5 << 20) + 3;
    if let Ok(handle) = env::var(HANDLE) {
        let handle = ptr::without_provenance_mut(handle.parse().unwrap());
        // SAFETY: the child inherited the handle for this purpose.
        let handle = unsafe { OwnedHandle::from_raw_handle(handle) };
        // SAFETY: `to_handle` made the handle, so nobody writes to its section.
        let received = unsafe { Snapshot::from_handle(handle, LEN) }.unwrap();
        let mut view = received.view().unwrap();
        assert!(view.content() == pattern(LEN, 1));
        view.fill(0);
        view.restore().unwrap();
        assert!(view.content() == pattern(LEN, 1));
        assert!(received.to_handle().is_ok());
        return;
    }
    let snapshot = Snapshot::from_slice(&pattern(LEN, 1)).unwrap();
    let handle = snapshot.to_handle().unwrap();
    // SAFETY: the handle is open.
    let inherits =
        unsafe { SetHandleInformation(handle.as_raw_handle(), HANDLE_FLAG_INHERIT, HANDLE_FLAG_INHERIT) };
    assert_ne!(inherits, 0);
    let status = Command::new(env::current_exe().unwrap())
        .args(["--exact", "another_process_sees_the_snapshot"])
        .env(HANDLE, handle.as_raw_handle().addr().to_string())
        .status()
        .unwrap();
    assert!(status.success());
}
