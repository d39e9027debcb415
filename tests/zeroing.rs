//! Zeroing a part of a view returns its memory. All later calls are exact to the byte.

mod common;

use std::ops::Range;

use common::kinds::{self, Kind};
use common::maps::{memory, present};
use common::script::{Random, differing, read};
use common::{LINUX, alone, assert_same, memory_file_bytes, pattern, serial, skip, supported};
use memsnap::{Snapshot, Tracking, View, ViewOptions, page_size};

const LARGE: usize = 64 << 20;

/// Returns ranges of a view of `len` bytes: long, short and empty, at page boundaries and within pages.
fn ranges(len: usize) -> Vec<Range<usize>> {
    let page = page_size();
    vec![
        5..5,
        3 * page..3 * page,
        len..len,
        7..8,
        page - 1..page + 1,
        2 * page..3 * page,
        5 * page + 1..7 * page - 1,
        15 * page - 100..15 * page + 100,
        18 * page + 5..40 * page - 5,
        60 * page..90 * page,
        95 * page..125 * page,
        139 * page..142 * page + 1,
        len - 1..len,
        len - 20 * page - 1..len,
        0..len,
        1..len - 1,
    ]
}

/// Zeroes all ranges one after the other, with writes in between, and takes snapshots and restores in all
/// orders.
fn zeroes<S>(what: &str, view: &mut View<S>, root: &[u8]) {
    for (i, range) in ranges(root.len()).into_iter().enumerate() {
        let what = format!("{what}, {range:?}");
        for written in [false, true] {
            let mut bytes = root.to_vec();
            if written {
                let part = 50 * page_size() - 3..75 * page_size();
                view[part.clone()].fill(0x5A);
                bytes[part].fill(0x5A);
            }
            view.zero(range.clone()).unwrap();
            bytes[range.clone()].fill(0);
            assert_same(&what, view, &bytes);
            assert_eq!(view.changes().unwrap().ranges(), differing(&bytes, root), "{what}");
            let taken = view.take_snapshot().unwrap();
            assert_same(&what, &read(&taken), &bytes);
            assert_same(&what, &taken.view().unwrap(), &bytes);
            assert!(view.changes().unwrap().is_empty());
            // A zeroed page can be written again, and the write is found.
            let at = range.start.min(root.len() - 1);
            view[at] = 0x99;
            let before = std::mem::replace(&mut bytes[at], 0x99);
            assert_eq!(view.changes().unwrap().ranges(), differing(&bytes, &read(&taken)), "{what}");
            let again = view.take_snapshot().unwrap();
            assert_same(&what, &read(&again), &bytes);
            assert_eq!(taken.diff(&again).unwrap().ranges(), differing(&read(&taken), &bytes));
            if i % 2 == 0 {
                view.restore_to(&taken).unwrap();
                bytes[at] = before;
                assert_same(&what, view, &bytes);
            }
            view.restore().unwrap();
            assert_same(&what, view, root);
            assert!(view.changes().unwrap().is_empty(), "{what}");
            assert_same(&what, &read(&view.take_snapshot().unwrap()), root);
            view.restore_to(&again).unwrap();
            bytes[at] = 0x99;
            assert_same(&what, view, &bytes);
            view.restore().unwrap();
            assert_same(&what, view, root);
            let mut other = again.view().unwrap();
            other.zero(..).unwrap();
            assert!(other.iter().all(|&byte| byte == 0));
            other.restore().unwrap();
            assert_same(&what, &other, &bytes);
        }
    }
}

#[test]
fn zeroed_bytes_are_exact_over_everything() {
    let _serial = serial();
    for Kind { name, mut snapshot, bytes } in kinds::all() {
        zeroes(name, &mut snapshot.view().unwrap(), &bytes);
        let mut view = snapshot.view_mut().unwrap();
        zeroes(&format!("mutable, {name}"), &mut view, &bytes);
        view.zero(3..100 * page_size()).unwrap();
        view.commit().unwrap();
        let mut expected = bytes;
        expected[3..100 * page_size()].fill(0);
        assert_same(name, &read(&snapshot), &expected);
    }
}

#[test]
fn zeroed_bytes_are_exact_on_armed_views() {
    let _serial = serial();
    for Kind { name, snapshot, bytes } in kinds::all() {
        let mut view = snapshot.view().unwrap();
        if supported("zeroed_bytes_are_exact_on_armed_views", view.set_tracking(Tracking::Armed)).is_none() {
            return;
        }
        zeroes(name, &mut view, &bytes);
        // After these pages are zeroed and restored, the others are still write-protected.
        for range in [30 * page_size()..80 * page_size(), 0..bytes.len()] {
            view.take_snapshot().unwrap();
            view.zero(range).unwrap();
            view.changes().map(drop).unwrap();
            assert_eq!(view.stats().tracker, Tracking::Armed, "{name}");
            view.zero(..40 * page_size()).unwrap();
            view.restore().unwrap();
            view.take_snapshot().unwrap();
            assert_eq!(
                (view.stats().tracker, view.stats().why_not_faster),
                (Tracking::Armed, None),
                "{name}"
            );
        }
    }
}

#[test]
fn zeroed_bytes_are_exact_where_a_view_grew() {
    let _serial = serial();
    for Kind { name, snapshot, mut bytes } in kinds::all() {
        let more = bytes.len() + 50 * page_size();
        let mut view = snapshot.view_with(ViewOptions::new().reserve(more)).unwrap();
        for _ in 0..3 {
            view.grow(more).unwrap();
            bytes.resize(more, 0);
            bytes[kinds::PAGES * page_size() - 9..].fill(6);
            view.copy_from_slice(&bytes);
            for range in [more - 5..more, more - 30 * page_size()..more - 3, 0..more - 8 * page_size()] {
                view.zero(range.clone()).unwrap();
                bytes[range].fill(0);
                assert_same(name, view.as_slice(), &bytes);
                assert_same(name, &read(&view.take_snapshot().unwrap()), &bytes);
            }
            view.restore().unwrap();
            bytes = read(&snapshot);
            assert_same(name, &view, &bytes);
        }
        zeroes(name, &mut view, &bytes);
    }
}

#[test]
fn zeroes_and_writes_in_any_order_are_exact() {
    let _serial = serial();
    for (seed, Kind { name, mut snapshot, bytes: root }) in (1..).zip(kinds::all()) {
        let (mut random, mut bytes) = (Random(seed), root.clone());
        let mut view = snapshot.view_mut().unwrap();
        let mut taken = Vec::new();
        for step in 0..300 {
            let what = format!("{name}, step {step}");
            let start = random.below(bytes.len());
            let longest = [page_size(), 40 * page_size()][random.below(2)];
            let range = start..bytes.len().min(start + random.below(longest));
            match random.below(8) {
                0..3 => {
                    view.zero(range.clone()).unwrap();
                    bytes[range].fill(0);
                }
                3..5 => {
                    view[range.clone()].fill(8);
                    bytes[range].fill(8);
                }
                5 => taken.push((view.take_snapshot().unwrap(), bytes.clone())),
                6 if !taken.is_empty() => {
                    let (snapshot, shown) = &taken[random.below(taken.len())];
                    view.restore_to(snapshot).unwrap();
                    bytes.clone_from(shown);
                }
                _ => {
                    view.restore().unwrap();
                    bytes.clone_from(&root);
                }
            }
            assert_same(&what, &view, &bytes);
        }
        for (snapshot, bytes) in &taken {
            assert_same(name, &read(snapshot), bytes);
            assert_same(name, &snapshot.view().unwrap(), bytes);
        }
    }
}

/// Returns snapshots over bytes, over zeroes and of captured pages, each with 64 MiB of data.
fn large_snapshots() -> Vec<(&'static str, Snapshot)> {
    let bytes = vec![7; LARGE];
    let of_bytes = Snapshot::from_slice(&bytes).unwrap();
    let zeroed = Snapshot::zeroed(LARGE).unwrap();
    let captured = {
        let mut view = of_bytes.view().unwrap();
        view.fill(9);
        view.take_snapshot().unwrap()
    };
    vec![("bytes", of_bytes), ("zeroes", zeroed), ("captured", captured)]
}

#[test]
fn the_memory_of_zeroed_pages_goes_back_and_stays_away() {
    const TEST: &str = "the_memory_of_zeroed_pages_goes_back_and_stays_away";
    alone(TEST, || {
        if memory().is_none() {
            return skip(TEST, "the system does not report the memory of the process");
        }
        let memory = || memory().unwrap();
        for (name, snapshot) in large_snapshots() {
            let root = read(&snapshot);
            let mut view = snapshot.view().unwrap();
            view.fill(5);
            let full = memory().anonymous;
            view.zero(..).unwrap();
            let mut least = full - memory().anonymous;
            assert!(least > LARGE / 10 * 9, "{name}: only {least} bytes were returned");
            let known = view.stats().tracker != Tracking::Compare;
            if known {
                assert_eq!(view.stats().private, 0, "{name}");
            }
            let before = memory().anonymous;
            let taken = view.take_snapshot().unwrap();
            assert!(memory().anonymous < before + (8 << 20), "{name}: a snapshot of zeroes took memory");
            assert_eq!(taken.stats().store.live, snapshot.stats().store.live, "{name}");
            let reading = memory();
            let other = taken.view().unwrap();
            assert!(other.iter().all(|&byte| byte == 0) && view.iter().all(|&byte| byte == 0));
            assert!(memory().rss < reading.rss + (8 << 20), "{name}: reading zeroes took memory");
            drop(other);
            view.restore().unwrap();
            assert!(memory().anonymous < before + (8 << 20), "{name}: the restore made pages private");
            assert_same(name, &view, &root);
            // `pagemap` counts zero pages that were read as private.
            if known && view.stats().tracker != Tracking::Pagemap {
                assert!(view.stats().private < LARGE / 8, "{name}: {:?}", view.stats());
            }
            // This is too little for the restore to map the whole view anew.
            for take in [false, true] {
                let half = view.len() / 2;
                view.zero(..half).unwrap();
                if take {
                    view.take_snapshot().unwrap();
                }
                let before = memory().anonymous;
                view.restore().unwrap();
                let after = memory().anonymous;
                assert!(after < before + (8 << 20), "{name}: restoring a part made pages private");
                assert_same(name, &view, &root);
            }
            view.restore_to(&taken).unwrap();
            least = memory().anonymous;
            assert!(view.iter().all(|&byte| byte == 0));
            assert!(memory().anonymous < least + (8 << 20));
            assert_eq!(view.changes().unwrap().ranges(), []);
        }
    });
}

#[test]
fn zeroing_what_is_written_in_place_returns_it() {
    alone("zeroing_what_is_written_in_place_returns_it", || {
        let mut snapshot = Snapshot::zeroed(LARGE).unwrap();
        let mut view = snapshot.view_mut().unwrap();
        view.fill(1);
        assert!(memory_file_bytes().is_none_or(|held| held >= LARGE as u64));
        view.zero(page_size() / 2..LARGE - page_size()).unwrap();
        assert!(memory_file_bytes().is_none_or(|held| held <= 4 * page_size() as u64));
        let present = present(view.as_ptr().wrapping_add(page_size()), 1000);
        assert!(!LINUX || present.is_none_or(|present| present == 0));
        let mut expected = vec![0; LARGE];
        expected[..page_size() / 2].fill(1);
        expected[LARGE - page_size()..].fill(1);
        assert_same("zeroed", &view, &expected);
        view.zero(LARGE / 2..).unwrap();
        expected[LARGE / 2..].fill(0);
        view[LARGE / 2 + 5] = 3;
        expected[LARGE / 2 + 5] = 3;
        view.zero(LARGE / 2..LARGE / 2 + 5).unwrap();
        let taken = view.take_snapshot().unwrap();
        assert_same("taken", &read(&taken), &expected);
        view.commit().unwrap();
        assert_same("committed", &read(&snapshot), &expected);
        drop(taken);

        let mut snapshot = Snapshot::zeroed(LARGE).unwrap();
        let mut view = snapshot.view_mut().unwrap();
        view.fill(1);
        view.zero(..).unwrap();
        view.commit().unwrap();
        assert!(!LINUX || snapshot.stats().base == 0, "the zeroed file still takes memory");
        assert!(snapshot.diff(&Snapshot::zeroed(LARGE).unwrap()).unwrap().is_empty());
    });
}

#[test]
fn pages_of_zeroes_take_no_memory_however_they_came_about() {
    let _serial = serial();
    for Kind { name, snapshot, mut bytes } in kinds::all() {
        let before = snapshot.stats().store.live;
        let mut view = snapshot.view().unwrap();
        for range in [3..4, 33..80, 110..118] {
            let range = range.start * page_size()..range.end * page_size();
            view[range.clone()].fill(0);
            bytes[range].fill(0);
        }
        let by_hand = view.take_snapshot().unwrap();
        assert_eq!(by_hand.stats().store.live, before, "{name}");
        assert_same(name, &read(&by_hand), &bytes);
        assert_same(name, &by_hand.view().unwrap(), &bytes);
        view.zero(33 * page_size()..80 * page_size()).unwrap();
        assert!(view.changes().unwrap().is_empty());
        let again = view.take_snapshot().unwrap();
        assert!(again.diff(&by_hand).unwrap().is_empty());
        view.restore().unwrap();
        assert_same(name, &view, &read(&snapshot));
    }
}

/// A view has a limited number of mappings of zeroes. Beyond that, it writes the zeroes.
#[test]
fn more_ranges_than_are_mapped_can_be_zeroed() {
    let _serial = serial();
    const PAGES: usize = 20_000;
    let mut bytes = pattern(PAGES, 1);
    let snapshot = Snapshot::from_slice(&bytes).unwrap();
    let mut view = snapshot.view().unwrap();
    for start in (0..PAGES).step_by(13) {
        let range = start * page_size()..(start + 9).min(PAGES) * page_size() - 7;
        view.zero(range.clone()).unwrap();
        bytes[range].fill(0);
    }
    assert_same("zeroed", &view, &bytes);
    assert!(view.stats().mappings < 2100, "{:?}", view.stats());
    let taken = view.take_snapshot().unwrap();
    assert_same("taken", &read(&taken), &bytes);
    assert_same("viewed", &taken.view().unwrap(), &bytes);
    view.restore().unwrap();
    assert_same("restored", &view, &pattern(PAGES, 1));
    view.restore_to(&taken).unwrap();
    assert_same("restored to", &view, &bytes);
    view.zero(..).unwrap();
    assert!(view.iter().all(|&byte| byte == 0));
    view.restore().unwrap();
    assert_same("restored again", &view, &pattern(PAGES, 1));
}

#[test]
fn ranges_beyond_the_view_are_refused() {
    let _serial = serial();
    for Kind { name, mut snapshot, bytes } in kinds::all() {
        let mut view = snapshot.view_mut().unwrap();
        let len = bytes.len();
        for range in kinds::ranges_outside(len) {
            assert_eq!(view.zero(range).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
        }
        assert!(view.zero(..=len).is_err() && view.zero(..=usize::MAX).is_err());
        assert_same(name, &view, &bytes);
        assert!(view.changes().unwrap().is_empty());
        view.zero(..=0).unwrap();
        assert_eq!(view[0], 0);
    }
}
