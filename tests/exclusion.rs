//! A restore can leave byte ranges as they are. Later calls take these bytes into account.

mod common;

use std::io::ErrorKind;
use std::ops::Range;

use common::kinds::{self, Kind, TRACKINGS};
use common::script::{Random, differing, read};
use common::{assert_same, pattern, serial, supported};
use memsnap::{Snapshot, Tracking, View, ViewOptions, page_size};

/// Returns what a view shows after a restore to `root` that excludes `ranges`.
fn restored(before: &[u8], root: &[u8], ranges: &[Range<usize>]) -> Vec<u8> {
    let mut after = root.to_vec();
    for range in ranges {
        let range = range.start.min(root.len())..range.end.min(root.len());
        after[range.clone()].copy_from_slice(&before[range]);
    }
    after
}

/// Returns lists of ranges of a view of `len` bytes.
///
/// Some ranges overlap, are adjacent, unsorted or empty. They start and end at page boundaries and within
/// pages.
#[allow(clippy::single_range_in_vec_init)]
fn lists(len: usize) -> Vec<Vec<Range<usize>>> {
    let page = page_size();
    vec![
        vec![],
        vec![0..0, len..len, 17..17],
        vec![5..6],
        vec![page - 1..page + 1, 3 * page + 7..3 * page + 9],
        vec![2 * page..3 * page],
        vec![40 * page..90 * page],
        vec![30 * page..50 * page, 10 * page + 3..31 * page - 3, 50 * page..51 * page],
        vec![70 * page + 1..71 * page, 71 * page..72 * page - 1, 70 * page..70 * page + 1],
        vec![19 * page..20 * page + 1, 100 * page - 1..101 * page, 5 * page..7 * page],
        (0..100).map(|page_number| page_number * page + 10..page_number * page + 20).collect(),
        (0..50).map(|pair| (2 * pair + 1) * page..(2 * pair + 2) * page).collect(),
        vec![0..len],
        vec![1..len, 0..len - 1],
        vec![len - 1..len, 0..1],
        vec![len - 10 * page - 1..len],
    ]
}

fn leaves_out<S>(what: &str, view: &mut View<S>, root: &[u8]) {
    for (list, ranges) in lists(root.len()).iter().enumerate() {
        let what = format!("{what}, list {list}");
        for step in [1, 3, 40] {
            for page in (0..kinds::PAGES).step_by(step) {
                view[page * page_size() + 12] ^= 0xF1;
                view[page * page_size()] ^= 0xF2;
                view[(page + 1) * page_size() - 1] ^= 0xF3;
            }
            let taken = (step == 3).then(|| (view.take_snapshot().unwrap(), view.to_vec()));
            let expected = restored(view, root, ranges);
            view.restore_excluding(ranges).unwrap();
            assert_same(&what, view, &expected);
            assert_eq!(view.changes().unwrap().ranges(), differing(&expected, root), "{what}");
            if step != 40 {
                let after = view.take_snapshot().unwrap();
                assert_same(&what, &read(&after), &expected);
                assert_same(&what, &after.view().unwrap(), &expected);
                assert!(view.changes().unwrap().is_empty());
                if let Some((taken, bytes)) = taken {
                    assert_eq!(taken.diff(&after).unwrap().ranges(), differing(&bytes, &expected));
                    view.restore_to(&taken).unwrap();
                    assert_same(&what, view, &bytes);
                    view.restore_excluding(ranges).unwrap();
                    assert_same(&what, view, &restored(&bytes, root, ranges));
                }
            }
        }
        view.restore().unwrap();
        assert_same(&what, view, root);
        assert!(view.changes().unwrap().is_empty(), "{what}");
        assert_same(&what, &read(&view.take_snapshot().unwrap()), root);
    }
}

#[test]
fn excluded_bytes_stay_and_all_others_are_restored() {
    let _serial = serial();
    for Kind { name, mut snapshot, bytes } in kinds::all() {
        leaves_out(name, &mut snapshot.view().unwrap(), &bytes);
        leaves_out(&format!("mutable, {name}"), &mut snapshot.view_mut().unwrap(), &bytes);
        let kept = snapshot.view_with(ViewOptions::new().keep_resident(0));
        leaves_out(&format!("nothing kept, {name}"), &mut kept.unwrap(), &bytes);
    }
}

#[test]
fn excluded_bytes_stay_in_armed_views() {
    let _serial = serial();
    for Kind { name, snapshot, bytes } in kinds::all() {
        let mut view = snapshot.view().unwrap();
        if supported("excluded_bytes_stay_in_armed_views", view.set_tracking(Tracking::Armed)).is_none() {
            return;
        }
        leaves_out(name, &mut view, &bytes);
    }
}

/// If a restore finds the same pages written as the one before, it may skip comparing them.
#[test]
fn bytes_stay_through_many_restores() {
    let _serial = serial();
    for Kind { name, mut snapshot, bytes: root } in kinds::all() {
        for list in [1, 4, 6, 9, 10] {
            let ranges = &lists(root.len())[list];
            let mut view = snapshot.view_mut().unwrap();
            let mut bytes = root.clone();
            for round in 0..30_u8 {
                let what = format!("{name}, list {list}, round {round}");
                // Each round writes the same pages, some others, and the ranges that restores exclude.
                let often = (0..kinds::PAGES).step_by(7);
                let seldom = (usize::from(round)..kinds::PAGES).step_by(if round % 5 == 0 { 2 } else { 200 });
                for page in often.chain(seldom) {
                    view[page * page_size() + 15] = round;
                    bytes[page * page_size() + 15] = round;
                }
                for range in ranges {
                    view[range.clone()].fill(!round);
                    bytes[range.clone()].fill(!round);
                }
                if round == 20 {
                    assert_same(&what, &read(&view.take_snapshot().unwrap()), &bytes);
                }
                if round % 4 != 3 {
                    bytes = restored(&bytes, &root, ranges);
                    view.restore_excluding(ranges).unwrap();
                } else {
                    bytes.clone_from(&root);
                    view.restore().unwrap();
                }
                assert_same(&what, &view, &bytes);
                if round % 3 == 0 {
                    assert_eq!(view.changes().unwrap().ranges(), differing(&bytes, &root), "{what}");
                }
            }
            view.restore().unwrap();
            assert_same(name, &view, &root);
        }
    }
}

/// The excluded bytes are written only once. So later calls find that they differ only if the view itself has
/// recorded it.
#[test]
fn bytes_that_stayed_are_remembered_however_often_others_are_restored() {
    let _serial = serial();
    for Kind { name, snapshot, bytes: root } in kinds::all() {
        for &tracking in TRACKINGS {
            for zeroed in [false, true] {
                let mut view = snapshot.view().unwrap();
                let test = "bytes_that_stayed_are_remembered_however_often_others_are_restored";
                if supported(test, view.set_tracking(tracking)).is_none() {
                    continue;
                }
                let stays = 24 * page_size()..44 * page_size();
                view[..50 * page_size()].fill(0x6B);
                if zeroed {
                    view.zero(stays.clone()).unwrap();
                }
                let taken = view.take_snapshot().unwrap();
                let mut expected = root.clone();
                expected[stays.clone()].copy_from_slice(&view[stays.clone()]);
                for round in 1..20 {
                    view[2 * page_size()..6 * page_size()].fill(round);
                    view.restore_excluding(std::slice::from_ref(&stays)).unwrap();
                    let what = format!("{name}, {tracking}, zeroed: {zeroed}, round {round}");
                    assert_same(&what, &view, &expected);
                    assert_eq!(view.changes().unwrap().ranges(), differing(&expected, &root), "{what}");
                }
                assert_same(name, &read(&view.take_snapshot().unwrap()), &expected);
                view.restore_to(&taken).unwrap();
                assert_same(name, &view, &read(&taken));
                view.restore().unwrap();
                assert_same(name, &view, &root);
            }
        }
    }
}

#[test]
fn bytes_stay_in_large_sparse_views_that_start_over() {
    let _serial = serial();
    const PAGES: usize = 8000;
    let root = pattern(PAGES, 1);
    let snapshot = Snapshot::from_slice(&root).unwrap();
    let ranges = [100 * page_size() + 5..130 * page_size() + 9, 7777 * page_size()..7778 * page_size()];
    let mut view = snapshot.view().unwrap();
    assert_same("read in full", &view, &root);
    let mut bytes = root.clone();
    for round in 0..60_u8 {
        for page in (usize::from(round)..PAGES).step_by(if round < 30 { 3000 } else { 20 }) {
            view[page * page_size() + 9] ^= 0xFF;
            bytes[page * page_size() + 9] ^= 0xFF;
        }
        for range in &ranges {
            let part = range.start..range.start + 2;
            view[part.clone()].fill(round);
            bytes[part].fill(round);
        }
        if round < 25 || round % 2 == 0 {
            bytes = restored(&bytes, &root, &ranges);
            view.restore_excluding(&ranges).unwrap();
        } else {
            bytes.clone_from(&root);
            view.restore().unwrap();
        }
        assert_same(&format!("round {round}"), &view[..200 * page_size()], &bytes[..200 * page_size()]);
        assert_eq!(view.changes().unwrap().ranges(), differing(&bytes, &root), "round {round}");
    }
    assert_same("in the end", &view, &bytes);
}

#[test]
fn bytes_stay_that_another_restore_or_zeroing_brought() {
    let _serial = serial();
    let options = {
        let mut options = ViewOptions::new();
        options.reserve(2 * kinds::PAGES * page_size());
        options
    };
    let mut others: Vec<_> = kinds::all().into_iter().map(|kind| (kind.snapshot, kind.bytes)).collect();
    let long = pattern(kinds::PAGES + 20, 9);
    others.push((Snapshot::from_slice(&long).unwrap(), long));
    for Kind { name, mut snapshot, bytes: root } in kinds::all() {
        let relative = {
            let mut view = snapshot.view().unwrap();
            view[25 * page_size()..60 * page_size()].fill(0xAB);
            view[3] = 0xAB;
            let bytes = view.to_vec();
            (view.take_snapshot().unwrap(), bytes)
        };
        for (other, other_bytes) in others.iter().chain([&relative]) {
            let mut view = snapshot.view_mut_with(&options).unwrap();
            for ranges in &lists(root.len()) {
                view.restore_to(other).unwrap();
                let mut bytes = other_bytes.clone();
                let zeroed = 28 * page_size() + 1..45 * page_size();
                view.zero(zeroed.clone()).unwrap();
                bytes[zeroed].fill(0);
                let expected = restored(&bytes, &root, ranges);
                view.restore_excluding(ranges).unwrap();
                assert_same(name, &view, &expected);
                assert_eq!(view.changes().unwrap().ranges(), differing(&expected, &root), "{name}");
                assert_same(name, &read(&view.take_snapshot().unwrap()), &expected);
                view.restore().unwrap();
                assert_same(name, &view, &root);
            }
        }
    }
}

#[test]
fn bytes_beyond_the_end_of_a_shorter_snapshot_go() {
    let _serial = serial();
    for Kind { name, snapshot, bytes: root } in kinds::all() {
        let len = root.len() + 20 * page_size();
        let mut view = snapshot.view_with(ViewOptions::new().reserve(len)).unwrap();
        for start in [0, root.len() - 2 * page_size() - 3, root.len(), root.len() + 3] {
            view.grow(len).unwrap();
            view.fill(0x44);
            let expected = restored(&view, &root, &[start..len]);
            view.restore_excluding(&[start..len]).unwrap();
            assert_same(name, &view, &expected);
            assert_eq!(view.changes().unwrap().ranges(), differing(&expected, &root), "{name}");
            assert_same(name, &read(&view.take_snapshot().unwrap()), &expected);
            view.restore().unwrap();
            assert_same(name, &view, &root);
            view.grow(len).unwrap();
            assert!(view[root.len()..].iter().all(|&byte| byte == 0));
        }
    }
}

#[test]
fn protected_bytes_stay_and_can_be_used_again() {
    let _serial = serial();
    for Kind { name, snapshot, bytes: root } in kinds::all() {
        let mut view = snapshot.view().unwrap().into_protected();
        view.get_mut(..).unwrap()[30..].fill(0x21);
        let before = view.get(..).unwrap().to_vec();
        view.protect(.., memsnap::Access::NONE).unwrap();
        let ranges = [2 * page_size() + 1..70 * page_size() - 1, 90 * page_size()..91 * page_size()];
        view.restore_excluding(&ranges).unwrap();
        assert_same(name, view.get_mut(..).unwrap(), &restored(&before, &root, &ranges));
    }
}

#[test]
fn ranges_beyond_the_view_are_refused_and_change_nothing() {
    let _serial = serial();
    for Kind { name, mut snapshot, bytes } in kinds::all() {
        let mut view = snapshot.view_mut().unwrap();
        view[50 * page_size()..].fill(1);
        let before = view.to_vec();
        let len = bytes.len();
        #[allow(clippy::reversed_empty_ranges)]
        for range in [0..len + 1, len + 1..len + 1, 5..4, usize::MAX..usize::MAX] {
            let error = view.restore_excluding(&[0..5, range]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert_same(name, &view, &before);
        }
    }
}

#[test]
fn random_exclusions_are_exact() {
    let _serial = serial();
    for (seed, Kind { name, mut snapshot, bytes: root }) in (40..).zip(kinds::all()) {
        let (mut random, mut bytes) = (Random(seed), root.clone());
        let mut taken = vec![(snapshot.clone(), root.clone())];
        let mut view = snapshot.view_mut().unwrap();
        for step in 0..300 {
            let what = format!("{name}, step {step}");
            let mut range = || {
                let (start, longest) = (random.below(root.len()), [100, 50 * page_size()][random.below(2)]);
                start..root.len().min(start + random.below(longest))
            };
            let ranges: Vec<_> = (0..4).map(|_| range()).collect();
            match random.below(9) {
                0..3 => {
                    for range in &ranges {
                        view[range.clone()].fill(0x11);
                        bytes[range.clone()].fill(0x11);
                    }
                }
                3 => {
                    view.zero(ranges[0].clone()).unwrap();
                    bytes[ranges[0].clone()].fill(0);
                }
                4 => taken.push((view.take_snapshot().unwrap(), bytes.clone())),
                5 => {
                    let (other, other_bytes) = &taken[random.below(taken.len())];
                    view.restore_to(other).unwrap();
                    bytes.clone_from(other_bytes);
                }
                _ => {
                    view.restore_excluding(&ranges).unwrap();
                    bytes = restored(&bytes, &root, &ranges);
                    assert_eq!(view.changes().unwrap().ranges(), differing(&bytes, &root), "{what}");
                }
            }
            assert_same(&what, &view, &bytes);
        }
        for (snapshot, bytes) in &taken {
            assert_same(name, &read(snapshot), bytes);
        }
    }
}
