//! Snapshots that are made from another one without a view: other bytes (`with_changes`), another length
//! (`resized`), and where they have data (`data_ranges`).

mod common;

use std::io::ErrorKind;
use std::iter;
use std::ops::Range;

use common::kinds;
use common::script::{differing, read};
use common::{assert_same, noise, pattern};
use memsnap::{Snapshot, ViewOptions, page_size};

type Write<'a> = (usize, &'a [u8]);

/// Applies `writes` to a snapshot that has the bytes `before`, and checks the result in all ways to read it.
#[track_caller]
fn write(what: &str, snapshot: &Snapshot, before: &[u8], writes: &[Write<'_>]) -> (Snapshot, Vec<u8>) {
    let mut expected = before.to_vec();
    for (offset, bytes) in writes {
        expected[*offset..][..bytes.len()].copy_from_slice(bytes);
    }
    let written = snapshot.with_changes(writes.iter().copied()).unwrap();
    assert_eq!((written.len(), written.content_len()), (snapshot.len(), snapshot.content_len()), "{what}");
    assert_same(what, &read(&written), &expected);
    assert_same(what, &written.view().unwrap(), &expected);
    assert_same(what, &read(snapshot), before);
    let ranges = differing(before, &expected);
    assert_eq!(snapshot.diff(&written).unwrap().ranges(), ranges, "{what}");
    assert_eq!(written.diff(snapshot).unwrap().ranges(), ranges, "{what}");
    (written, expected)
}

/// Checks that all bytes outside of `ranges` are zero, and that these are whole pages in ascending order.
#[track_caller]
fn assert_zero_outside(ranges: &[Range<usize>], bytes: &[u8]) {
    let mut end = None;
    for range in ranges {
        assert!(range.start < range.end && range.end <= bytes.len(), "{ranges:?}");
        assert!(end.is_none_or(|end| end < range.start), "{ranges:?} are not ascending or are adjacent");
        assert!(
            range.start.is_multiple_of(page_size()) && range.end.is_multiple_of(page_size()),
            "{ranges:?}"
        );
        end = Some(range.end);
    }
    for (page, bytes) in bytes.chunks(page_size()).enumerate() {
        let is_listed = ranges.iter().any(|range| range.contains(&(page * page_size())));
        assert!(is_listed || bytes.iter().all(|&byte| byte == 0), "page {page} is not in {ranges:?}");
    }
}

#[test]
fn writes_of_all_shapes_change_snapshots_of_every_kind() {
    let page = page_size();
    let ones = vec![1; 5 * page];
    for kinds::Kind { name, snapshot, bytes } in kinds::all() {
        let len = bytes.len();
        let (zeroes, old) = (vec![0; 5 * page], bytes.clone());
        let cases: [(&str, Vec<Write<'_>>); 12] = [
            ("nothing", vec![]),
            ("no bytes", vec![(0, &[]), (3 * page + 1, &[]), (len, &[])]),
            ("a byte", vec![(7 * page + 1, b"x")]),
            ("the first and the last byte", vec![(len - 1, b"x"), (0, b"y")]),
            ("over the end of a page", vec![(9 * page - 2, b"four")]),
            ("whole pages", vec![(20 * page, &ones)]),
            ("pages with edges", vec![(30 * page - 7, &ones), (40 * page + 5, &ones)]),
            ("pages become zero", vec![(50 * page, &zeroes), (60 * page + 1, &zeroes)]),
            ("the same bytes", vec![(0, &old), (70 * page + 3, &old[70 * page + 3..75 * page])]),
            ("a later one hides an earlier one", vec![(10 * page, &ones), (10 * page, &zeroes)]),
            (
                "an earlier one sticks out",
                vec![(12 * page + 9, &ones), (13 * page - 9, &zeroes[..page + 18])],
            ),
            ("parts of one page", vec![(page + 8, b"c"), (page + 4, b"b"), (page, b"a"), (page + 7, b"zz")]),
        ];
        for (what, writes) in &cases {
            let what = format!("{name}: {what}");
            let (written, _) = write(&what, &snapshot, &bytes, writes);
            assert_zero_outside(&written.data_ranges().unwrap(), &read(&written));
        }
        // All of them in a chain, in which each snapshot is dropped once the next one is made.
        let mut last = (snapshot, bytes);
        for (what, writes) in cases {
            last = write(&format!("{name}, then: {what}"), &last.0, &last.1, &writes);
        }
    }
}

#[test]
fn only_pages_whose_bytes_differ_take_memory() {
    let page = page_size();
    let zeroed = Snapshot::zeroed(100 * page).unwrap();
    let first = zeroed.with_changes([(3 * page, noise(4 * page, 1)), (50 * page + 1, vec![7])]).unwrap();
    assert_eq!(first.stats().captured, 5 * page);
    assert_eq!(first.stats().store.live, 5 * page);
    let same = first.with_changes([(3 * page, noise(4 * page, 1)), (60 * page, vec![0; 9 * page])]).unwrap();
    assert_eq!(same.stats().captured, 5 * page);
    assert_eq!(same.stats().images, 2, "the same bytes make no other image");
    let second = first.with_changes([(4 * page, vec![0; page]), (50 * page, vec![8])]).unwrap();
    assert_eq!(second.stats().store.live, 6 * page, "one page was copied, and one became zero");
    assert_eq!(second.data_ranges().unwrap(), [3 * page..4 * page, 5 * page..7 * page, 50 * page..51 * page]);
    drop((first, same));
    assert_eq!(second.stats().store.live, 4 * page);
    drop(second);
    assert_eq!(zeroed.stats().store.live, 0);
}

#[test]
fn changes_that_are_not_within_the_snapshot_are_refused() {
    let page = page_size();
    let snapshot = Snapshot::from_slice(b"content").unwrap();
    let refused = [(page, 1), (page - 1, 2), (0, page + 1), (page + 1, 0), (usize::MAX, 1), (usize::MAX, 0)];
    for (offset, len) in refused {
        let changes = [(0, vec![1]), (offset, vec![1; len]), (1, vec![1])];
        let error = snapshot.with_changes(changes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        let message = error.to_string();
        for part in [format!("{len} bytes"), format!("byte {offset}"), format!("{page} bytes")] {
            assert!(message.contains(&part), "{message:?} lacks {part:?}");
        }
    }
    assert_eq!(snapshot.stats().images, 1);
    let empty = Snapshot::zeroed(0).unwrap();
    assert!(empty.with_changes(iter::empty::<Write<'_>>()).unwrap().is_empty());
    assert!(empty.with_changes([(0, [])]).unwrap().is_empty());
    assert_eq!(empty.with_changes([(0, "x")]).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(empty.data_ranges().unwrap(), []);
}

#[test]
fn lengths_change_and_cut_off_bytes_stay_zero() {
    let page = page_size();
    for kinds::Kind { name, snapshot, bytes } in kinds::all() {
        let long = bytes.len() + 10 * page;
        for cut in [0, 1, page - 1, page, 40 * page, 40 * page + 3, bytes.len() - 1, bytes.len()] {
            let short = snapshot.resized(cut, cut / 2).unwrap();
            let mut expected = bytes.clone();
            expected[cut..].fill(0);
            expected.truncate(cut.next_multiple_of(page));
            assert_eq!((short.len(), short.content_len()), (expected.len(), cut / 2), "{name}, {cut}");
            assert_same(name, &read(&short), &expected);
            assert_same(name, &short.view().unwrap(), &expected);
            assert_same(name, short.view().unwrap().content(), &expected[..cut / 2]);
            let again = short.resized(long, cut).unwrap();
            expected.resize(long, 0);
            assert_same(name, &read(&again), &expected);
            assert_same(name, &again.view().unwrap(), &expected);
            assert_zero_outside(&again.data_ranges().unwrap(), &expected);
            assert_eq!(
                snapshot.diff(&again).unwrap().ranges(),
                differing(&bytes, &expected),
                "{name}, {cut}"
            );
            assert_same(name, &read(&snapshot), &bytes);
        }
    }
}

#[test]
fn lengths_that_cannot_be_are_refused() {
    let snapshot = Snapshot::from_slice(b"content").unwrap();
    for (len, content_len) in [(6, 7), (0, 1), (isize::MAX as usize, 0), (usize::MAX, usize::MAX)] {
        let error = snapshot.resized(len, content_len).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains(&len.to_string()), "{error}");
    }
    assert_eq!(snapshot.stats().images, 1);
    let same = snapshot.resized(snapshot.len(), 7).unwrap();
    assert_eq!(same.stats().images, 1, "the same lengths make no other image");
}

/// A snapshot may have more pages than its content fills, for example if a machine with larger pages made it.
/// A view of it became shorter when it grew by less than those pages.
#[test]
fn views_of_a_snapshot_that_is_longer_than_its_content_keep_all_pages() {
    let page = page_size();
    let bytes = pattern(16, 3);
    let root = Snapshot::from_slice(&bytes).unwrap().resized(bytes.len(), 5).unwrap();
    let mut view = root.view_with(ViewOptions::new().reserve(32 * page)).unwrap();
    assert_eq!(view.content(), &bytes[..5]);
    view.grow(3 * page + 1).unwrap();
    assert_same("grown within its length", &view, &bytes);
    assert_eq!(view.content(), &bytes[..3 * page + 1]);
    let taken = view.take_snapshot().unwrap();
    assert_eq!((taken.len(), taken.content_len()), (16 * page, 3 * page + 1));
    view.restore().unwrap();
    assert_eq!(view.content(), &bytes[..5]);
    view.grow(20 * page).unwrap();
    assert_eq!((view.len(), view.content().len()), (20 * page, 20 * page));
    view.restore_to(&taken).unwrap();
    assert_same("restored", &view, &bytes);
    assert_eq!(view.content().len(), 3 * page + 1);
    drop(view);

    let mut root = root;
    let mut view = root.view_mut_with(ViewOptions::new().reserve(32 * page)).unwrap();
    view[15 * page] ^= 1;
    view.grow(6).unwrap();
    view.commit().unwrap();
    assert_eq!((root.len(), root.content_len()), (16 * page, 6));
    assert_eq!(read(&root)[15 * page], bytes[15 * page] ^ 1);
}

#[test]
fn a_new_snapshot_does_not_need_the_one_that_it_was_made_from() {
    let page = page_size();
    for kinds::Kind { name, snapshot, bytes } in kinds::all() {
        let mut view = snapshot.view().unwrap();
        let (written, expected) =
            write(name, &snapshot, &bytes, &[(5 * page + 5, b"five"), (77 * page, b"!")]);
        view.restore_to(&written).unwrap();
        assert_same(name, &view, &expected);
        view[0] ^= 1;
        view.restore().unwrap();
        assert_same(name, &view, &bytes);
        drop(view);
        drop(snapshot);
        assert_same(name, &read(&written), &expected);
        assert_same(name, &written.view().unwrap(), &expected);
    }
}

/// The time for all of this depends on what changes. On the whole tebibyte, it would take minutes.
#[test]
#[cfg(target_pointer_width = "64")]
fn a_tebibyte_of_zeroes_costs_nothing() {
    let (len, page) = (1 << 40, page_size());
    let zeroed = Snapshot::zeroed(len).unwrap();
    assert_eq!(zeroed.data_ranges().unwrap(), []);
    let mut last = zeroed.clone();
    for step in 1..=100_u8 {
        last = last.with_changes([(usize::from(step) << 32, [step]), (len - page, [step])]).unwrap();
    }
    assert_eq!(last.stats().captured, 101 * page);
    assert_eq!(zeroed.stats().store.live, 101 * page, "the snapshots in between have no memory");
    assert_eq!(zeroed.diff(&last).unwrap().ranges().len(), 101);
    assert_eq!(last.data_ranges().unwrap().len(), 101);
    let short = last.resized(51 << 32, 0).unwrap();
    assert_eq!(short.stats().captured, 50 * page);
    let long = short.resized(len, len).unwrap();
    assert_eq!(last.diff(&long).unwrap().ranges().len(), 51);
}
