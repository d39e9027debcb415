//! How much memory a view keeps in a restore, and how much it gives back.

mod common;

use memsnap::{Snapshot, Tracking, View, ViewOptions, page_size};

const LEN: usize = 96 << 20;

/// The most memory that a view keeps, as documented in `DESIGN.md`.
const KEPT: usize = 64 << 20;

fn pattern(salt: usize) -> Vec<u8> {
    (0..LEN).map(|i| (i / 64 + salt).to_le_bytes()[0]).collect()
}

/// Writes to every page of the view, restores it to `snapshot`, and checks bytes and memory.
fn dirty_and_restore<S>(view: &mut View<S>, snapshot: &Snapshot, bytes: &[u8]) {
    view.chunks_mut(page_size()).for_each(|page| page[9] ^= 0x55);
    view.restore_to(snapshot).unwrap();
    // This comes before any read, since `pagemap` counts zero pages that were read as private.
    let stats = view.stats();
    if stats.tracker != Tracking::Compare {
        // Captured pages that were copied into the view are not mapped below it, so they stay.
        let kept = KEPT + snapshot.stats().captured;
        assert!(stats.private <= kept, "the view keeps {} bytes", stats.private);
    }
    assert!(view[..] == *bytes, "the restore left other bytes");
    assert_eq!(view.changes().unwrap().ranges(), []);
}

#[test]
fn pages_beyond_the_budget_are_given_back_and_show_their_old_bytes() {
    let bytes = pattern(0);
    let snapshot = Snapshot::from_slice(&bytes).unwrap();
    let mut view = snapshot.view().unwrap();
    dirty_and_restore(&mut view, &snapshot, &bytes);
    dirty_and_restore(&mut view, &snapshot, &bytes);
    let zeroed = Snapshot::zeroed(LEN).unwrap();
    let mut view = zeroed.view().unwrap();
    dirty_and_restore(&mut view, &zeroed, &vec![0; LEN]);
}

/// A view kept all pages that it ever wrote, up to its budget, and each later call compared all of them.
/// After 16,000 written pages, restoring a single page took 30 ms.
#[test]
fn pages_that_are_not_written_again_are_given_back() {
    let snapshot = Snapshot::from_slice(&pattern(0)).unwrap();
    let mut view = snapshot.view().unwrap();
    if view.stats().tracker == Tracking::Compare {
        return common::skip(
            "pages_that_are_not_written_again_are_given_back",
            "if all pages are compared, private pages are not known",
        );
    }
    view.chunks_mut(page_size()).step_by(2).for_each(|page| page[0] ^= 1);
    view.restore().unwrap();
    for _ in 0..4 {
        view[5 * page_size()] ^= 1;
        view.restore().unwrap();
    }
    let stats = view.stats();
    // A restore does not compare write-protected pages, so the view may keep them up to the budget.
    let most = if stats.tracker == Tracking::Armed { KEPT } else { 2 * page_size() };
    // If all pages that are not resident must be compared, a view of this size is mapped anew.
    let least = if stats.tracker == Tracking::WorkingSet { 0 } else { page_size() };
    assert!((least..=most).contains(&stats.private), "{stats:?}");
    assert!(view[..] == pattern(0)[..]);
}

/// A view that may keep all its pages keeps pages that were written once, since they may be written again.
///
/// If pages cannot be write-protected, each restore compares the kept pages. So the view gives them back
/// after some restores in which they were not written.
#[test]
fn pages_of_a_small_view_are_kept_for_some_restores() {
    const TEST: &str = "pages_of_a_small_view_are_kept_for_some_restores";
    let bytes = &pattern(0)[..1 << 20];
    let snapshot = Snapshot::from_slice(bytes).unwrap();
    for tracking in [Tracking::Scan, Tracking::Pagemap] {
        let Ok(mut view) = snapshot.view_with(ViewOptions::new().tracking(tracking)) else {
            common::skip(TEST, format!("{tracking} cannot work here"));
            continue;
        };
        for page in (0..200).filter(|page| page % 3 != 0) {
            view[page * page_size()] ^= 1;
        }
        view.restore().unwrap();
        let kept = view.stats().private;
        assert!(kept >= 133 * page_size(), "the view keeps only {kept} bytes");
        for round in 0..100 {
            view[5 * page_size()] ^= 1;
            // This page is written again when the others have been given back.
            if round % 20 == 0 {
                view[7 * page_size()] ^= 1;
            }
            view.restore().unwrap();
            assert!(view[..] == *bytes, "round {round}");
        }
        let kept = view.stats().private;
        // In tier `pagemap`, zero pages that were read count as private, but this view maps a file, not
        // zeroes.
        assert!(kept <= 2 * page_size(), "the view still keeps {kept} bytes");
    }
}

/// Discarding a page shows what the mapping has below it. This differs from the snapshot if the page was
/// copied into the view, or if the mapping was made for another snapshot.
#[test]
fn captured_pages_are_right_whatever_lies_beneath_them() {
    let bytes = pattern(0);
    let root = Snapshot::from_slice(&bytes).unwrap();
    let mut expected = bytes.clone();
    let mut view = root.view().unwrap();
    let third = LEN / 3;
    // Views map the long runs, and copy the single pages.
    for at in (0..third).step_by(page_size()).chain((third..LEN).step_by(5 * page_size())) {
        view[at] ^= 1;
        expected[at] ^= 1;
    }
    let changed = view.take_snapshot().unwrap();
    dirty_and_restore(&mut view, &changed, &expected);
    dirty_and_restore(&mut view, &root, &bytes);
    let mut view = changed.view().unwrap();
    dirty_and_restore(&mut view, &changed, &expected);
    dirty_and_restore(&mut view, &root, &bytes);
    dirty_and_restore(&mut view, &changed, &expected);
}

#[cfg(unix)]
mod unix {
    use super::common::unix::lock;
    use super::*;

    /// A restore that discards all pages finds out at a locked page that it cannot. By then it has discarded
    /// the pages before, including captured pages that had been copied into the view.
    #[test]
    fn a_view_that_is_partly_locked_is_restored() {
        const PAGES: usize = 4000;
        let root = Snapshot::from_slice(&pattern(0)[..PAGES * page_size()]).unwrap();
        let mut expected = pattern(0)[..PAGES * page_size()].to_vec();
        let mut view = root.view().unwrap();
        for page in [3, 77, 2000] {
            view[page * page_size()] ^= 1;
            expected[page * page_size()] ^= 1;
        }
        let changed = view.take_snapshot().unwrap();
        // With nothing to keep, the restore discards all pages, in one call for many runs.
        for (locked, kept) in [PAGES - 1, PAGES / 2, 0].map(|page| [(page, KEPT), (page, 0)]).concat() {
            let mut view = changed.view_with(ViewOptions::new().keep_resident(kept)).unwrap();
            let last = &view[locked * page_size()..][..page_size()];
            if !lock("a_view_that_is_partly_locked_is_restored", last) {
                return;
            }
            for round in 0..10 {
                for page in (round..PAGES).step_by(13).filter(|page| page % 40 != 3) {
                    view[page * page_size() + 5] ^= 1;
                }
                view.restore().unwrap();
                assert!(view[..] == expected, "round {round}, page {locked} locked");
            }
        }
    }
}
