//! Views that show one snapshot after another, at one address.

use std::io::ErrorKind;
use std::sync::Arc;

use memsnap::{Snapshot, View, page_size};

use super::common::{assert_same, noise};
use super::{every_kind, odd_len, scribble, shown};

/// Makes every call on a view, and checks its address and length after each call.
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
    // The restore copies some of the pages that differ, and discards the others, which are faulted in again.
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
    assert_same("restored to the snapshot taken", &view[85 << 20..90 << 20], &other_bytes[85 << 20..]);
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
