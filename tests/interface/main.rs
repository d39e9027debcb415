//! The guarantees of the interface: lengths, slices, addresses, and the effect of each call.
#![allow(clippy::single_range_in_vec_init)] // The tests compare lists of ranges.

#[path = "../common/mod.rs"]
mod common;
mod differences;
mod mutable;
mod shown;
mod slices;

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::sync::{Arc, Barrier};
use std::thread;

use common::{assert_same, message, noise, padded};
use memsnap::{Snapshot, page_size};

/// Makes a snapshot of `bytes` with each constructor that takes bytes.
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

/// Returns a snapshot of this length in each state that a snapshot can have, with its bytes.
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

/// Writes to single pages and to a run of pages. The places and the bytes differ in each round.
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

/// Returns a length that is long enough for views to map runs of pages, and that is not a whole number of
/// pages.
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
            assert!(
                buffer[expected.len()..].iter().all(|&byte| byte == 0xA5),
                "{kind}: bytes behind the end of the snapshot were written"
            );
        }
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
    // No process has more than 56 bits of addresses. On x86-64, none has more than 47 bits unless it asks for
    // them.
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
                let Err(error) = snapshot.view_mut() else {
                    panic!("a mutable view of {len} bytes was opened")
                };
                assert!(message(&error).contains(&len.to_string()), "{error}");
                match snapshot.view() {
                    Err(error) => error,
                    Ok(_) => panic!("a view of {len} bytes was opened"),
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
    // SAFETY: the file is refused, so it is not mapped.
    let error = unsafe { Snapshot::map_file(&write_only()) }.unwrap_err();
    assert!(message(&error).contains("mapping a file"), "{error}");
}
