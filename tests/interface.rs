//! The promises of the interface: lengths, slices, addresses, and what each call means.
#![allow(clippy::single_range_in_vec_init)] // What is compared with is a list of ranges.

mod common;

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read, Seek, Write};
use std::mem;
use std::ops::{Bound, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Barrier};
use std::thread;

use common::{assert_same, message, noise, padded};
use memsnap::{ArcView, CowView, MutView, OwnedView, Snapshot, View, page_size};

/// A snapshot of `bytes` by each constructor that takes bytes.
fn made_of(bytes: &[u8]) -> Vec<(&'static str, Snapshot)> {
    let file = || {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    };
    // SAFETY: nobody else has the unnamed file, and it is not written again.
    let mapped = unsafe { Snapshot::map_file(&file()) }.unwrap();
    vec![
        ("from_slice", Snapshot::from_slice(bytes).unwrap()),
        ("from_reader", Snapshot::from_reader(bytes).unwrap()),
        ("from_file", Snapshot::from_file(file()).unwrap()),
        ("map_file", mapped),
    ]
}

/// Snapshots of one length in every state that one can be in, and what each holds.
fn every_kind(content_len: usize) -> Vec<(&'static str, Snapshot, Vec<u8>)> {
    let bytes = noise(content_len, 7);
    let mut kinds: Vec<_> =
        made_of(&bytes).into_iter().map(|(kind, made)| (kind, made, padded(bytes.clone()))).collect();

    let zeroed = Snapshot::zeroed(content_len).unwrap();
    let zeroes = padded(vec![0; content_len]);
    kinds.push(("zeroed", zeroed.clone(), zeroes.clone()));

    for (kind, root, shown) in [
        ("captured over bytes", &kinds[0].1, padded(bytes.clone())),
        ("captured over zeroes", &zeroed, zeroes.clone()),
    ]
    .map(|(kind, root, shown)| (kind, root.clone(), shown))
    {
        let (mut view, mut shown) = (root.view().unwrap(), shown);
        scribble(&mut view, 1);
        scribble(&mut shown, 1);
        kinds.push((kind, view.take_snapshot().unwrap(), shown));
    }

    let mut filled = zeroed.clone();
    let mut shown = zeroes;
    scribble(&mut filled.view_mut().unwrap(), 2);
    scribble(&mut shown, 2);
    kinds.push(("filled in place", filled, shown));

    let often = kinds[5].1.clone();
    (0..100).for_each(|_| drop(often.view().unwrap()));
    kinds.push(("often viewed", often, kinds[5].2.clone()));
    kinds
}

/// Writes to single pages and to a run of them, each time elsewhere and something else.
fn scribble(bytes: &mut [u8], round: u8) {
    let page = page_size();
    let pages = bytes.len() / page;
    for i in [0, 3, pages / 2, pages - 1] {
        let at = (i + usize::from(round)) % pages * page;
        bytes[at + usize::from(round)..at + page].fill(0x40 ^ round);
    }
    let run = (5 + usize::from(round) % 3) * page;
    bytes[run..run + 80 * page].fill(round | 0x80);
}

fn shown(snapshot: &Snapshot) -> Vec<u8> {
    snapshot.view().unwrap().to_vec()
}

/// Long enough for runs of pages to be mapped, and no whole number of pages.
fn odd_len() -> usize {
    120 * page_size() + 5
}

#[test]
fn lengths_are_whole_pages_and_content_is_as_given() {
    assert_eq!(Snapshot::zeroed(1).unwrap().len(), page_size());
    for len in [0, 1, page_size() - 1, page_size(), page_size() + 1, odd_len()] {
        let bytes = noise(len, 1);
        let mut made = made_of(&bytes);
        made.push(("zeroed", Snapshot::zeroed(len).unwrap()));
        for (constructor, snapshot) in made {
            let content = if constructor == "zeroed" { vec![0; len] } else { bytes.clone() };
            let view = snapshot.view().unwrap();
            assert_eq!(snapshot.content_len(), len, "{constructor}");
            assert_eq!(snapshot.len(), len.next_multiple_of(page_size()), "{constructor}");
            assert_eq!(view.len(), snapshot.len(), "{constructor}");
            assert_eq!((snapshot.is_empty(), view.is_empty()), (len == 0, len == 0), "{constructor}");
            assert_same(constructor, view.content(), &content);
            assert_same(constructor, &view, &padded(content));
        }
    }
}

#[test]
fn descendants_keep_the_content_length() {
    for (kind, mut snapshot, _) in every_kind(odd_len()) {
        let mut view = snapshot.view().unwrap();
        view[0] ^= 1;
        assert_eq!(view.take_snapshot().unwrap().content_len(), odd_len(), "{kind}, taken");
        drop(view);
        assert_eq!(snapshot.clone().content_len(), odd_len(), "{kind}, cloned");
        assert_eq!(snapshot.try_clone().unwrap().content_len(), odd_len(), "{kind}, cloned");
        let mut view = snapshot.view_mut().unwrap();
        view[0] ^= 1;
        assert_eq!(view.content().len(), odd_len(), "{kind}, mutable");
        assert_eq!(view.take_snapshot().unwrap().content_len(), odd_len(), "{kind}, taken of mutable");
        drop(view);
        assert_eq!(snapshot.content_len(), odd_len(), "{kind}, changed");
    }
}

#[test]
fn an_empty_snapshot_is_allowed_everywhere() {
    let mut made = made_of(&[]);
    made.push(("zeroed", Snapshot::zeroed(0).unwrap()));
    let full = Snapshot::from_slice(&[1]).unwrap();
    for (constructor, mut empty) in made {
        let other = Snapshot::from_slice(&[]).unwrap();
        let mut view = empty.view().unwrap();
        assert_eq!(view.as_slice(), [0_u8; 0], "{constructor}");
        assert_eq!(view.as_mut_slice(), [0_u8; 0], "{constructor}");
        assert_eq!((view.len(), view.content().len(), view.is_empty()), (0, 0, true), "{constructor}");
        assert_eq!(view.as_ptr().addr() % page_size(), 0, "{constructor}");
        assert_eq!(view.changes().unwrap().ranges(), []);
        let taken = view.take_snapshot().unwrap();
        view.restore().unwrap();
        view.restore_to(&taken).unwrap();
        view.restore_to(&other).unwrap();
        assert_eq!(view.restore_to(&full).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert!(format!("{view:?}").contains("len: 0"), "{view:?}");
        assert!(format!("{empty:?}").contains("len: 0"), "{empty:?}");
        assert_eq!(view.stats().private, 0);
        drop(view);
        assert_eq!((taken.len(), taken.content_len(), taken.is_empty()), (0, 0, true), "{constructor}");
        assert_eq!(empty.diff(&taken).unwrap().ranges(), []);
        assert_eq!(empty.diff(&full).unwrap().ranges(), [0..page_size()]);
        assert_eq!(full.diff(&empty).unwrap().ranges(), [0..page_size()]);
        assert_eq!(empty.read_at(&mut [0; 8], 0).unwrap(), 0);
        assert_eq!(full.read_at(&mut [], 0).unwrap(), 0);
        assert_eq!(empty.clone().try_clone().unwrap().stats(), empty.stats());

        let mut view = empty.view_mut().unwrap();
        assert_eq!(view.take_snapshot().unwrap().len(), 0);
        view.restore().unwrap();
        view.restore_to(&other).unwrap();
        view.commit().unwrap();
        drop(empty.view_mut().unwrap());
        assert!(Arc::new(empty.clone()).view_arc().unwrap().is_empty());
        assert!(empty.into_view().unwrap().is_empty());
    }
}

#[test]
fn a_view_indexes_like_a_slice() {
    let bytes = padded(noise(2 * page_size(), 3));
    let snapshot = Snapshot::from_slice(&bytes).unwrap();
    let mut view = snapshot.view().unwrap();
    let end = view.len();
    assert_eq!(view[5], bytes[5]);
    assert_eq!(view[5..9], bytes[5..9]);
    assert_eq!(view[5..=9], bytes[5..=9]);
    assert_eq!(view[5..], bytes[5..]);
    assert_eq!(view[..9], bytes[..9]);
    assert_eq!(view[..=9], bytes[..=9]);
    assert_eq!(view[..], bytes[..]);
    let bounds = (Bound::Excluded(5), Bound::Included(9));
    assert_eq!(view[bounds], bytes[6..10]);
    assert_eq!(view[end..], []);

    view[0] = 1;
    view[1..2].fill(2);
    view[2..=2].fill(3);
    view[end - 1..].fill(4);
    view[..1][0] += 10;
    view[..=1][1] += 10;
    view[(Bound::Excluded(2), Bound::Excluded(4))][0] = 5;
    assert_eq!(view[..4], [11, 12, 3, 5]);
    assert_eq!(view[..][end - 1], 4);

    let outside: [fn(&View<&Snapshot>) -> u8; 3] =
        [|view| view[view.len()], |view| view[view.len()..=view.len()][0], |view| view[view.len() + 1..][0]];
    for outside in outside {
        assert!(catch_unwind(AssertUnwindSafe(|| outside(&view))).is_err());
    }
    assert!(catch_unwind(AssertUnwindSafe(|| view[end] = 1)).is_err());
}

#[test]
fn a_view_is_a_slice_wherever_one_is_wanted() {
    fn sum(bytes: &[u8]) -> u32 {
        bytes.iter().map(|&byte| u32::from(byte)).sum()
    }
    fn first(bytes: impl AsRef<[u8]>) -> Option<u8> {
        bytes.as_ref().first().copied()
    }
    fn fill(mut bytes: impl AsMut<[u8]>, value: u8) {
        bytes.as_mut()[..3].fill(value);
    }
    let snapshot = Snapshot::from_slice(b"abc").unwrap();
    let mut view = snapshot.view().unwrap();
    assert_eq!(sum(&view), 294);
    assert_eq!(first(&view), Some(b'a'));
    assert_eq!(view.iter().position(|&byte| byte == b'c'), Some(2));
    assert_eq!(view.chunks(page_size()).count(), 1);
    fill(&mut view, 1);
    assert_eq!(view.as_slice()[..4], [1, 1, 1, 0]);
    view.as_mut_slice()[..2].copy_from_slice(&[2, 3]);
    view.reverse();
    assert_eq!(view[view.len() - 3..], [1, 3, 2]);
    assert!(view.starts_with(&[0, 0]));
    drop(view);
    assert_eq!(sum(&Arc::new(snapshot).view_arc().unwrap()), 294);
}

#[test]
fn debug_output_tells_lengths_and_not_megabytes() {
    let snapshot = Snapshot::from_slice(&noise(1 << 20, 1)).unwrap();
    let view = snapshot.view().unwrap();
    for text in [format!("{snapshot:?}"), format!("{view:?}"), format!("{view:#?}")] {
        assert!(text.contains(&snapshot.len().to_string()), "{text}");
        assert!(text.len() < 1000, "{} characters: {text}", text.len());
    }
}

#[test]
fn handles_and_views_can_be_sent_and_shared() {
    fn sent_and_shared<T: Send + Sync>() {}
    sent_and_shared::<Snapshot>();
    sent_and_shared::<ArcView>();
    sent_and_shared::<OwnedView>();
    sent_and_shared::<CowView<'_>>();
    sent_and_shared::<MutView<'_>>();

    let snapshot = Arc::new(Snapshot::from_slice(b"here").unwrap());
    let mut view = snapshot.view_arc().unwrap();
    drop(snapshot);
    let view = thread::spawn(move || {
        view[..4].copy_from_slice(b"gone");
        view
    });
    let mut view = view.join().unwrap();
    assert_eq!(view.content(), b"gone");
    view.restore().unwrap();
    assert_eq!(view.content(), b"here");
}

#[test]
fn threads_may_take_snapshots_of_one_view_at_the_same_time() {
    let mut expected = noise(1000 * page_size(), 3);
    let snapshot = Snapshot::from_slice(&expected).unwrap();
    let mut view = snapshot.view().unwrap();
    for round in 0..20 {
        view.iter_mut().step_by(page_size()).for_each(|byte| *byte = round);
        expected.iter_mut().step_by(page_size()).for_each(|byte| *byte = round);
        let start = Barrier::new(4);
        let taken = thread::scope(|scope| {
            let takers = [(); 4].map(|()| {
                scope.spawn(|| {
                    start.wait();
                    view.take_snapshot().unwrap()
                })
            });
            takers.map(|taker| taker.join().unwrap())
        });
        for taken in &taken {
            assert_same("taken", &shown(taken), &expected);
        }
        assert_same("the view", &view, &expected);
    }
}

/// Everything that may be called on a view. Checks its address and length after each call.
fn exercise<S>(kind: &str, view: &mut View<S>, others: &[Snapshot]) {
    let (start, len) = (view.as_ptr(), view.len());
    assert_eq!(start.addr() % page_size(), 0, "{kind}");
    let check = |view: &mut View<S>| {
        assert_eq!(view.as_ptr(), start, "{kind}");
        assert_eq!(view.as_mut_ptr().cast_const(), start, "{kind}");
        assert_eq!(view.as_slice().as_ptr_range(), start..start.wrapping_add(len), "{kind}");
        assert_eq!(view.as_mut_slice().as_ptr(), start, "{kind}");
        assert_eq!(view.len(), len, "{kind}");
    };
    check(view);
    for (round, other) in (0..).zip(others) {
        scribble(view, round);
        check(view);
        view.changes().unwrap();
        let _ = view.stats();
        check(view);
        let taken = view.take_snapshot().unwrap();
        check(view);
        view.restore_to(other).unwrap();
        check(view);
        view.restore_to(&taken).unwrap();
        check(view);
        scribble(view, round + 1);
        view.restore().unwrap();
        check(view);
    }
}

#[test]
fn the_address_of_a_view_is_aligned_and_never_changes() {
    let kinds = every_kind(odd_len());
    let others: Vec<_> = kinds.iter().map(|(_, snapshot, _)| snapshot.clone()).collect();
    for (kind, mut snapshot, _) in kinds {
        exercise(kind, &mut snapshot.view().unwrap(), &others);
        exercise(kind, &mut Arc::new(snapshot.clone()).view_arc().unwrap(), &others);
        exercise(kind, &mut snapshot.clone().into_view().unwrap(), &others);
        exercise(kind, &mut snapshot.view_mut().unwrap(), &others);
    }
}

#[test]
fn restore_to_shows_any_snapshot_of_the_length() {
    let kinds = every_kind(odd_len());
    for (from, start, bytes) in &kinds {
        let mut view = start.view().unwrap();
        assert_same(from, &view, bytes);
        for (round, (to, snapshot, bytes)) in (0..).zip(&kinds) {
            scribble(&mut view, round);
            view.restore_to(snapshot).unwrap();
            assert_same(&format!("{from} to {to}"), &view, bytes);
            assert_eq!(view.changes().unwrap().ranges(), [], "{from} to {to}");
            scribble(&mut view, round);
            let mut scribbled = bytes.clone();
            scribble(&mut scribbled, round);
            let taken = view.take_snapshot().unwrap();
            assert_same(&format!("{from} to {to}, taken"), &shown(&taken), &scribbled);
            assert_same(&format!("{from} to {to}, target"), &shown(snapshot), bytes);
        }
        view.restore().unwrap();
        assert_same(&format!("{from}, back"), &view, bytes);
    }
}

#[test]
fn restore_to_changes_more_than_a_view_keeps_resident() {
    // Some of what differs is copied into the view, the rest is left to be read again.
    let filled = |seed| {
        let mut snapshot = Snapshot::zeroed(160 << 20).unwrap();
        let bytes = noise(90 << 20, seed);
        snapshot.view_mut().unwrap()[..bytes.len()].copy_from_slice(&bytes);
        (snapshot, bytes)
    };
    let (one, one_bytes) = filled(1);
    let (other, other_bytes) = filled(2);
    let mut view = one.view().unwrap();
    for (snapshot, bytes) in [(&other, &other_bytes), (&one, &one_bytes), (&other, &other_bytes)] {
        view[..80 << 20].fill(3);
        view.restore_to(snapshot).unwrap();
        assert_same("data", &view[..bytes.len()], bytes);
        assert!(view[bytes.len()..].iter().all(|&byte| byte == 0));
    }
    view[..85 << 20].fill(4);
    let taken = view.take_snapshot().unwrap();
    view.restore().unwrap();
    assert_same("restored", &view[..one_bytes.len()], &one_bytes);
    view.restore_to(&taken).unwrap();
    assert!(view[..85 << 20].iter().all(|&byte| byte == 4));
    assert_same("restored to the taken", &view[85 << 20..90 << 20], &other_bytes[85 << 20..]);
}

#[test]
fn a_mutable_view_shows_any_snapshot_and_leaves_its_bytes() {
    let kinds = every_kind(odd_len());
    for (from, start, _) in &kinds {
        for (to, target, bytes) in &kinds {
            let mut snapshot = start.clone();
            let mut view = snapshot.view_mut().unwrap();
            scribble(&mut view, 5);
            view.restore_to(target).unwrap();
            assert_same(&format!("{from} to {to}"), &view, bytes);
            view[1] ^= 0xFF;
            drop(view);
            let mut changed = bytes.clone();
            changed[1] ^= 0xFF;
            assert_same(&format!("{from} to {to}, held"), &shown(&snapshot), &changed);
            assert_same(&format!("{from} to {to}, target"), &shown(target), bytes);
        }
    }
}

#[test]
fn content_follows_the_snapshot_that_is_shown() {
    let long = Snapshot::from_slice(&noise(2 * page_size() - 1, 1)).unwrap();
    let short = Snapshot::from_slice(&noise(page_size() + 1, 2)).unwrap();
    let zero = Snapshot::zeroed(page_size() + 7).unwrap();
    let mut view = long.view().unwrap();
    let mut mutable = zero.clone();
    let mut mutable_view = mutable.view_mut().unwrap();
    for snapshot in [&short, &long, &zero, &short] {
        view.restore_to(snapshot).unwrap();
        assert_eq!(view.content().len(), snapshot.content_len());
        assert_same("content", view.content(), snapshot.view().unwrap().content());
        assert_eq!(view.take_snapshot().unwrap().content_len(), snapshot.content_len());
        mutable_view.restore_to(snapshot).unwrap();
        assert_eq!(mutable_view.content().len(), snapshot.content_len());
    }
    view.restore().unwrap();
    assert_eq!(view.content().len(), long.content_len());
    mutable_view.commit().unwrap();
    assert_eq!(mutable.content_len(), short.content_len());
    assert_same("held", mutable.view().unwrap().content(), short.view().unwrap().content());
}

#[test]
fn a_greater_length_is_refused_and_nothing_changes() {
    for (kind, mut snapshot, bytes) in every_kind(odd_len()) {
        for wrong in [odd_len() + page_size(), 3 * odd_len()] {
            let other = Snapshot::from_slice(&noise(wrong, 9)).unwrap();
            let check = |error: std::io::Error| {
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{kind}: {error}");
                for len in [snapshot.len(), other.len()] {
                    assert!(error.to_string().contains(&len.to_string()), "{kind}: {error}");
                }
            };
            let mut expected = bytes.clone();
            scribble(&mut expected, 4);
            let mut view = snapshot.view().unwrap();
            scribble(&mut view, 4);
            let changes = view.changes().unwrap().ranges();
            assert!(!changes.is_empty());
            check(view.restore_to(&other).unwrap_err());
            assert_same(kind, &view, &expected);
            assert_same(kind, view.content(), &expected[..odd_len()]);
            assert_eq!(view.changes().unwrap().ranges(), changes, "{kind}");
            view.restore().unwrap();
            assert_same(kind, &view, &bytes);
        }
        let other = Snapshot::zeroed(odd_len() * 2).unwrap();
        let mut view = snapshot.view_mut().unwrap();
        view[0] ^= 0xFF;
        assert_eq!(view.restore_to(&other).unwrap_err().kind(), ErrorKind::InvalidInput, "{kind}");
        view.commit().unwrap();
        let mut expected = bytes;
        expected[0] ^= 0xFF;
        assert_same(kind, &shown(&snapshot), &expected);
    }
}

/// The ranges of whole pages in which two byte vectors differ.
fn differing(left: &[u8], right: &[u8]) -> Vec<Range<usize>> {
    let page = page_size();
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for at in (0..left.len().max(right.len())).step_by(page) {
        if left.get(at..at + page) != right.get(at..at + page) {
            match ranges.last_mut() {
                Some(last) if last.end == at => last.end += page,
                _ => ranges.push(at..at + page),
            }
        }
    }
    ranges
}

#[test]
fn diff_names_the_pages_that_differ_of_any_two_snapshots() {
    let mut kinds = every_kind(odd_len());
    kinds.extend(every_kind(odd_len() + 3 * page_size()));
    for (left_kind, left, left_bytes) in &kinds {
        for (right_kind, right, right_bytes) in &kinds {
            let expected = differing(left_bytes, right_bytes);
            assert_eq!(left.diff(right).unwrap().ranges(), expected, "{left_kind}, {right_kind}");
        }
    }
}

#[test]
fn changes_are_the_pages_that_differ_from_what_was_last_agreed_on() {
    for (kind, snapshot, bytes) in every_kind(odd_len()) {
        let mut view = snapshot.view().unwrap();
        assert_eq!(view.changes().unwrap().ranges(), [], "{kind}");
        view.copy_from_slice(&bytes);
        assert_eq!(view.changes().unwrap().ranges(), [], "{kind}, rewritten with the same");
        scribble(&mut view, 3);
        let mut scribbled = bytes.clone();
        scribble(&mut scribbled, 3);
        assert_eq!(view.changes().unwrap().ranges(), differing(&bytes, &scribbled), "{kind}");
        let taken = view.take_snapshot().unwrap();
        assert_eq!(view.changes().unwrap().ranges(), [], "{kind}, taken");
        view.copy_from_slice(&bytes);
        assert_eq!(
            view.changes().unwrap().ranges(),
            differing(&bytes, &scribbled),
            "{kind}, put back by hand"
        );
        assert_eq!(view.changes().unwrap().ranges(), snapshot.diff(&taken).unwrap().ranges(), "{kind}");
        view.restore().unwrap();
        assert_eq!(view.changes().unwrap().ranges(), [], "{kind}, restored");
    }
}

#[test]
fn bytes_that_the_system_writes_count() {
    let bytes = noise(3 * page_size(), 4);
    let snapshot = Snapshot::zeroed(10 * page_size()).unwrap();
    let mut view = snapshot.view().unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    file.rewind().unwrap();
    file.read_exact(&mut view[2 * page_size()..5 * page_size()]).unwrap();
    assert_eq!(view.changes().unwrap().ranges(), [2 * page_size()..5 * page_size()]);
    let taken = view.take_snapshot().unwrap();
    assert_same("taken", &shown(&taken)[2 * page_size()..5 * page_size()], &bytes);
    view.restore().unwrap();
    assert!(view.iter().all(|&byte| byte == 0));
}

#[test]
fn read_at_copies_what_there_is() {
    for (kind, snapshot, bytes) in every_kind(odd_len()) {
        let (page, len) = (page_size(), snapshot.len());
        for (offset, wanted) in [
            (0, 0),
            (0, 1),
            (3, 10),
            (page - 1, 2),
            (page / 2, 5 * page),
            (0, len),
            (0, len + 9),
            (len - 1, 5),
            (len, 5),
            (len + 1, 5),
            (usize::MAX, 5),
        ] {
            let mut buffer = vec![0xA5; wanted];
            let expected = bytes.get(offset..len.min(offset.saturating_add(wanted))).unwrap_or_default();
            assert_eq!(snapshot.read_at(&mut buffer, offset).unwrap(), expected.len(), "{kind}, {offset}");
            assert_same(kind, &buffer[..expected.len()], expected);
            assert!(buffer[expected.len()..].iter().all(|&byte| byte == 0xA5), "{kind}: wrote too much");
        }
    }
}

/// A way in which a mutable view ends.
type End = (&'static str, fn(MutView<'_>));

const ENDS: [End; 3] = [
    ("drop", |view| drop(view)),
    ("commit", |view| view.commit().unwrap()),
    ("forget", |view| mem::forget(view)),
];

#[test]
fn what_is_written_through_a_mutable_view_is_what_its_snapshot_holds() {
    for (end, finish) in ENDS {
        for (kind, mut snapshot, bytes) in every_kind(odd_len()) {
            let what = format!("{kind}, {end}");
            let earlier = snapshot.clone();
            let mut view = snapshot.view_mut().unwrap();
            assert_same(&what, &view, &bytes);
            scribble(&mut view, 6);
            let mut scribbled = bytes.clone();
            scribble(&mut scribbled, 6);
            assert_same(&what, &view, &scribbled);
            assert_same(&format!("{what}: clone meanwhile"), &shown(&earlier), &bytes);
            finish(view);
            let held = if end == "forget" { &bytes } else { &scribbled };
            assert_same(&format!("{what}: held"), &shown(&snapshot), held);
            assert_same(&format!("{what}: clone"), &shown(&earlier), &bytes);
            assert_eq!(snapshot.diff(&earlier).unwrap().ranges(), differing(held, &bytes), "{what}");
            assert_eq!((snapshot.len(), snapshot.content_len()), (bytes.len(), odd_len()), "{what}");

            let second = snapshot.clone();
            let mut view = snapshot.view_mut().unwrap();
            assert_same(&format!("{what}: second view"), &view, held);
            view[0] ^= 0xFF;
            let mut again = held.clone();
            again[0] ^= 0xFF;
            drop(view);
            assert_same(&format!("{what}: held after the second"), &shown(&snapshot), &again);
            assert_same(&format!("{what}: first clone after the second"), &shown(&earlier), &bytes);
            assert_same(&format!("{what}: second clone"), &shown(&second), held);
        }
    }
}

#[test]
fn snapshots_taken_of_a_mutable_view_never_see_its_later_writes() {
    for (end, finish) in ENDS {
        for (kind, mut snapshot, bytes) in every_kind(odd_len()) {
            let what = format!("{kind}, {end}");
            let mut view = snapshot.view_mut().unwrap();
            let (mut shows, mut taken) = (bytes.clone(), Vec::new());
            for round in 0..4 {
                taken.push((view.take_snapshot().unwrap(), shows.clone()));
                scribble(&mut view, round);
                scribble(&mut shows, round);
            }
            assert_same(&what, &view, &shows);
            view.restore_to(&taken[2].0).unwrap();
            assert_same(&what, &view, &taken[2].1);
            finish(view);
            let held = if end == "forget" { &bytes } else { &taken[2].1 };
            assert_same(&format!("{what}: held"), &shown(&snapshot), held);
            for (taken, bytes) in &taken {
                assert_same(&format!("{what}: taken"), &shown(taken), bytes);
            }
        }
    }
}

#[test]
fn restoring_a_mutable_view_puts_back_what_the_snapshot_held_when_it_was_opened() {
    for (kind, mut snapshot, bytes) in every_kind(odd_len()) {
        let mut view = snapshot.view_mut().unwrap();
        for round in 0..3 {
            scribble(&mut view, round);
            view.restore().unwrap();
            assert_same(kind, &view, &bytes);
            scribble(&mut view, round + 1);
            let _taken = view.take_snapshot().unwrap();
            scribble(&mut view, round + 2);
            view.restore().unwrap();
            assert_same(kind, &view, &bytes);
        }
        view[9] ^= 0xFF;
        view.commit().unwrap();
        let mut changed = bytes.clone();
        changed[9] ^= 0xFF;
        assert_same(kind, &shown(&snapshot), &changed);

        let mut view = snapshot.view_mut().unwrap();
        scribble(&mut view, 8);
        view.restore().unwrap();
        assert_same(kind, &view, &changed);
        drop(view);
        assert_same(kind, &shown(&snapshot), &changed);
    }
}

#[test]
fn open_views_do_not_see_a_mutable_view_of_another_handle() {
    for (kind, snapshot, bytes) in every_kind(odd_len()) {
        let mut handle = snapshot.clone();
        let mut before = snapshot.view().unwrap();
        before[0] ^= 0x55;
        scribble(&mut handle.view_mut().unwrap(), 3);
        let mut expected = bytes.clone();
        expected[0] ^= 0x55;
        assert_same(kind, &before, &expected);
        before.restore().unwrap();
        assert_same(kind, &before, &bytes);
        before.restore_to(&handle).unwrap();
        assert_same(kind, &before, &shown(&handle));
    }
}

#[test]
fn sizes_beyond_what_a_slice_can_hold_are_refused() {
    for len in [usize::MAX, usize::MAX - page_size(), isize::MAX as usize, isize::MAX as usize + 1] {
        let error = Snapshot::zeroed(len).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains("snapshot"), "{error}");
        assert!(error.to_string().contains(&len.to_string()), "{error}");
    }
}

#[test]
#[cfg(target_pointer_width = "64")]
fn sizes_beyond_the_address_space_are_refused_by_the_view() {
    // No process has more than 56 bits' worth, and none on x86-64 more than 47 unless it asks.
    let largest = if cfg!(target_arch = "x86_64") { 1 << 47 } else { 1 << 57 };
    for len in [1 << 62, 1 << 57, largest] {
        let snapshot = Snapshot::zeroed(len);
        let error = match snapshot {
            Err(error) => error,
            Ok(mut snapshot) => {
                assert_eq!(snapshot.len(), len);
                assert_eq!(snapshot.read_at(&mut [1; 3], len - 2).unwrap(), 2);
                assert_eq!(snapshot.diff(&snapshot.clone()).unwrap().ranges(), []);
                assert_eq!(
                    snapshot.diff(&Snapshot::zeroed(1).unwrap()).unwrap().ranges(),
                    [page_size()..len]
                );
                let Err(error) = snapshot.view_mut() else { panic!("a mutable view of {len} bytes") };
                assert!(message(&error).contains(&len.to_string()), "{error}");
                match snapshot.view() {
                    Err(error) => error,
                    Ok(_) => panic!("a view of {len} bytes"),
                }
            }
        };
        assert!(message(&error).contains("view"), "{error}");
        assert!(message(&error).contains(&len.to_string()), "{error}");
    }
}

#[test]
fn errors_name_the_operation() {
    let path = tempfile::NamedTempFile::new().unwrap();
    let write_only = || OpenOptions::new().write(true).open(path.path()).unwrap();
    let error = Snapshot::from_file(write_only()).unwrap_err();
    assert!(message(&error).contains("snapshot of a file"), "{error}");
    // SAFETY: it is refused, and so not mapped.
    let error = unsafe { Snapshot::map_file(&write_only()) }.unwrap_err();
    assert!(message(&error).contains("mapping a file"), "{error}");
}
