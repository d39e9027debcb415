//! A process that cannot map more address space.

use std::sync::Arc;

use memsnap::{Snapshot, page_size};

use super::common::linux::with_steady_heap;
use super::common::unix::Limit;
use super::common::{assert_same, message, noise};
use super::{ADDRESS_SPACE, assert_holds, assert_tells, tier, touch};

#[test]
fn without_address_space_views_fail_and_work_later() {
    const TEST: &str = "without_address_space_views_fail_and_work_later";
    with_steady_heap(TEST, || {
        let bytes = noise(8 << 20, 3);
        let mut snapshot = Arc::new(Snapshot::from_slice(&bytes).unwrap());
        let zero = Snapshot::zeroed(64 << 20).unwrap();
        let mut open = snapshot.view_arc().unwrap();
        open[0] ^= 0xFF;
        open.changes().unwrap();

        let limit = Limit::address_space(0);
        let size = bytes.len().to_string();
        for error in [snapshot.view().err(), snapshot.view_arc().err()] {
            let error = error.expect("a view without address space");
            assert_tells(&error, "view", ADDRESS_SPACE);
            assert_tells(&error, &size, ADDRESS_SPACE);
        }
        let error = zero.view().expect_err("a view without address space");
        assert_tells(&error, &(64_usize << 20).to_string(), ADDRESS_SPACE);
        open.restore().unwrap();
        assert_same("open", &open, &bytes);
        drop(open);
        // The addresses of the failed view are free again.
        assert_same("reopened", &snapshot.view().unwrap(), &bytes);
        drop(limit);

        assert_holds("afterwards", &snapshot, &bytes);
        assert_eq!(zero.view().unwrap().len(), 64 << 20);

        let limit = Limit::address_space(0);
        let handle = Arc::get_mut(&mut snapshot).unwrap();
        let error = handle.view_mut().expect_err("a mutable view without address space");
        assert_tells(&error, &size, ADDRESS_SPACE);
        let mut zero = zero;
        zero.view_mut().expect_err("a mutable view without address space");
        drop(limit);
        handle.view_mut().unwrap().fill(1);
        assert_holds("mutable afterwards", handle, &vec![1; bytes.len()]);
    });
}

#[test]
fn without_address_space_for_captured_pages_taking_fails_and_works_later() {
    const TEST: &str = "without_address_space_for_captured_pages_taking_fails_and_works_later";
    with_steady_heap(TEST, || {
        let bytes = noise(16 << 20, 4);
        let snapshot = Snapshot::from_slice(&bytes).unwrap();
        let mut view = snapshot.view().unwrap();
        assert_eq!(view.changes().unwrap().ranges(), []);
        // The first capture fails, and later a capture that needs more memory than the store has at hand.
        let mut before = (view.take_snapshot().unwrap(), bytes.clone());
        let mut changed = bytes.clone();
        for pages in [100, 2000] {
            touch(&mut view, pages);
            touch(&mut changed, pages);
            let changes = view.changes().unwrap().ranges();
            let kept = view.to_vec();
            let limit = Limit::address_space(0);
            for _ in 0..2 {
                let error = view.take_snapshot().unwrap_err();
                assert_tells(&error, "pages of a snapshot", ADDRESS_SPACE);
                assert_tells(&error, " bytes)", ADDRESS_SPACE);
                assert_same("view", &view, &changed);
                assert_eq!(
                    view.changes().unwrap().ranges(),
                    changes,
                    "a failed capture changed what counts as dirty"
                );
            }
            // Existing snapshots and views are not affected.
            view.restore_to(&before.0).unwrap();
            assert_same("restored to", &view, &before.1);
            view.copy_from_slice(&kept);
            drop(limit);

            let taken = view.take_snapshot().unwrap();
            assert_holds("taken", &taken, &changed);
            assert_holds("before", &before.0, &before.1);
            assert_eq!(view.changes().unwrap().ranges(), []);
            before = (taken, changed.clone());
        }
        view.restore().unwrap();
        assert_same("restored", &view, &bytes);
        assert_holds("snapshot", &snapshot, &bytes);
    });
}

#[test]
fn without_address_space_for_the_base_comparing_fails_and_works_later() {
    const TEST: &str = "without_address_space_for_the_base_comparing_fails_and_works_later";
    with_steady_heap(TEST, || {
        let bytes = noise(16 << 20, 5);
        let snapshot = Snapshot::from_slice(&bytes).unwrap();
        let stranger = Snapshot::from_slice(&bytes[1..]).unwrap();
        let mut views = [(); 2].map(|()| snapshot.view().unwrap());
        let mut changed = bytes.clone();
        changed[70 * page_size()] ^= 0xFF;
        views.iter_mut().for_each(|view| view[70 * page_size()] ^= 0xFF);
        let [mut view, mut other] = views;
        // After this search, the process has all that it needs to search for written pages. Only the base is
        // not mapped yet.
        Snapshot::zeroed(1).unwrap().view().unwrap().changes().unwrap();

        let limit = Limit::address_space(0);
        let size = bytes.len().to_string();
        for _ in 0..2 {
            for error in [
                view.changes().map(drop),
                view.take_snapshot().map(drop),
                view.restore(),
                snapshot.read_at(&mut [0; 10], 5).map(drop),
                snapshot.diff(&stranger).map(drop),
            ] {
                let error = error.unwrap_err();
                assert_tells(&error, "base of an image", ADDRESS_SPACE);
                assert_tells(&error, &size, ADDRESS_SPACE);
            }
            assert_same("view", &view, &changed);
        }
        // An unrelated snapshot is mapped over the view, which takes no more addresses.
        other.restore_to(&stranger).unwrap();
        assert_same("stranger", other.content(), &bytes[1..]);
        drop(limit);

        assert_eq!(view.changes().unwrap().ranges(), [70 * page_size()..71 * page_size()]);
        let taken = view.take_snapshot().unwrap();
        assert_holds("taken", &taken, &changed);
        view.restore().unwrap();
        assert_same("restored", &view, &bytes);
        other.restore_to(&taken).unwrap();
        assert_same("restored to", &other, &changed);
        assert_eq!(snapshot.diff(&stranger).unwrap().len(), 1);
        let fresh = tier(&snapshot.view().unwrap());
        assert_eq!(tier(&view), fresh, "a past shortage changed the tracking method");
    });
}

#[test]
fn a_first_capture_without_address_space_fails_clearly_and_works_later() {
    const TEST: &str = "a_first_capture_without_address_space_fails_clearly_and_works_later";
    with_steady_heap(TEST, || {
        let zero = Snapshot::zeroed(100 * page_size()).unwrap();
        let mut view = zero.view().unwrap();
        view[5 * page_size()] = 1;

        // No written pages were searched for yet.
        let limit = Limit::address_space(0);
        let size = view.len().to_string();
        if let Err(error) = view.changes() {
            assert_tells(&error, &size, ADDRESS_SPACE);
        }
        let error = view.take_snapshot().unwrap_err();
        assert!(message(&error).contains(ADDRESS_SPACE), "{error}");
        drop(limit);

        assert_eq!(view.changes().unwrap().ranges(), [5 * page_size()..6 * page_size()]);
        assert_eq!(
            view.take_snapshot().unwrap().diff(&zero).unwrap().ranges(),
            [5 * page_size()..6 * page_size()]
        );
        let fresh = tier(&zero.view().unwrap());
        assert_eq!(tier(&view), fresh, "a past shortage changed the tracking method");
    });
}

#[test]
fn without_address_space_restore_to_works_or_can_be_repeated() {
    const TEST: &str = "without_address_space_restore_to_works_or_can_be_repeated";
    with_steady_heap(TEST, || {
        let bytes = noise(4 << 20, 6);
        let mut changed = bytes.clone();
        touch(&mut changed, 300);
        changed[500 * page_size()..600 * page_size()].fill(1);
        let zero = Snapshot::zeroed(bytes.len()).unwrap();
        let mut targets = Vec::new();
        for (made, held) in [(&zero, vec![0; bytes.len()]), (&Snapshot::from_slice(&bytes).unwrap(), bytes)] {
            let mut view = made.view().unwrap();
            view.copy_from_slice(&changed);
            targets.push((view.take_snapshot().unwrap(), changed.clone()));
            targets.push((made.clone(), held));
        }
        for (from, bytes) in &targets {
            for (to, target) in &targets {
                // The snapshots are new in each round, so that nothing is mapped or made flat yet.
                let fresh = Snapshot::from_slice(bytes).unwrap();
                for start in [from, &fresh] {
                    let mut view = start.view().unwrap();
                    view[9 * page_size()] ^= 0xFF;
                    let mut shows = bytes.clone();
                    shows[9 * page_size()] ^= 0xFF;

                    let limit = Limit::address_space(0);
                    match view.restore_to(to) {
                        Ok(()) => assert_same("at the limit", &view, target),
                        Err(error) => assert_tells(&error, &bytes.len().to_string(), ADDRESS_SPACE),
                    }
                    if let Ok(taken) = view.take_snapshot() {
                        shows = view.to_vec();
                        drop(taken);
                    }
                    drop(limit);

                    let taken = view.take_snapshot().unwrap();
                    assert_holds("taken", &taken, &view);
                    view.restore_to(to).unwrap();
                    assert_same("afterwards", &view, target);
                    view.restore_to(&taken).unwrap();
                    assert_eq!(view.len(), shows.len());
                    view.restore().unwrap();
                    assert_same("back", &view, bytes);
                }
            }
        }
    });
}

#[test]
fn a_mutable_view_filled_in_place_needs_no_address_space_to_end() {
    const TEST: &str = "a_mutable_view_filled_in_place_needs_no_address_space_to_end";
    with_steady_heap(TEST, || {
        let bytes = noise(8 << 20, 10);
        for commit in [false, true] {
            let mut snapshot = Snapshot::zeroed(bytes.len()).unwrap();
            let mut view = snapshot.view_mut().unwrap();
            view.copy_from_slice(&bytes);
            let limit = Limit::address_space(0);
            if commit {
                view.commit().unwrap();
            } else {
                drop(view);
            }
            drop(limit);
            assert_holds("filled", &snapshot, &bytes);
        }
    });
}
