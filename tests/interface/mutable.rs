//! Mutable views, which change their snapshot.

use std::mem;

use memsnap::MutView;

use super::common::assert_same;
use super::common::script::differing;
use super::{every_kind, odd_len, scribble, shown};

/// A way to end a mutable view.
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
            assert_same(&format!("{what}: clone made before"), &shown(&earlier), &bytes);
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
