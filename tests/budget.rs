//! What a view keeps in memory through a restore, and what it gives back.

mod common;

use memsnap::{Snapshot, Tracking, View, ViewOptions, page_size};

const LEN: usize = 96 << 20;

/// The most that a view keeps, as documented in `DESIGN.md`.
const KEPT: usize = 64 << 20;

fn pattern(salt: usize) -> Vec<u8> {
    (0..LEN).map(|i| (i / 64 + salt).to_le_bytes()[0]).collect()
}

/// Writes to every page of the view, restores it to `snapshot`, and checks bytes and memory.
fn dirty_and_restore<S>(view: &mut View<S>, snapshot: &Snapshot, bytes: &[u8]) {
    view.chunks_mut(page_size()).for_each(|page| page[9] ^= 0x55);
    view.restore_to(snapshot).unwrap();
    // Before anything is read: of zeroes that were, `pagemap` cannot tell that they were not written.
    let stats = view.stats();
    if stats.tracker != Tracking::Compare {
        // Captured pages that were copied into the view have nothing beneath them to go back to.
        let kept = KEPT + snapshot.stats().captured;
        assert!(stats.private <= kept, "{} bytes are kept", stats.private);
    }
    assert!(view[..] == *bytes, "a restore left something else behind");
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

/// A view once kept all pages that it ever wrote, up to the budget, and each later call compared them all:
/// after 16,000 pages, restoring a single one took 30 ms.
#[test]
fn pages_that_are_not_written_again_are_given_back() {
    let snapshot = Snapshot::from_slice(&pattern(0)).unwrap();
    let mut view = snapshot.view().unwrap();
    if view.stats().tracker == Tracking::Compare {
        return common::skip(
            "pages_that_are_not_written_again_are_given_back",
            "which pages are private is not known where all are compared",
        );
    }
    view.chunks_mut(page_size()).step_by(2).for_each(|page| page[0] ^= 1);
    view.restore().unwrap();
    for _ in 0..4 {
        view[5 * page_size()] ^= 1;
        view.restore().unwrap();
    }
    let stats = view.stats();
    // Closed pages are not compared, so that they may stay up to the budget.
    let most = if stats.tracker == Tracking::Armed { KEPT } else { 2 * page_size() };
    // Where all must be compared that is not in memory, a view of this size is mapped anew.
    let least = if stats.tracker == Tracking::WorkingSet { 0 } else { page_size() };
    assert!((least..=most).contains(&stats.private), "{stats:?}");
    assert!(view[..] == pattern(0)[..]);
}

/// A view that may keep all its pages keeps those that were written once, for they may be written again. Where pages
/// cannot be closed each restore compares them, so that they are given back after some restores without a write.
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
        assert!(kept >= 133 * page_size(), "{kept} bytes are kept");
        for round in 0..100 {
            view[5 * page_size()] ^= 1;
            // A page that comes back when the others go.
            if round % 20 == 0 {
                view[7 * page_size()] ^= 1;
            }
            view.restore().unwrap();
            assert!(view[..] == *bytes, "round {round}");
        }
        let kept = view.stats().private;
        // Zero pages that were read count in tier `pagemap`, but this is a file.
        assert!(kept <= 2 * page_size(), "{kept} bytes are kept in the end");
    }
}

/// Discarding a page brings back what the mapping shows, which is not the snapshot's page where that was
/// copied into the view, or where the view was laid out for another snapshot.
#[test]
fn captured_pages_are_right_whatever_lies_beneath_them() {
    let bytes = pattern(0);
    let root = Snapshot::from_slice(&bytes).unwrap();
    let mut expected = bytes.clone();
    let mut view = root.view().unwrap();
    let third = LEN / 3;
    // Long runs, which views map, and single pages, which they copy.
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

    /// A restore that would rather give back everything at once finds out at locked memory that it cannot, when what
    /// comes before is gone already: among that, captured pages that had been copied into the view.
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
        // With nothing to be kept all is discarded, with one call for many runs.
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
