//! A process that cannot make more mappings.

use std::io;

use memsnap::{CowView, Snapshot, page_size};

use super::common::linux::{mappings_limit, with_steady_heap};
use super::common::maps::memory;
use super::common::{assert_same, noise, skip};
use super::{MAPPINGS, assert_holds, assert_tells, tier, touch};

/// Opens views of a snapshot until that fails, so that no mapping is left. Returns them with the error.
fn open_all(one: &Snapshot, limit: usize) -> (Vec<CowView<'_>>, io::Error) {
    let mut views = Vec::with_capacity(limit);
    loop {
        assert!(views.len() < limit, "there are more views than the limit of mappings");
        match one.view() {
            Ok(view) => views.push(view),
            Err(error) => return (views, error),
        }
    }
}

#[test]
fn with_all_mappings_used_up_what_exists_goes_on() {
    const TEST: &str = "with_all_mappings_used_up_what_exists_goes_on";
    with_steady_heap(TEST, || {
        let limit = match mappings_limit() {
            Ok(limit) => limit,
            Err(reason) => return skip(TEST, reason),
        };
        let bytes = noise(20 * page_size(), 11);
        let mut changed = bytes.clone();
        touch(&mut changed, 10);
        let small = noise(page_size(), 12);
        let snapshot = Snapshot::from_slice(&bytes).unwrap();
        let one = Snapshot::from_slice(&small).unwrap();
        one.read_at(&mut [0], 0).unwrap();
        let mut view = snapshot.view().unwrap();
        view.copy_from_slice(&changed);
        let taken = view.take_snapshot().unwrap();
        let mut committed = snapshot.clone();
        let mut mutable = committed.view_mut().unwrap();

        let (mut views, error) = open_all(&one, limit);
        assert_tells(&error, "view", MAPPINGS);
        assert_tells(&error, &small.len().to_string(), MAPPINGS);
        assert!(
            views.len() > limit - 5000,
            "only {} views could be opened with {limit} mappings",
            views.len()
        );

        for view in &views {
            assert_same("one of many", view, &small);
        }
        for (i, view) in (0_u8..).zip(views.iter_mut().step_by(1000)) {
            view[7] = !i;
            assert_eq!(view.changes().unwrap().ranges(), [0..page_size()]);
            view.restore().unwrap();
            assert_same("one of many, restored", view, &small);
        }
        for _ in 0..20 {
            view.restore().unwrap();
            assert_same("restored", &view, &bytes);
            view.restore_to(&taken).unwrap();
            assert_same("restored to", &view, &changed);
            view[3] ^= 1;
            // The store has slots for these captured pages.
            let again = view.take_snapshot().unwrap();
            assert_eq!(again.diff(&taken).unwrap().ranges(), [0..page_size()]);
            view.restore_to(&again).unwrap();
        }
        mutable.copy_from_slice(&changed);
        mutable.commit().unwrap();
        let mut read = vec![0; bytes.len()];
        committed.read_at(&mut read, 0).unwrap();
        assert_same("committed", &read, &changed);

        // The store may have no slots left for this page.
        let large = &mut views[5];
        large[0] ^= 1;
        match large.take_snapshot() {
            Ok(again) => assert_eq!(again.diff(&one).unwrap().ranges(), [0..page_size()]),
            Err(error) => assert_tells(&error, "pages of a snapshot", MAPPINGS),
        }

        views.truncate(limit - 5000 - 10);
        let again: Vec<_> = (0..10).map(|_| snapshot.view().unwrap()).collect();
        again.iter().for_each(|view| assert_same("opened again", view, &bytes));
        assert_holds("snapshot", &snapshot, &bytes);
        assert_holds("taken", &taken, &changed);
        assert_holds("committed", &committed, &changed);
        views.iter().skip(6).for_each(|view| assert_same("still there", view, &small));
        drop(views);
        assert_same("view", &snapshot.view().unwrap(), &bytes);
    });
}

#[test]
fn with_all_mappings_used_up_a_first_capture_fails_clearly_and_works_later() {
    const TEST: &str = "with_all_mappings_used_up_a_first_capture_fails_clearly_and_works_later";
    with_steady_heap(TEST, || {
        let limit = match mappings_limit() {
            Ok(limit) => limit,
            Err(reason) => return skip(TEST, reason),
        };
        let bytes = noise(300 * page_size(), 13);
        let mut changed = bytes.clone();
        touch(&mut changed, 100);
        changed[10 * page_size()..90 * page_size()].fill(5);
        let snapshot = Snapshot::from_slice(&bytes).unwrap();
        let one = Snapshot::from_slice(&[1]).unwrap();
        let mut view = snapshot.view().unwrap();
        view.copy_from_slice(&changed);
        let views = open_all(&one, limit).0;

        let size = bytes.len().to_string();
        assert_tells(&view.take_snapshot().unwrap_err(), &size, MAPPINGS);
        assert_tells(&view.restore().unwrap_err(), &size, MAPPINGS);
        assert_same("view", &view, &changed);
        drop(views);
        let taken = view.take_snapshot().unwrap();
        assert_holds("taken", &taken, &changed);
        view.restore().unwrap();
        assert_same("restored", &view, &bytes);
        let fresh = tier(&snapshot.view().unwrap());
        assert_eq!(tier(&view), fresh, "a past shortage changed the tracking method");

        // An image with a long run of captured pages needs more than one mapping.
        let mut views = open_all(&one, limit).0;
        views.pop();
        assert_same("the last mapping", &taken.view().unwrap(), &changed);
        let stranger = Snapshot::zeroed(bytes.len()).unwrap();
        if view.restore_to(&stranger).is_ok() {
            assert!(view.iter().all(|&byte| byte == 0));
        }
        if view.restore_to(&taken).is_ok() {
            assert_same("restored to", &view, &changed);
        }
        drop(views);
        view.restore_to(&taken).unwrap();
        assert_same("restored to", &view, &changed);
    });
}

#[test]
fn views_that_cannot_be_unmapped_give_their_memory_back() {
    const TEST: &str = "views_that_cannot_be_unmapped_give_their_memory_back";
    with_steady_heap(TEST, || {
        let limit = match mappings_limit() {
            Ok(limit) => limit,
            Err(reason) => return skip(TEST, reason),
        };
        let one = Snapshot::from_slice(&[1]).unwrap();
        let zero = Snapshot::zeroed(1 << 20).unwrap();
        // The kernel merges adjacent mappings of zeroes into one, so that unmapping one of them needs a new
        // mapping.
        let mut zeroed: Vec<_> = (0..64).map(|_| zero.view().unwrap()).collect();
        zeroed.iter_mut().for_each(|view| view.fill(9));
        let views = open_all(&one, limit).0;
        let before = memory().unwrap().anonymous;
        let mut kept = Vec::with_capacity(32);
        for (i, view) in zeroed.into_iter().enumerate() {
            if i % 2 == 1 {
                kept.push(view);
            }
        }
        let given_back = before.saturating_sub(memory().unwrap().anonymous);
        assert!(given_back > 28 << 20, "only {given_back} bytes of 32 MiB were given back");
        assert!(kept.iter().all(|view| view.iter().all(|&byte| byte == 9)));
        drop(views);
        for mut view in kept {
            view.restore().unwrap();
            assert!(view.iter().all(|&byte| byte == 0));
        }
        assert!(zero.view().unwrap().iter().all(|&byte| byte == 0));
    });
}
