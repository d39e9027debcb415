//! Parts of a view can be put back to the last snapshot, which returns their memory; what other code discards in a
//! view without its knowledge is found where private pages are listed.

mod common;

use std::io::ErrorKind;
use std::ops::Range;

use common::kinds::{self, Kind, TRACKINGS};
use common::maps::memory;
use common::script::{differing, read};
use common::{alone, assert_same, memory_file_bytes, serial, skip};
use memsnap::{Access, Snapshot, Tracking, View, ViewOptions, page_size};

/// Ranges of bytes of a view of `len` bytes: with and without edges, short and long, and none.
fn ranges(len: usize) -> Vec<Range<usize>> {
    let page = page_size();
    vec![
        5..5,
        len..len,
        7..8,
        page - 1..page + 1,
        2 * page..3 * page,
        4 * page + 1..7 * page - 1,
        18 * page + 5..40 * page - 5,
        95 * page..125 * page,
        139 * page..142 * page + 1,
        len - 1..len,
        0..len,
        1..len - 1,
    ]
}

/// Writes and discards, after a snapshot and after restores, and compares all that can be seen.
fn discards<S>(what: &str, view: &mut View<S>, root: &[u8]) {
    for (i, range) in ranges(root.len()).into_iter().enumerate() {
        let what = format!("{what}, {range:?}");
        let mut synced = root.to_vec();
        for round in 0..3_u8 {
            let mut bytes = synced.clone();
            for part in [
                3 * page_size() - 3..6 * page_size() + 9,
                20 * page_size()..23 * page_size(),
                139 * page_size()..root.len(),
            ] {
                view[part.clone()].fill(0x50 + round);
                bytes[part].fill(0x50 + round);
            }
            view.discard(range.clone()).unwrap();
            bytes[range.clone()].copy_from_slice(&synced[range.clone()]);
            assert_same(&what, view, &bytes);
            assert_eq!(view.changes().unwrap().ranges(), differing(&bytes, &synced), "{what}");
            // Discarded pages can be written again, and are noticed.
            let at = range.start.min(root.len() - 1);
            view[at] ^= 0x33;
            bytes[at] ^= 0x33;
            let taken = view.take_snapshot().unwrap();
            assert_same(&what, &read(&taken), &bytes);
            view.discard(..).unwrap();
            assert_same(&what, view, &bytes);
            assert!(view.changes().unwrap().is_empty(), "{what}");
            synced = bytes;
            if i % 2 == 0 {
                view.restore().unwrap();
                view.discard(range.clone()).unwrap();
                assert_same(&what, view, root);
                view[at] ^= 0x33;
                view.discard(range.start..).unwrap();
                assert_same(&what, view, root);
                view.restore_to(&taken).unwrap();
            }
            assert_same(&what, view, &synced);
        }
        view.restore().unwrap();
        assert_same(&what, view, root);
    }
}

#[test]
fn discarded_bytes_are_exact_over_everything_in_each_tier() {
    let _serial = serial();
    for &tracking in TRACKINGS {
        for Kind { name, mut snapshot, bytes } in kinds::all() {
            let name = format!("{tracking}, {name}");
            let mut view = snapshot.view().unwrap();
            if let Err(error) = view.set_tracking(tracking) {
                skip("discarded_bytes_are_exact_over_everything_in_each_tier", error);
                break;
            }
            discards(&name, &mut view, &bytes);
            drop(view);
            let mut view = snapshot.view_mut().unwrap();
            view.set_tracking(tracking).unwrap();
            discards(&format!("mutable, {name}"), &mut view, &bytes);
            view[..9 * page_size()].fill(4);
            view.discard(5..100 * page_size()).unwrap();
            view.commit().unwrap();
            let mut expected = bytes;
            expected[..5].fill(4);
            assert_same(&name, &read(&snapshot), &expected);
        }
    }
}

#[test]
fn what_a_view_grew_by_is_discarded_to_zeroes() {
    let _serial = serial();
    for Kind { name, mut snapshot, bytes } in kinds::all() {
        let (len, more) = (bytes.len(), bytes.len() + 50 * page_size());
        let mut options = ViewOptions::new();
        options.reserve(more);
        for mutable in [false, true] {
            let shared = snapshot.clone();
            let mut grown = if mutable {
                snapshot
                    .view_mut_with(&options)
                    .unwrap()
                    .with(|view| exercise_growth(name, view, &bytes, more))
            } else {
                shared.view_with(&options).unwrap().with(|view| exercise_growth(name, view, &bytes, more))
            };
            grown.truncate(len);
            assert_same(name, &grown, &bytes);
        }
    }
}

trait With: Sized {
    fn with<T>(mut self, script: impl FnOnce(&mut Self) -> T) -> T {
        script(&mut self)
    }
}

impl<S> With for View<S> {}

/// Returns what a restored view shows in the end.
fn exercise_growth<S>(name: &str, view: &mut View<S>, root: &[u8], more: usize) -> Vec<u8> {
    let mut expected = root.to_vec();
    expected.resize(more, 0);
    view.grow(more).unwrap();
    let last = root.len() - 2 * page_size();
    view[last..].fill(9);
    view.discard(last + 1..).unwrap();
    expected[last] = 9;
    assert_same(name, view, &expected);
    let taken = view.take_snapshot().unwrap();
    assert_same(name, &read(&taken), &expected);
    view.fill(8);
    view.discard(..).unwrap();
    assert_same(name, view, &expected);
    assert!(view.changes().unwrap().is_empty());
    view.restore().unwrap();
    view.to_vec()
}

#[test]
fn the_memory_of_discarded_pages_goes_back() {
    const TEST: &str = "the_memory_of_discarded_pages_goes_back";
    const LARGE: usize = 64 << 20;
    alone(TEST, || {
        if memory().is_none() {
            return skip(TEST, "the memory of the process is not known");
        }
        let memory = || memory().unwrap();
        let bytes = vec![7; LARGE];
        for (name, snapshot) in
            [("bytes", Snapshot::from_slice(&bytes).unwrap()), ("zeroes", Snapshot::zeroed(LARGE).unwrap())]
        {
            let mut view = snapshot.view().unwrap();
            view.fill(5);
            let full = memory().anonymous;
            view.discard(..).unwrap();
            let back = full - memory().anonymous;
            assert!(back > LARGE / 10 * 9, "{name}: {back} bytes went back");
            // Nothing is left for the next snapshot.
            let taken = view.take_snapshot().unwrap();
            assert_eq!(taken.stats().captured, 0, "{name}");
            assert_eq!(taken.stats().store.live, 0, "{name}");
            // Nor does it take memory to discard what was never written.
            let before = memory().anonymous;
            let mut untouched = snapshot.view().unwrap();
            untouched.discard(5..).unwrap();
            assert!(memory().anonymous < before + (8 << 20), "{name}");
        }
        let mut snapshot = Snapshot::zeroed(LARGE).unwrap();
        let mut view = snapshot.view_mut().unwrap();
        view.fill(1);
        view.discard(page_size() / 2..).unwrap();
        let held = memory_file_bytes();
        assert!(held.is_none_or(|held| held <= page_size() as u64), "{held:?} bytes are left in files");
        assert!(view[page_size() / 2..].iter().all(|&byte| byte == 0));
    });
}

/// The kernel reports a discarded page of an armed view of zeroes as if it had been written.
#[test]
fn discarded_pages_of_an_armed_view_are_not_captured() {
    let _serial = serial();
    for Kind { name, snapshot, bytes } in kinds::all() {
        let mut view = snapshot.view().unwrap();
        if let Err(error) = view.set_tracking(Tracking::Armed) {
            return skip("discarded_pages_of_an_armed_view_are_not_captured", error);
        }
        for _ in 0..3 {
            assert_eq!(view.take_snapshot().unwrap().stats().captured, snapshot.stats().captured, "{name}");
            view[110 * page_size()..130 * page_size()].fill(9);
            view.discard(110 * page_size()..130 * page_size()).unwrap();
            assert_same(name, &view, &bytes);
        }
    }
}

#[test]
fn what_is_not_within_the_view_or_protected_is_not_discarded() {
    let _serial = serial();
    for Kind { name, mut snapshot, bytes } in kinds::all() {
        let mut view = snapshot.view_mut().unwrap();
        let len = bytes.len();
        #[allow(clippy::reversed_empty_ranges)]
        for range in [0..len + 1, len + 1..len + 1, 9..8, 0..usize::MAX, usize::MAX..usize::MAX] {
            assert_eq!(view.discard(range).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        let mut expected = bytes.clone();
        view[..2 * page_size()].fill(3);
        expected[..2 * page_size()].fill(3);
        let mut view = view.into_protected();
        for access in [Access::NONE, Access::READ] {
            view.protect(page_size()..2 * page_size(), access).unwrap();
            for range in [0..len, page_size() - 1..page_size() + 1, 2 * page_size() - 1..2 * page_size()] {
                assert_eq!(view.discard(range).unwrap_err().kind(), ErrorKind::PermissionDenied);
            }
        }
        assert_same(name, &read(&view.take_snapshot().unwrap()), &expected);
        view.restore().unwrap();
        view.get_mut(..page_size()).unwrap().fill(4);
        view.protect(page_size().., Access::NONE).unwrap();
        view.discard(..page_size()).unwrap();
        view.restore_excluding(&[0..page_size()]).unwrap();
        assert_same(name, view.get(..).unwrap(), &bytes);
    }
}

#[cfg(all(target_os = "linux", not(memsnap_unix)))]
fn purge<S>(view: &mut View<S>, pages: Range<usize>) {
    let range = pages.start * page_size()..pages.end * page_size();
    let start = view[range.clone()].as_mut_ptr();
    // SAFETY: the pages are the view's, which is borrowed exclusively.
    assert_eq!(unsafe { libc::madvise(start.cast(), range.len(), libc::MADV_DONTNEED) }, 0);
}

/// Other code (a balloon, an allocator that returns memory) called `madvise(MADV_DONTNEED)` on captured pages of a view.
/// The kernel lists only pages that are private, so these were taken to show what was captured: they were missing in the
/// next snapshot, and the next restore left them.
#[test]
#[cfg(all(target_os = "linux", not(memsnap_unix)))]
fn pages_that_other_code_discarded_are_found_where_private_pages_are_listed() {
    let test = "pages_that_other_code_discarded_are_found_where_private_pages_are_listed";
    let _serial = serial();
    for tracking in [Tracking::Scan, Tracking::Pagemap, Tracking::Compare] {
        for Kind { name, snapshot, bytes: root } in kinds::all() {
            let what = format!("{tracking}, {name}");
            let mut view = match snapshot.view_with(ViewOptions::new().tracking(tracking)) {
                Err(error) => return skip(test, error),
                Ok(view) => view,
            };
            // Before the first search: pages of the snapshot that the view had to copy.
            purge(&mut view, 0..30);
            let shown = view.to_vec();
            assert_same(&what, &read(&view.take_snapshot().unwrap()), &shown);
            view.restore().unwrap();
            assert_same(&what, &view, &root);

            // After a snapshot, after a restore to it, and after one from another snapshot.
            view[5 * page_size()..9 * page_size()].fill(7);
            let seven = view.take_snapshot().unwrap();
            let with_seven = view.to_vec();
            for round in 0..12 {
                if round % 4 == 3 {
                    view.restore().unwrap();
                    view.restore_to(&seven).unwrap();
                    assert_same(&what, &view, &with_seven);
                }
                purge(&mut view, 5 + round % 3..8);
                let shown = view.to_vec();
                if round % 2 == 0 {
                    assert_eq!(view.changes().unwrap().ranges(), differing(&shown, &with_seven), "{what}");
                    let taken = view.take_snapshot().unwrap();
                    assert_same(&what, &read(&taken), &shown);
                    // Found once, and again where it happens again.
                    view[6 * page_size()] = 9;
                    purge(&mut view, 6..7);
                    assert_same(&what, &read(&view.take_snapshot().unwrap()), &view);
                }
                view.restore_to(&seven).unwrap();
                assert_same(&what, &view, &with_seven);
            }
            // Numbers that are asked for in between change nothing.
            purge(&mut view, 5..6);
            let _ = (view.stats(), view.stats());
            let shown = view.to_vec();
            assert_same(&what, &read(&view.take_snapshot().unwrap()), &shown);
            view.restore().unwrap();
            purge(&mut view, 0..150);
            view.restore().unwrap();
            assert_same(&what, &view, &root);
        }
    }
}

/// The same, where a restore discarded all of a view that was read in full once, and copied in what is captured.
#[test]
#[cfg(all(target_os = "linux", not(memsnap_unix)))]
fn pages_that_other_code_discarded_are_found_after_a_view_started_over() {
    const PAGES: usize = 8192;
    let test = "pages_that_other_code_discarded_are_found_after_a_view_started_over";
    let _serial = serial();
    let root = common::pattern(PAGES, 1);
    let snapshot = Snapshot::from_slice(&root).unwrap();
    // Searches that cost so much in vain lead to it, wherever the last of them is.
    for searches in 0..3 {
        // What was not captured is discarded by a restore.
        let mut options = ViewOptions::new();
        options.tracking(Tracking::Scan).keep_resident(0);
        let mut view = match snapshot.view_with(&options) {
            Err(error) => return skip(test, error),
            Ok(view) => view,
        };
        view[5 * page_size()..9 * page_size()].fill(7);
        let seven = view.take_snapshot().unwrap();
        assert_same("read in full", &view[9 * page_size()..], &root[9 * page_size()..]);
        for _ in 0..searches {
            assert!(view.changes().unwrap().is_empty());
        }
        for round in 0..30 {
            view[100 * page_size()] = 9;
            view.restore().unwrap();
            view.restore_to(&seven).unwrap();
            purge(&mut view, 5..6);
            view.restore_to(&seven).unwrap();
            assert_eq!(view[5 * page_size()], 7, "round {round}");
        }
        view.restore().unwrap();
        assert_same("restored", &view, &root);
    }
}

/// The same, for pages that the kernel was allowed to take back when it needs memory.
#[test]
#[cfg(all(target_os = "linux", not(memsnap_unix)))]
fn pages_that_other_code_freed_are_found_where_private_pages_are_listed() {
    let _serial = serial();
    for tracking in [Tracking::Scan, Tracking::Pagemap, Tracking::Compare] {
        let snapshot = Snapshot::zeroed(40 * page_size()).unwrap();
        let mut view = match snapshot.view_with(ViewOptions::new().tracking(tracking)) {
            Err(error) => {
                return skip("pages_that_other_code_freed_are_found_where_private_pages_are_listed", error);
            }
            Ok(view) => view,
        };
        view.copy_from_slice(&common::pattern(40, 3));
        let taken = view.take_snapshot().unwrap();
        for paged_out in [false, true] {
            let (start, len) = (view[5 * page_size()..].as_mut_ptr(), 20 * page_size());
            // SAFETY: the pages are the view's, which is borrowed exclusively.
            assert_eq!(unsafe { libc::madvise(start.cast(), len, libc::MADV_FREE) }, 0);
            if paged_out {
                // SAFETY: as above. A kernel that does not know it leaves them.
                unsafe { libc::madvise(start.cast(), len, libc::MADV_PAGEOUT) };
            }
            let shown = view.to_vec();
            assert_same("freed", &read(&view.take_snapshot().unwrap()), &shown);
            view.restore_to(&taken).unwrap();
            assert_same("restored", &view, &common::pattern(40, 3));
        }
    }
}
