//! Changes of a mutable view that could not be captured when the view ended.

use std::io;
use std::sync::Arc;

use memsnap::Snapshot;

use super::common::linux::with_steady_heap;
use super::common::unix::Limit;
use super::common::{assert_same, message, noise, padded};
use super::{ADDRESS_SPACE, assert_holds, assert_tells, touch};

type Call = (&'static str, fn(&mut Arc<Snapshot>) -> io::Result<()>);

/// Returns all calls on a snapshot that can fail.
fn calls() -> Vec<Call> {
    vec![
        ("view", |snapshot| snapshot.view().map(drop)),
        ("view_mut", |snapshot| Arc::get_mut(snapshot).unwrap().view_mut().map(drop)),
        ("view_arc", |snapshot| snapshot.view_arc().map(drop)),
        ("try_clone", |snapshot| snapshot.try_clone().map(drop)),
        ("read_at", |snapshot| snapshot.read_at(&mut [0; 9], 3).map(drop)),
        ("diff", |snapshot| snapshot.diff(&Snapshot::zeroed(1)?).map(drop)),
        ("diff, the other side", |snapshot| Snapshot::zeroed(1)?.diff(snapshot).map(drop)),
    ]
}

#[test]
fn changes_that_cannot_be_captured_at_a_drop_are_kept_and_reported() {
    const TEST: &str = "changes_that_cannot_be_captured_at_a_drop_are_kept_and_reported";
    with_steady_heap(TEST, || {
        for (call, run) in calls() {
            for commit in [false, true] {
                let what = format!("{call}, {}", if commit { "commit" } else { "drop" });
                let bytes = noise((4 << 20) + 5, 7);
                let mut changed = padded(bytes.clone());
                touch(&mut changed, 500);
                let mut snapshot = Arc::new(Snapshot::from_slice(&bytes).unwrap());
                let earlier = Snapshot::clone(&snapshot);
                let mut view = Arc::get_mut(&mut snapshot).unwrap().view_mut().unwrap();
                view.copy_from_slice(&changed);
                assert!(!view.changes().unwrap().is_empty());

                let limit = Limit::address_space(0);
                if commit {
                    assert_tells(&view.commit().unwrap_err(), "kept", ADDRESS_SPACE);
                } else {
                    drop(view);
                }
                // These calls return no errors. They must not panic either.
                assert_eq!((snapshot.len(), snapshot.content_len()), (changed.len(), bytes.len()), "{what}");
                let _ = (snapshot.is_empty(), snapshot.stats(), format!("{snapshot:?}"));
                let clone = Snapshot::clone(&snapshot);
                for _ in 0..3 {
                    let error = run(&mut snapshot).expect_err(&what);
                    assert_tells(&error, "pages of a snapshot", ADDRESS_SPACE);
                }
                drop(limit);

                run(&mut snapshot).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_holds(&what, &snapshot, &changed);
                assert_holds(&what, &clone, &changed);
                assert_eq!(snapshot.diff(&clone).unwrap().ranges(), [], "{what}");
                assert_holds(&what, &earlier, &padded(bytes.clone()));
                let handle = Arc::get_mut(&mut snapshot).unwrap();
                handle.view_mut().unwrap()[1] ^= 0xFF;
                changed[1] ^= 0xFF;
                assert_holds(&what, handle, &changed);
            }
        }
    });
}

#[test]
fn an_error_at_a_drop_is_reported_once_even_if_there_is_room_again() {
    const TEST: &str = "an_error_at_a_drop_is_reported_once_even_if_there_is_room_again";
    with_steady_heap(TEST, || {
        for (call, run) in calls() {
            let bytes = noise(4 << 20, 8);
            let mut changed = bytes.clone();
            touch(&mut changed, 500);
            let mut snapshot = Arc::new(Snapshot::from_slice(&bytes).unwrap());
            let mut view = Arc::get_mut(&mut snapshot).unwrap().view_mut().unwrap();
            view.copy_from_slice(&changed);
            let limit = Limit::address_space(0);
            drop(view);
            drop(limit);
            let error = run(&mut snapshot).expect_err(call);
            assert!(message(&error).len() > 20, "{call}: {error}");
            run(&mut snapshot).unwrap_or_else(|error| panic!("{call}, again: {error}"));
            assert_holds(call, &snapshot, &changed);
        }
    });
}

#[test]
fn kept_changes_can_be_shown_by_another_view() {
    const TEST: &str = "kept_changes_can_be_shown_by_another_view";
    with_steady_heap(TEST, || {
        let bytes = noise(4 << 20, 9);
        let mut changed = bytes.clone();
        touch(&mut changed, 500);
        let mut snapshot = Snapshot::from_slice(&bytes).unwrap();
        let original = snapshot.clone();
        let mut other = original.view().unwrap();
        other[5] ^= 0xFF;
        let mut others = bytes;
        others[5] ^= 0xFF;
        let mut view = snapshot.view_mut().unwrap();
        view.copy_from_slice(&changed);
        view.changes().unwrap();
        let limit = Limit::address_space(0);
        view.commit().unwrap_err();
        other.restore_to(&snapshot).unwrap_err();
        assert_same("unchanged by the failure", &other, &others);
        drop(limit);
        other.restore_to(&snapshot).unwrap();
        assert_same("restored to", &other, &changed);
    });
}
