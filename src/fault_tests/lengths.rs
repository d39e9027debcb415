//! Views and images that a failed restore left at another length.

use super::{TRACKINGS, assert_shows, shown_and_held};
use crate::sys::fault;
use crate::{Snapshot, ViewOptions, page_size};

/// Calls `script` with the number of the first system call that is to fail: 0, 1, and so on. Ends when
/// `script` returns false, because nothing failed.
fn with_each_failure_from(mut script: impl FnMut(u64) -> bool) {
    let failed = (0..).take_while(|&first| script(first)).count();
    assert!(failed > 0, "nothing failed");
}

/// A restore to a shorter snapshot failed after it had shortened the view, and left `synced` as it was. When
/// the view grew again, it showed zeroes, but its next snapshot held the old bytes. A restore to the longer
/// snapshot left the zeroes.
#[test]
fn a_view_that_grows_after_a_failed_restore_shows_what_its_snapshot_holds() {
    let page = page_size();
    for base in [Snapshot::zeroed(4 * page).unwrap(), Snapshot::from_slice(&vec![1; 4 * page]).unwrap()] {
        for tracking in TRACKINGS {
            let mut options = ViewOptions::new();
            let Ok(mut view) = base.view_with(options.reserve(64 * page).tracking(tracking)) else {
                continue;
            };
            view.grow(30 * page).unwrap();
            view[6 * page..].fill(7);
            let long = view.take_snapshot().unwrap();
            let mut bytes = view.to_vec();
            bytes[4 * page..].fill(0);
            let long_bytes = view.to_vec();
            with_each_failure_from(|first| {
                let mut view = long.view_with(&options).unwrap();
                // This write-protects the pages, if possible.
                view[0] ^= 1;
                view.take_snapshot().unwrap();
                view.restore_to(&long).unwrap();
                let (restored, _) = fault::inject(first, u64::MAX, || view.restore_to(&base));
                if restored.is_err() && view.len() == 4 * page {
                    let mut shown = view.to_vec();
                    shown.resize(30 * page, 0);
                    view.grow(30 * page).unwrap();
                    shown_and_held(&view, &shown, "grown after a failure");
                    view[20 * page] = 3;
                    shown[20 * page] = 3;
                    shown_and_held(&view, &shown, "written after that");
                    view.restore_to(&base).unwrap();
                    view.grow(30 * page).unwrap();
                    shown_and_held(&view, &bytes, "grown after a restore");
                }
                view.restore_to(&long).unwrap();
                shown_and_held(&view, &long_bytes, "restored");
                restored.is_err()
            });
        }
    }
}

/// A failed restore had shortened a view, so that an image taken of it was shorter than the file that is its
/// base. When a view of this image grew, its next snapshot contained the bytes of the file behind the end of
/// the image. A restore to an image with these bytes left zeroes.
#[test]
fn what_is_behind_the_end_of_an_image_is_gone() {
    let page = page_size();
    let long_bytes = vec![8; 80 * page];
    let long = Snapshot::from_slice(&long_bytes).unwrap();
    let short = Snapshot::from_slice(&vec![5; 35 * page]).unwrap();
    for tracking in TRACKINGS {
        let mut options = ViewOptions::new();
        if long.view_with(options.reserve(100 * page).tracking(tracking)).is_err() {
            continue;
        }
        let mut torn = Vec::new();
        with_each_failure_from(|first| {
            let mut view = long.view_with(&options).unwrap();
            view[0] = 9;
            let (restored, _) = fault::inject(first, u64::MAX, || view.restore_to(&short));
            if restored.is_ok() || view.len() != short.len() || torn.len() > 3 {
                return restored.is_err();
            }
            let bytes = view.to_vec();
            let taken = view.take_snapshot().unwrap();
            assert_shows(&taken, &bytes);
            shorter_than_its_base(&taken, &bytes, &long, &long_bytes, &options);
            // This opens enough views for the image to become one flat file, and repeats the check.
            (0..70).for_each(|_| drop(taken.view().unwrap()));
            shorter_than_its_base(&taken, &bytes, &long, &long_bytes, &options);
            torn.push(taken);
            true
        });
        assert!(!torn.is_empty(), "{tracking:?}: no restore failed after it had shortened the view");
    }
}

fn shorter_than_its_base(
    taken: &Snapshot,
    bytes: &[u8],
    long: &Snapshot,
    long_bytes: &[u8],
    options: &ViewOptions,
) {
    let mut grown = bytes.to_vec();
    grown.resize(long_bytes.len(), 0);
    let mut view = taken.view_with(options).unwrap();
    view.grow(grown.len()).unwrap();
    shown_and_held(&view, &grown, "grown");
    let longer = view.take_snapshot().unwrap();
    assert_shows(&longer, &grown);
    let differing = longer.diff(long).unwrap().ranges();
    assert_eq!(differing.last().unwrap().end, long_bytes.len());
    for target in [long, &longer, taken, &longer, long, taken, long] {
        view.restore_to(target).unwrap();
        let mut expected = vec![0xA5; target.len()];
        target.read_at(&mut expected, 0).unwrap();
        shown_and_held(&view, &expected, "restored to another");
    }
    shown_and_held(&longer.view().unwrap(), &grown, "a view of the grown snapshot");
    let mut view = taken.view_with(options).unwrap();
    view.restore_to(long).unwrap();
    shown_and_held(&view, long_bytes, "restored to the long one");
}
