//! `discard` puts parts of a view back to the last snapshot and returns their memory.
//!
//! If other code discards pages of a view, the tracking methods that list private pages find this.

mod common;

use std::io::ErrorKind;
use std::ops::Range;

use common::kinds::{self, Kind, TRACKINGS};
use common::maps::memory;
use common::script::{differing, read};
use common::{alone, assert_same, memory_file_bytes, serial, skip, supported};
use memsnap::{Access, Snapshot, Tracking, View, ViewOptions, page_size};

/// Returns ranges of a view of `len` bytes: long, short and empty, at page boundaries and within pages.
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

/// Writes and discards, after a snapshot and after restores, and checks the bytes, the changes and the
/// snapshots.
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
            // A discarded page can be written again, and the write is found.
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
            let tracked = view.set_tracking(tracking);
            if supported("discarded_bytes_are_exact_over_everything_in_each_tier", tracked).is_none() {
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

/// Returns the bytes of the view after the last restore.
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
            return skip(TEST, "the system does not report the memory of the process");
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
            assert!(back > LARGE / 10 * 9, "{name}: only {back} bytes were returned");
            // The next snapshot captures nothing.
            let taken = view.take_snapshot().unwrap();
            assert_eq!(taken.stats().captured, 0, "{name}");
            assert_eq!(taken.stats().store.live, 0, "{name}");
            // Discarding pages that were never written takes no memory.
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
        assert!(
            held.is_none_or(|held| held <= page_size() as u64),
            "{held:?} bytes are left in memory files"
        );
        assert!(view[page_size() / 2..].iter().all(|&byte| byte == 0));
    });
}

/// In an armed view of zeroes, the kernel lists a discarded page as written.
#[test]
fn discarded_pages_of_an_armed_view_are_not_captured() {
    let _serial = serial();
    for Kind { name, snapshot, bytes } in kinds::all() {
        let mut view = snapshot.view().unwrap();
        let armed = view.set_tracking(Tracking::Armed);
        if supported("discarded_pages_of_an_armed_view_are_not_captured", armed).is_none() {
            return;
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
        for range in kinds::ranges_outside(len) {
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
    // SAFETY: the pages belong to the view, which is borrowed exclusively.
    assert_eq!(unsafe { libc::madvise(start.cast(), range.len(), libc::MADV_DONTNEED) }, 0);
}

/// Other code, such as a balloon or an allocator that returns memory, called `madvise(MADV_DONTNEED)` on
/// captured pages of a view. The kernel lists only private pages, so memsnap assumed that the discarded pages
/// showed what was captured. The next snapshot missed them, and the next restore left them.
#[test]
#[cfg(all(target_os = "linux", not(memsnap_unix)))]
fn pages_that_other_code_discarded_are_found_where_private_pages_are_listed() {
    let test = "pages_that_other_code_discarded_are_found_where_private_pages_are_listed";
    let _serial = serial();
    for tracking in [Tracking::Scan, Tracking::Pagemap, Tracking::Compare] {
        for Kind { name, snapshot, bytes: root } in kinds::all() {
            let what = format!("{tracking}, {name}");
            let view = snapshot.view_with(ViewOptions::new().tracking(tracking));
            let Some(mut view) = supported(test, view) else { return };
            // No pages were searched for yet. The view has copies of some captured pages.
            purge(&mut view, 0..30);
            let shown = view.to_vec();
            assert_same(&what, &read(&view.take_snapshot().unwrap()), &shown);
            view.restore().unwrap();
            assert_same(&what, &view, &root);

            // The pages are discarded after a snapshot, after a restore to it, and after a restore from
            // another snapshot.
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
                    // A discarded page is found once, and again if it is discarded again.
                    view[6 * page_size()] = 9;
                    purge(&mut view, 6..7);
                    assert_same(&what, &read(&view.take_snapshot().unwrap()), &view);
                }
                view.restore_to(&seven).unwrap();
                assert_same(&what, &view, &with_seven);
            }
            // Calls of `stats` in between do not lose the discarded page.
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

/// Other code discarded a captured page after a restore that had started over: it had discarded all of the
/// view, because all of it had been read, and had copied the captured pages into it again.
#[test]
#[cfg(all(target_os = "linux", not(memsnap_unix)))]
fn pages_that_other_code_discarded_are_found_after_a_view_started_over() {
    const PAGES: usize = 8192;
    let test = "pages_that_other_code_discarded_are_found_after_a_view_started_over";
    let _serial = serial();
    let root = common::pattern(PAGES, 1);
    let snapshot = Snapshot::from_slice(&root).unwrap();
    // Such a restore happens once searches that found nothing have taken long enough. It depends on the
    // number of searches when this is.
    for searches in 0..3 {
        // With this budget, a restore discards the pages that were not captured.
        let mut options = ViewOptions::new();
        options.tracking(Tracking::Scan).keep_resident(0);
        let Some(mut view) = supported(test, snapshot.view_with(&options)) else { return };
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

/// Other code called `madvise(MADV_FREE)`, after which the kernel may discard the pages when it needs memory.
#[test]
#[cfg(all(target_os = "linux", not(memsnap_unix)))]
fn pages_that_other_code_freed_are_found_where_private_pages_are_listed() {
    let _serial = serial();
    for tracking in [Tracking::Scan, Tracking::Pagemap, Tracking::Compare] {
        let snapshot = Snapshot::zeroed(40 * page_size()).unwrap();
        let view = snapshot.view_with(ViewOptions::new().tracking(tracking));
        let test = "pages_that_other_code_freed_are_found_where_private_pages_are_listed";
        let Some(mut view) = supported(test, view) else { return };
        view.copy_from_slice(&common::pattern(40, 3));
        let taken = view.take_snapshot().unwrap();
        for paged_out in [false, true] {
            let (start, len) = (view[5 * page_size()..].as_mut_ptr(), 20 * page_size());
            // SAFETY: the pages belong to the view, which is borrowed exclusively.
            assert_eq!(unsafe { libc::madvise(start.cast(), len, libc::MADV_FREE) }, 0);
            if paged_out {
                // SAFETY: as above. A kernel that does not support this leaves the pages.
                unsafe { libc::madvise(start.cast(), len, libc::MADV_PAGEOUT) };
            }
            let shown = view.to_vec();
            assert_same("freed", &read(&view.take_snapshot().unwrap()), &shown);
            view.restore_to(&taken).unwrap();
            assert_same("restored", &view, &common::pattern(40, 3));
        }
    }
}
