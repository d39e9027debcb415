//! Pages that one of the processes writes, captures, discards or recycles.

use std::sync::Arc;

use memsnap::{ArcView, Snapshot, Tracking, page_size};

use super::common::script::differing;
use super::common::{assert_same, pattern, serial};
use super::{Family, both_at_once, fill_every, one_after_the_other};

#[test]
fn pages_written_before_the_fork_are_captured_and_undone_by_each_process() {
    let _serial = serial();
    for family in [Family::of_bytes, Family::of_zeroes] {
        let dirty = |root: &[u8]| {
            let mut bytes = root.to_vec();
            fill_every(3, &mut bytes, 7);
            bytes
        };
        let setup = || {
            let mut family = family(40);
            fill_every(3, &mut family.view, 7);
            family
        };
        let other = |family: &mut Family| {
            let dirty = dirty(&family.root);
            assert_same("inherited", &family.view, &dirty);
            assert_eq!(family.view.changes().unwrap().ranges(), differing(&dirty, &family.root));
            let taken = family.view.take_snapshot().unwrap();
            assert_eq!(family.view.changes().unwrap().ranges(), []);
            family.view.fill(8);
            family.assert_holds(&taken, &dirty);
        };
        one_after_the_other(
            setup,
            |family| {
                // Writes pages that were written before the fork, other pages, and then both again.
                family.view.fill(9);
                let taken = family.view.take_snapshot().unwrap();
                fill_every(2, &mut family.view, 10);
                family.view.restore().unwrap();
                assert_same("restored", &family.view, &family.root);
                family.assert_holds(&taken, &vec![9; family.root.len()]);
                family.view.fill(11);
            },
            other,
        );
        both_at_once(setup(), |family, _| other(family));
    }
}

#[test]
fn pages_first_written_after_the_fork_are_found_in_each_process() {
    let _serial = serial();
    for family in [Family::of_bytes, Family::of_zeroes] {
        let setup = || {
            let family = family(40);
            // The process searches for written pages before it forks.
            assert_eq!(family.view.changes().unwrap().ranges(), []);
            family
        };
        both_at_once(setup(), |family, process| {
            let page = usize::from(process) % 37;
            family.view[page * page_size()] ^= 0xFF;
            let changed = page * page_size()..(page + 1) * page_size();
            assert_eq!(family.view.changes().unwrap().ranges(), [changed]);
            let bytes = family.view.to_vec();
            let taken = family.view.take_snapshot().unwrap();
            family.assert_holds(&taken, &bytes);
        });
    }
}

#[test]
fn a_page_recycled_by_one_process_keeps_its_bytes_in_the_other() {
    const PAGES: usize = 100;
    let _serial = serial();
    let captured = pattern(PAGES, 50);
    let setup = || {
        let mut family = Family::of_zeroes(PAGES);
        let snapshot = family.capture(&captured);
        (family, Some(snapshot))
    };
    one_after_the_other(
        setup,
        |(family, snapshot)| {
            drop(snapshot.take());
            let mut bytes = pattern(PAGES, 60);
            for _ in 0..3 {
                bytes.iter_mut().for_each(|byte| *byte ^= 0xFF);
                let other = family.capture(&bytes);
                let store = other.stats().store;
                assert_eq!(store.live, PAGES * page_size());
                assert_eq!(store.recyclable, 0, "the snapshot did not reuse the freed pages");
                family.assert_holds(&other, &bytes);
            }
        },
        |(family, snapshot)| family.assert_holds(snapshot.as_ref().unwrap(), &captured),
    );
}

#[test]
fn captured_pages_returned_by_one_process_stay_in_the_other() {
    const PAGES: usize = 1000;
    let _serial = serial();
    let captured = pattern(PAGES, 50);
    let setup = || {
        let mut family = Family::of_bytes(PAGES);
        let snapshot = family.capture(&captured);
        for value in 0..100 {
            // Small captures follow, so that the store does not keep free memory for another large one.
            family.view[0] = value;
            family.view.take_snapshot().unwrap();
        }
        family.view.restore().unwrap();
        (family, Some(snapshot))
    };
    one_after_the_other(
        setup,
        |(family, snapshot)| {
            drop(snapshot.take());
            family.view[0] = 100;
            let store = family.view.take_snapshot().unwrap().stats().store;
            assert!(
                store.live + store.recyclable < PAGES / 2 * page_size(),
                "no memory was returned: {store:?}"
            );
        },
        |(family, snapshot)| {
            let snapshot = snapshot.take().unwrap();
            family.assert_holds(&snapshot, &captured);
            drop(snapshot);
            // A capture into the returned memory is exact too.
            let again = family.capture(&pattern(PAGES, 60));
            family.assert_holds(&again, &pattern(PAGES, 60));
        },
    );
}

#[test]
fn written_pages_discarded_by_one_process_stay_in_the_other() {
    // A restored view may not keep this many pages resident.
    const LEN: usize = 80 << 20;
    let _serial = serial();
    let setup = || {
        let mut view = Arc::new(Snapshot::zeroed(LEN).unwrap()).view_arc().unwrap();
        view.iter_mut().step_by(page_size()).for_each(|byte| *byte = 5);
        view
    };
    let assert_all = |view: &ArcView, value: u8| {
        let wrong = view.iter().step_by(page_size()).position(|&byte| byte != value);
        assert_eq!(wrong, None, "the page that does not start with {value}");
    };
    one_after_the_other(
        setup,
        |view| {
            view.restore().unwrap();
            let stats = view.stats();
            assert!(
                stats.private < LEN || stats.tracker == Tracking::Compare,
                "no page was discarded: {stats:?}"
            );
            assert_all(view, 0);
        },
        |view| {
            assert_all(view, 5);
            view.restore().unwrap();
            assert_all(view, 0);
        },
    );
}

#[test]
fn each_process_takes_snapshots_of_its_own() {
    const PAGES: usize = 40;
    let _serial = serial();
    let mut family = Family::of_bytes(PAGES);
    let earlier = family.capture(&pattern(PAGES, 2));
    both_at_once((family, earlier), |(family, earlier), process| {
        let mut bytes = family.root.clone();
        let mut taken = Vec::new();
        for round in 0..20 {
            fill_every(1 + usize::from(round) % 5, &mut family.view, process + round);
            fill_every(1 + usize::from(round) % 5, &mut bytes, process + round);
            taken.push((family.view.take_snapshot().unwrap(), bytes.clone()));
        }
        for (snapshot, bytes) in &taken {
            family.assert_holds(snapshot, bytes);
        }
        for (snapshot, bytes) in taken.into_iter().step_by(2) {
            let mut view = snapshot.view().unwrap();
            view.fill(process);
            let other = view.take_snapshot().unwrap();
            drop(view);
            family.assert_holds(&snapshot, &bytes);
            family.assert_holds(&other, &vec![process; PAGES * page_size()]);
        }
        family.assert_holds(earlier, &pattern(PAGES, 2));
    });
}
