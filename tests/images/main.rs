//! Views of images need few mappings and little private memory, whatever was captured and where.
#![allow(clippy::single_range_in_vec_init)] // The tests compare lists of ranges.

#[path = "../common/mod.rs"]
mod common;
#[cfg(all(target_os = "linux", not(memsnap_unix)))]
mod linux;

use std::thread;

use common::{assert_same, noise};
use memsnap::{CowView, Snapshot, Tracking, ViewOptions, page_size};

/// Returns whether the tracking method knows which pages are private, rather than which ones may be.
fn knows_private(view: &CowView<'_>) -> bool {
    view.stats().tracker != Tracking::Compare
}

/// Fills `len` pages at each multiple of `step` pages. Each run gets its own bytes.
fn change(bytes: &mut [u8], len: usize, step: usize) {
    for (i, run) in bytes.chunks_mut(step * page_size()).enumerate() {
        run[..len * page_size()].fill((i % 250).to_le_bytes()[0] + 1);
    }
}

#[test]
fn a_long_run_of_changed_pages_is_mapped() {
    for base in [Snapshot::from_slice(&noise(4000 * page_size(), 3)), Snapshot::zeroed(4000 * page_size())] {
        let base = base.unwrap();
        let mut written = base.view().unwrap();
        let run = 1500 * page_size()..2500 * page_size();
        written[run.clone()].fill(0xEE);
        let taken = written.take_snapshot().unwrap();
        assert_eq!(taken.diff(&base).unwrap().ranges(), [run]);
        for _ in 0..3 {
            let view = taken.view().unwrap();
            if knows_private(&view) {
                assert_eq!(view.stats().private, 0, "copied");
            }
            assert!(view.stats().mappings <= 3, "{:?}", view.stats());
            assert_same("mapped", &view, &written);
            // The other tracking methods count a zero page that was read as private.
            if view.stats().tracker == Tracking::Scan {
                assert_eq!(view.stats().private, 0, "reading made pages private");
            }
        }
        let flat = usize::try_from(taken.stats().flat).unwrap();
        assert!(flat >= 1000 * page_size(), "{:?}", taken.stats());
    }
}

#[test]
fn short_runs_of_changed_pages_are_copied() {
    let base = Snapshot::from_slice(&noise(4000 * page_size(), 4)).unwrap();
    let mut written = base.view().unwrap();
    change(&mut written, 2, 100);
    let taken = written.take_snapshot().unwrap();
    let view = taken.view().unwrap();
    assert_eq!(view.stats().mappings, 1, "mapped");
    if knows_private(&view) {
        assert_eq!(view.stats().private, 2 * 40 * page_size());
    }
    assert_same("copied", &view, &written);
}

/// A view opened on a flat image shrinks and then grows. The added pages are mapped as zeroes, whatever the
/// flat file has there. A restore to the image must not assume that they show the flat file.
#[test]
fn a_view_of_a_flat_image_that_shrank_and_grew_shows_it_again() {
    let page = page_size();
    let base = Snapshot::from_slice(&noise(200 * page, 8)).unwrap();
    let mut options = ViewOptions::new();
    options.reserve(400 * page);
    let mut view = base.view_with(&options).unwrap();
    view.grow(300 * page).unwrap();
    change(&mut view, 1, 3);
    let (large, bytes) = (view.take_snapshot().unwrap(), view.to_vec());
    (0..70).for_each(|_| drop(large.view().unwrap()));

    let mut view = large.view_with(&options).unwrap();
    for len in [300 * page, 250 * page] {
        view.restore_to(&base).unwrap();
        assert_same("shrunk", &view, &base.view().unwrap());
        view.grow(len).unwrap();
        assert!(view[200 * page..].iter().all(|&byte| byte == 0), "the added pages are not zero");
        view.restore_to(&large).unwrap();
        assert_same("grown", &view, &bytes);
        view.grow(400 * page).unwrap();
        view.restore().unwrap();
        assert_same("restored", &view, &bytes);
    }
}

/// Returns a base of 64 MiB, a snapshot of it in which each fourth page was captured, and the bytes of the
/// snapshot.
fn scattered() -> (Snapshot, Snapshot, Vec<u8>) {
    let mut bytes = noise(64 << 20, 5);
    let base = Snapshot::from_slice(&bytes).unwrap();
    let mut view = base.view().unwrap();
    change(&mut view, 1, 4);
    change(&mut bytes, 1, 4);
    let taken = view.take_snapshot().unwrap();
    drop(view);
    (base, taken, bytes)
}

#[test]
fn the_hundredth_view_of_an_image_costs_what_one_of_a_flat_image_does() {
    let (base, taken, bytes) = scattered();
    assert_eq!(taken.stats().captured, bytes.len() / 4);
    let mut first = taken.view().unwrap();
    assert_same("first", &first, &bytes);
    for _ in 0..100 {
        let view = taken.view().unwrap();
        assert_eq!(view[..page_size()], bytes[..page_size()]);
    }

    let mut view = taken.view().unwrap();
    for _ in 0..2 {
        assert_eq!(view.stats().mappings, 1);
        if knows_private(&view) {
            assert_eq!(view.stats().private, 0);
        }
        assert_same("flat", &view, &bytes);
    }
    let flat = usize::try_from(taken.stats().flat).unwrap();
    assert!(flat <= bytes.len() + page_size(), "{flat} bytes for an image of {}", bytes.len());
    assert_eq!(taken.stats().captured, bytes.len() / 4);

    // Restores between such views, and to related snapshots, are exact too.
    let root = base.view().unwrap();
    for (which, view) in [("first", &mut first), ("flat", &mut view)] {
        view[7 * page_size()..9 * page_size()].fill(7);
        let changed = view.to_vec();
        assert_eq!(view.changes().unwrap().ranges(), [7 * page_size()..9 * page_size()], "{which}");
        let child = view.take_snapshot().unwrap();
        view.restore().unwrap();
        assert_same(which, view, &bytes);
        view.restore_to(&base).unwrap();
        assert_same(which, view, &root);
        view.restore_to(&child).unwrap();
        assert_same(which, view, &changed);
        assert_same(which, &child.view().unwrap(), &changed);
        view.restore_to(&taken).unwrap();
        assert_same(which, view, &bytes);
        assert_eq!(view.changes().unwrap().ranges(), []);
    }
}

#[test]
fn threads_that_view_one_image_at_the_same_time_see_the_same_bytes() {
    let (base, taken, bytes) = scattered();
    let root = base.view().unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let mut view = taken.view().unwrap();
                    for page in (0..bytes.len()).step_by(page_size()) {
                        assert_eq!(view[page..page + 64], bytes[page..page + 64], "at {page}");
                    }
                    view[5 * page_size()] ^= 0xFF;
                }
                assert_same("at last", &taken.view().unwrap(), &bytes);
            });
        }
    });
    let view = taken.view().unwrap();
    assert_eq!(view.stats().mappings, 1);
    if knows_private(&view) {
        assert_eq!(view.stats().private, 0, "the image is not flat after so many views");
    }
    assert_same("base", &base.view().unwrap(), &root);
}
