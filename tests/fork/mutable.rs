//! Mutable views that exist when their process forks.

use memsnap::{Snapshot, ViewOptions, page_size};

use super::common::script::{differing, read};
use super::common::unix::{Fork, fork};
use super::common::{assert_same, pattern, serial};
use super::fill_every;

#[derive(Clone, Copy)]
enum End {
    Drop,
    Commit,
}

#[test]
fn a_mutable_view_of_bytes_ends_in_each_process_on_its_own() {
    const PAGES: usize = 40;
    let _serial = serial();
    for end in [End::Drop, End::Commit] {
        let root = pattern(PAGES, 1);
        let mut snapshot = Snapshot::from_slice(&root).unwrap();
        let earlier = snapshot.clone();
        let mut view = snapshot.view_mut().unwrap();
        let mut bytes = root.clone();
        fill_every(3, &mut view, 9);
        fill_every(3, &mut bytes, 9);
        let finish = |mut view: memsnap::MutView<'_>, mut bytes: Vec<u8>, process: u8| {
            assert_same("inherited", &view, &bytes);
            assert_eq!(view.changes().unwrap().ranges(), differing(&bytes, &root));
            fill_every(2, &mut view, process);
            let taken = view.take_snapshot().unwrap();
            view.restore().unwrap();
            assert_same("restored", &view, &root);
            view.restore_to(&taken).unwrap();
            fill_every(5, &mut view, process + 1);
            fill_every(2, &mut bytes, process);
            assert_same("taken", &read(&taken), &bytes);
            fill_every(5, &mut bytes, process + 1);
            match end {
                End::Drop => drop(view),
                End::Commit => view.commit().unwrap(),
            }
            bytes
        };
        match fork() {
            Fork::InChild(mut parent) => {
                parent.signal();
                let bytes = finish(view, bytes, 100);
                parent.wait();
                assert_same("the child's", &snapshot.view().unwrap(), &bytes);
                assert_same("earlier", &earlier.view().unwrap(), &root);
                parent.exit();
            }
            Fork::InParent(mut child) => {
                child.wait();
                let bytes = finish(view, bytes, 200);
                child.signal();
                child.join();
                assert_same("the parent's", &snapshot.view().unwrap(), &bytes);
                assert_same("earlier", &earlier.view().unwrap(), &root);
            }
        }
    }
}

/// Maps memory at these addresses, where nothing is mapped.
#[cfg(all(target_os = "linux", not(memsnap_unix)))]
fn occupy(address: *mut u8, len: usize) -> &'static mut [u8] {
    use std::{ptr, slice};

    let (protection, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
    );
    // SAFETY: MAP_FIXED_NOREPLACE does not replace existing mappings.
    let mapped = unsafe { libc::mmap(address.cast(), len, protection, flags, -1, 0) };
    assert!(ptr::eq(mapped.cast(), address), "the view's addresses are in use in the child");
    // SAFETY: the mapping was just made, holds `len` zeroes, and exists until the process ends. No other
    // reference to it exists.
    unsafe { slice::from_raw_parts_mut(address, len) }
}

/// Returns memory at other addresses, since on this system the child may still have the view mapped.
#[cfg(not(all(target_os = "linux", not(memsnap_unix))))]
fn occupy(_: *mut u8, len: usize) -> &'static mut [u8] {
    vec![0; len].leak()
}

#[test]
fn a_mutable_view_written_in_place_stays_with_the_parent() {
    const PAGES: usize = 64;
    let _serial = serial();
    for end in [End::Drop, End::Commit] {
        let mut snapshot = Snapshot::zeroed(PAGES * page_size()).unwrap();
        let other = Snapshot::from_slice(&pattern(PAGES, 1)).unwrap();
        let mut options = ViewOptions::new();
        options.reserve(2 * PAGES * page_size());
        let mut view = snapshot.view_mut_with(&options).unwrap();
        let mut bytes = vec![0; view.len()];
        fill_every(3, &mut view, 9);
        fill_every(3, &mut bytes, 9);
        match fork() {
            Fork::InChild(mut parent) => {
                let guest = occupy(view.as_mut_ptr(), view.len());
                guest.fill(0x5A);
                parent.signal();
                assert!(view.take_snapshot().is_err());
                assert!(view.changes().is_err());
                assert!(view.restore().is_err());
                assert!(view.restore_to(&other).is_err());
                assert!(view.restore_excluding(&[5..PAGES * page_size() - 5]).is_err());
                assert!(view.zero(..).is_err());
                assert!(view.grow(2 * PAGES * page_size()).is_err());
                match end {
                    End::Drop => drop(view),
                    End::Commit => assert!(view.commit().is_err()),
                }
                assert!(guest.iter().all(|&byte| byte == 0x5A), "what the child mapped has changed");
                guest.fill(0x5B);
                // The parent's view leaves its bytes in the parent's snapshot. The child does not see them.
                let mut own = snapshot.view_mut().unwrap();
                assert_same("the child's own", &own, &vec![0; guest.len()]);
                own.fill(4);
                own.commit().unwrap();
                assert_same("the child's own", &snapshot.view().unwrap(), &vec![4; guest.len()]);
                drop(snapshot);
                assert!(guest.iter().all(|&byte| byte == 0x5B), "what the child mapped has changed");
                parent.wait();
                parent.exit();
            }
            Fork::InParent(mut child) => {
                child.wait();
                assert_same("after the fork", &view, &bytes);
                fill_every(5, &mut view, 10);
                fill_every(5, &mut bytes, 10);
                child.signal();
                child.join();
                assert_same("after the child", &view, &bytes);
                match end {
                    End::Drop => {
                        assert_same("taken", &read(&view.take_snapshot().unwrap()), &bytes);
                        drop(view);
                    }
                    End::Commit => view.commit().unwrap(),
                }
                assert_same("the parent's", &snapshot.view().unwrap(), &bytes);
            }
        }
    }
}

#[test]
fn a_mutable_view_that_a_snapshot_was_taken_of_goes_on_in_both_processes() {
    const PAGES: usize = 64;
    let _serial = serial();
    let mut snapshot = Snapshot::zeroed(PAGES * page_size()).unwrap();
    let mut view = snapshot.view_mut().unwrap();
    view.copy_from_slice(&pattern(PAGES, 9));
    let taken = view.take_snapshot().unwrap();
    match fork() {
        Fork::InChild(mut parent) => {
            parent.signal();
            assert_same("inherited", &view, &pattern(PAGES, 9));
            view.restore().unwrap();
            assert_same("restored", &view, &vec![0; PAGES * page_size()]);
            view.copy_from_slice(&pattern(PAGES, 10));
            view.commit().unwrap();
            parent.wait();
            assert_same("the child's", &snapshot.view().unwrap(), &pattern(PAGES, 10));
            assert_same("taken", &taken.view().unwrap(), &pattern(PAGES, 9));
            parent.exit();
        }
        Fork::InParent(mut child) => {
            child.wait();
            view.copy_from_slice(&pattern(PAGES, 11));
            view.commit().unwrap();
            child.signal();
            child.join();
            assert_same("the parent's", &snapshot.view().unwrap(), &pattern(PAGES, 11));
            assert_same("taken", &taken.view().unwrap(), &pattern(PAGES, 9));
        }
    }
}
