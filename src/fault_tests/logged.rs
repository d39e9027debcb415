//! Failures of system calls in logged views. No report is lost before its page is captured or restored.

use std::io;

use super::{PAGES, assert_shows, pattern};
use crate::sys::fault;
use crate::{Logged, LoggedView, Snapshot, Tracking, ViewOptions, page_size};

/// An operation on a logged view, in which a system call may fail.
type OnLogged = fn(&mut LoggedView<&Snapshot>, &Snapshot) -> io::Result<()>;

/// If a call fails, the view is unchanged or can be restored, and the next snapshot is exact.
#[test]
fn no_failure_loses_what_was_reported() {
    let page = page_size();
    let operations: [(&str, OnLogged); 9] = [
        ("take", |view, _| view.take_snapshot().map(drop)),
        ("changes", |view, _| view.changes().map(drop)),
        ("restore", |view, _| view.restore()),
        ("restore to another", |view, other| view.restore_to(other)),
        ("restore in part", |view, _| {
            let page = page_size();
            view.restore_excluding(&[3 * page..20 * page, 22 * page + 1..22 * page + 9])
        }),
        ("grow", |view, _| view.grow(300 * page_size())),
        ("zero", |view, _| view.zero(5 * page_size() + 1..50 * page_size())),
        ("discard", |view, _| view.discard(5 * page_size() + 1..50 * page_size())),
        ("set tracking", |view, _| view.set_tracking(Tracking::Compare)),
    ];
    let bytes = pattern(1);
    let roots = [Snapshot::from_slice(&bytes).unwrap(), Snapshot::zeroed(bytes.len()).unwrap()];
    for (root, others) in roots.iter().flat_map(|root| [(root, 20), (root, PAGES), (root, 200)]) {
        let mut root_bytes = vec![0; bytes.len()];
        root.read_at(&mut root_bytes, 0).unwrap();
        let other = Snapshot::from_slice(&vec![3; others * page]).unwrap();
        for (what, operation) in operations {
            for (kept, checks) in [(0, true), (usize::MAX, true), (3 * page, false)] {
                let options = logged_options(kept, checks);
                // One call fails, or all calls from one on, until the operation makes fewer calls.
                for first in 0.. {
                    let failures = [1, u64::MAX].map(|count| {
                        let mut view = root.view_with(&options).unwrap();
                        write_logged(&mut view, 6);
                        let earlier = view.take_snapshot().unwrap();
                        let earlier_bytes = view.to_vec();
                        write_logged(&mut view, 5);
                        let before = view.to_vec();
                        let (done, _) = fault::inject(first, count, || operation(&mut view, &other));
                        if done.is_err() && !what.starts_with("restore") && !view.is_empty() {
                            assert!(*view == *before, "a failed call changed the view: {what}");
                        }
                        if view.is_empty() {
                            // On Windows, there was no memory for zeroes either.
                            view.restore().unwrap();
                        }
                        let (shown, name) =
                            (view.to_vec(), format!("{what}, in which {count} calls from {first} on failed"));
                        let taken = view.take_snapshot().unwrap();
                        assert_shows(&taken, &shown);
                        view.restore().unwrap();
                        assert!(*view == *root_bytes, "restored after {name}");
                        view.restore_to(&earlier).unwrap();
                        assert!(*view == *earlier_bytes, "restored to an earlier one after {name}");
                        view.restore_to(&taken).unwrap();
                        assert!(*view == *shown, "restored to what was taken after {name}");
                        done.is_err()
                    });
                    if failures == [false; 2] {
                        break;
                    }
                }
            }
        }
    }
}

/// A restore works after failed restores, even without a snapshot in between.
#[test]
fn a_restore_of_a_logged_view_puts_right_what_a_failed_one_left() {
    let page = page_size();
    let bytes = pattern(1);
    for root in [Snapshot::from_slice(&bytes).unwrap(), Snapshot::zeroed(bytes.len()).unwrap()] {
        let mut root_bytes = vec![0; bytes.len()];
        root.read_at(&mut root_bytes, 0).unwrap();
        for (kept, others) in [0, 3 * page, usize::MAX].into_iter().flat_map(|kept| [(kept, 20), (kept, 200)])
        {
            let other = Snapshot::from_slice(&vec![3; others * page]).unwrap();
            for (first, count) in (0..12).flat_map(|first| [(first, 1), (first, u64::MAX)]) {
                let mut view = root.view_with(&logged_options(kept, first % 2 == 0)).unwrap();
                write_logged(&mut view, 6);
                let earlier = view.take_snapshot().unwrap();
                let earlier_bytes = view.to_vec();
                for (target, target_bytes) in [(&root, &root_bytes), (&earlier, &earlier_bytes)] {
                    write_logged(&mut view, 5);
                    view.zero(40 * page..60 * page).unwrap();
                    let _ = fault::inject(first, count, || view.restore_to(&other));
                    if view.len() > 10 * page {
                        view.get_mut(9 * page..10 * page).unwrap().fill(1);
                    }
                    let _ = fault::inject(first, count, || view.restore_to(&root));
                    view.restore_to(target).unwrap();
                    assert!(*view == **target_bytes, "restored after {count} calls from {first} on failed");
                }
            }
        }
    }
}

fn logged_options(kept: usize, checks: bool) -> ViewOptions<Logged> {
    let mut options = ViewOptions::logged();
    options.checked(checks).keep_resident(kept).reserve(300 * page_size());
    options
}

/// Writes to the same pages as `edit`, and reports them.
fn write_logged(view: &mut LoggedView<&Snapshot>, value: u8) {
    let page = page_size();
    for range in [3 * page..80 * page, 90 * page + 7..90 * page + 8, 99 * page..99 * page + 1] {
        view.get_mut(range).unwrap().fill(value);
    }
}
