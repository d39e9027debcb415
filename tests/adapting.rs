//! Views show the right bytes after they moved parts of their snapshot to huge pages.
//!
//! So do forked children and other views.
#![cfg(all(target_os = "linux", not(memsnap_unix)))]

mod common;

use common::unix::{Fork, fork};
use common::{assert_same, forced_tier, pattern, serial, skip};
use memsnap::{OwnedView, Snapshot, Tracking, ViewOptions, page_size};

const LEN: usize = 64 << 20;

/// Enough snapshots for a view to move something, even if searches take a twentieth of the usual time.
const TAKES: usize = 20_000;

/// Returns a view of `bytes` that has moved a part of them.
///
/// If no view can, skips `test` and returns `None`.
fn adapted(test: &str, bytes: &[u8]) -> Option<OwnedView> {
    if forced_tier().is_some_and(|tier| tier == "pagemap" || tier == "compare") {
        skip(test, "with this tracking method, views move nothing");
        return None;
    }
    let snapshot = Snapshot::from_slice(bytes).unwrap();
    // With this method, a search takes long enough even in a view of 64 MiB.
    let view = snapshot.into_view_with(ViewOptions::new().tracking(Tracking::Scan));
    let mut view = common::supported(test, view)?;
    for take in 0..TAKES {
        if take % 100 == 0 {
            view.iter().step_by(page_size()).for_each(|&byte| _ = std::hint::black_box(byte));
        }
        view[0] ^= 1;
        view.take_snapshot().unwrap();
        if take % 10 == 9 && view.stats().huge > 0 {
            // These snapshots end the pass, which moves all regions if there is memory for them.
            (0..LEN >> 20).for_each(|_| drop(view.take_snapshot().unwrap()));
            view.restore().unwrap();
            return Some(view);
        }
    }
    skip(test, "the kernel moves no file into huge pages");
    None
}

/// Checks the bytes of the view after writes, snapshots and restores, with each tracking method.
#[track_caller]
fn goes_on(what: &str, view: &mut OwnedView, root: &[u8]) {
    let mut bytes = root.to_vec();
    assert_same(what, view, root);
    for tracking in [Tracking::Scan, Tracking::Armed, Tracking::Pagemap, Tracking::Compare, Tracking::Armed] {
        if view.set_tracking(tracking).is_err() {
            continue;
        }
        for round in 1..5 {
            for at in (round..LEN).step_by(LEN / (40 * round) + 12_345) {
                view[at] ^= 0x3C;
                bytes[at] ^= 0x3C;
            }
            let taken = view.take_snapshot().unwrap();
            assert_same(what, &taken.view().unwrap(), &bytes);
            view[LEN / 3..LEN / 3 + 100 * page_size()].fill(9);
            if round == 2 {
                view.restore().unwrap();
                bytes.copy_from_slice(root);
            } else {
                view.restore_to(&taken).unwrap();
            }
            assert_same(what, view, &bytes);
        }
    }
    view.restore().unwrap();
    assert_same(what, view, root);
}

#[test]
fn a_view_that_is_much_used_moves_its_image_and_stays_exact() {
    let _serial = serial();
    let bytes = pattern(LEN / page_size(), 1);
    let Some(mut view) = adapted("a_view_that_is_much_used_moves_its_image_and_stays_exact", &bytes) else {
        return;
    };
    let costs = view.stats().costs;
    assert!(costs.move_to_huge_page > 0);
    goes_on("the view", &mut view, &bytes);
    let image = view.take_snapshot().unwrap();
    assert!(image.stats().base <= LEN as u64 / 7 * 8);
    goes_on("another view", &mut image.into_view().unwrap(), &bytes);
}

/// A forked child has the huge pages too, but its pages are not write-protected. Both processes stay exact.
#[test]
fn parent_and_child_go_on_in_huge_pages() {
    const TEST: &str = "parent_and_child_go_on_in_huge_pages";
    let _serial = serial();
    let bytes = pattern(LEN / page_size(), 1);
    for tracking in [Tracking::Scan, Tracking::Armed] {
        let Some(mut view) = adapted(TEST, &bytes) else { return };
        if view.set_tracking(tracking).is_err() {
            continue;
        }
        view[5] ^= 1;
        view.take_snapshot().unwrap();
        // No call has found this write yet.
        view[LEN / 2] ^= 1;
        let mut now = bytes.clone();
        now[5] ^= 1;
        now[LEN / 2] ^= 1;
        let go_on = |view: &mut OwnedView, who: &str| {
            view[LEN - 7] ^= 1;
            let mut now = now.clone();
            now[LEN - 7] ^= 1;
            let taken = view.take_snapshot().unwrap();
            assert_same(who, &taken.view().unwrap(), &now);
            view.restore().unwrap();
            goes_on(who, view, &bytes);
        };
        match fork() {
            Fork::InChild(mut parent) => {
                parent.signal();
                go_on(&mut view, "child");
                parent.exit();
            }
            Fork::InParent(mut child) => {
                child.wait();
                go_on(&mut view, "parent");
                child.join();
            }
        }
    }
}
