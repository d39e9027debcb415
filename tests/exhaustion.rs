//! At the limits of a process (descriptors, address space, mappings, locked memory): errors say what
//! ran out, nothing is lost, and everything works again when there is room again.
#![cfg(all(target_os = "linux", not(memsnap_unix)))]
#![allow(clippy::single_range_in_vec_init)] // What is compared with is a list of ranges.

mod common;

use std::fs::File;
use std::io;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use common::linux::{CAP_IPC_LOCK, is_capable_of, mappings_limit, with_steady_heap};
use common::maps::memory;
use common::unix::Limit;
use common::{alone, assert_same, message, noise, padded, skip};
use memsnap::{Snapshot, Tracking, View, page_size};
use rustix::mm::MlockAllFlags;

/// Whether an error says, in words or by the name of the limit, which resource ran out.
#[track_caller]
fn assert_tells(error: &io::Error, operation: &str, limit: &str) {
    let message = message(error);
    assert!(message.contains(operation), "does not name the operation ({operation}): {message}");
    assert!(message.contains(limit), "does not name the limit ({limit}): {message}");
}

const DESCRIPTORS: &str = "ulimit -n";
const ADDRESS_SPACE: &str = "address space";
const MAPPINGS: &str = "max_map_count";

#[track_caller]
fn assert_holds(what: &str, snapshot: &Snapshot, bytes: &[u8]) {
    let mut read = vec![0xA5; bytes.len()];
    assert_eq!(snapshot.read_at(&mut read, 0).unwrap(), bytes.len(), "{what}");
    assert_same(what, &read, bytes);
    assert_same(what, &snapshot.view().unwrap(), bytes);
}

/// How a view finds what was written. Armed is what `scan` becomes after a while.
fn tier<S>(view: &View<S>) -> Tracking {
    match view.stats().tracker {
        Tracking::Armed => Tracking::Scan,
        tracker => tracker,
    }
}

/// Changes one byte in each of `pages` pages, spread evenly.
fn touch(bytes: &mut [u8], pages: usize) {
    let step = bytes.len() / page_size() / pages;
    bytes.iter_mut().step_by(step * page_size()).take(pages).for_each(|byte| *byte ^= 0xFF);
}

#[test]
fn without_descriptors_new_snapshots_fail_and_all_others_go_on() {
    alone("without_descriptors_new_snapshots_fail_and_all_others_go_on", || {
        let bytes = noise(1000 * page_size(), 1);
        let mut changed = bytes.clone();
        touch(&mut changed, 100);
        changed[200 * page_size()..300 * page_size()].fill(3);
        let mut zero = Snapshot::zeroed(10 * page_size()).unwrap();
        let snapshot = Arc::new(Snapshot::from_slice(&bytes).unwrap());
        let mut view = snapshot.view().unwrap();
        view.copy_from_slice(&changed);
        let taken = view.take_snapshot().unwrap();
        let mut mutable = (*snapshot).clone();
        let file = tempfile::tempfile().unwrap();
        (&file).write_all(&bytes).unwrap();
        let files = [(); 2].map(|()| file.try_clone().unwrap());
        let (pipe, mut writer) = io::pipe().unwrap();
        writer.write_all(&[1; 10]).unwrap();
        drop(writer);
        let pipe = File::from(OwnedFd::from(pipe));

        let mut limit = Limit::descriptors();
        assert_tells(&Snapshot::from_slice(&bytes).unwrap_err(), "copying bytes", DESCRIPTORS);
        assert_tells(&Snapshot::from_reader(&bytes[..]).unwrap_err(), "of a stream", DESCRIPTORS);
        let [file, other] = files;
        for file in [file, pipe] {
            assert_tells(&Snapshot::from_file(file).unwrap_err(), "of a file", DESCRIPTORS);
            limit.fill();
        }
        // SAFETY: nobody else has the unnamed file, and it is not written again.
        let mapped = unsafe { Snapshot::map_file(&other) };
        assert_tells(&mapped.unwrap_err(), "mapping a file", DESCRIPTORS);

        // What needs no descriptor of its own has no reason to fail.
        assert_eq!(Snapshot::from_slice(&[]).unwrap().len(), 0);
        assert_holds("zeroed", &Snapshot::zeroed(3 * page_size()).unwrap(), &vec![0; 3 * page_size()]);
        assert_holds("snapshot", &snapshot, &bytes);
        assert_holds("taken", &taken, &changed);
        assert_same("arc", &snapshot.view_arc().unwrap(), &bytes);
        assert_eq!(taken.diff(&snapshot).unwrap().ranges(), snapshot.diff(&taken).unwrap().ranges());
        for _ in 0..3 {
            view.restore().unwrap();
            assert_same("restored", &view, &bytes);
            view.restore_to(&taken).unwrap();
            assert_same("restored to", &view, &changed);
            view[5 * page_size()..].fill(9);
            assert_eq!(view.changes().unwrap().ranges(), [5 * page_size()..view.len()]);
            let filled = view.take_snapshot().unwrap();
            assert_holds("filled", &filled, &view);
            // A hundred views make an image worth consolidating, for which there is no descriptor now.
            (0..100).for_each(|_| drop(filled.view().unwrap()));
            assert_holds("often viewed", &filled, &view);
        }
        let mut view = mutable.view_mut().unwrap();
        view.fill(7);
        view.commit().unwrap();
        assert_holds("mutable", &mutable, &vec![7; bytes.len()]);
        zero.view_mut().unwrap().fill(8);
        assert_holds("zeroed and filled", &zero, &vec![8; 10 * page_size()]);

        drop(limit);
        assert_holds("afterwards", &Snapshot::from_slice(&bytes).unwrap(), &bytes);
        assert_holds("afterwards", &Snapshot::from_file(other).unwrap(), &bytes);
        assert_holds("afterwards", &taken, &changed);
    });
}

#[test]
fn a_first_capture_without_descriptors_fails_clearly_and_works_later() {
    alone("a_first_capture_without_descriptors_fails_clearly_and_works_later", || {
        let bytes = noise(100 * page_size(), 2);
        let mut changed = bytes.clone();
        touch(&mut changed, 10);
        let snapshot = Snapshot::from_slice(&bytes).unwrap();
        let mut view = snapshot.view().unwrap();
        let mut other = snapshot.view().unwrap();
        view.copy_from_slice(&changed);

        // Before the kernel was ever asked which pages were written.
        let limit = Limit::descriptors();
        let size = bytes.len().to_string();
        if let Err(error) = view.changes() {
            assert_tells(&error, &size, DESCRIPTORS);
        }
        match view.take_snapshot() {
            Ok(taken) => assert_holds("taken", &taken, &changed),
            Err(error) => assert_tells(&error, &size, DESCRIPTORS),
        }
        assert_same("view", &view, &changed);
        other[3] ^= 1;
        match other.restore() {
            Ok(()) => assert_same("restored", &other, &bytes),
            Err(error) => assert_tells(&error, &size, DESCRIPTORS),
        }
        drop(limit);

        assert_holds("taken later", &view.take_snapshot().unwrap(), &changed);
        other.restore().unwrap();
        assert_same("restored later", &other, &bytes);
        assert_eq!(view.changes().unwrap().ranges(), []);
        let fresh = tier(&snapshot.view().unwrap());
        assert_eq!(tier(&view), fresh, "a shortage that passed changed how pages are found");
    });
}

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
        // Its addresses are free again.
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
        // The first capture, and then one that needs more than what is at hand.
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
                assert_tells(&error, "captured pages", ADDRESS_SPACE);
                assert_tells(&error, " bytes)", ADDRESS_SPACE);
                assert_same("view", &view, &changed);
                assert_eq!(view.changes().unwrap().ranges(), changes, "a failed capture counts as none");
            }
            // Nothing of what exists already is in the way.
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
        // What the process needs once to ask the kernel is there; only the base is not.
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
                assert_tells(&error, "base image", ADDRESS_SPACE);
                assert_tells(&error, &size, ADDRESS_SPACE);
            }
            assert_same("view", &view, &changed);
        }
        // Unrelated snapshots are mapped in place of what is there, which takes no more addresses.
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
        assert_eq!(tier(&view), fresh, "a shortage that passed changed how pages are found");
    });
}

#[test]
fn a_first_capture_without_address_space_fails_clearly_and_works_later() {
    const TEST: &str = "a_first_capture_without_address_space_fails_clearly_and_works_later";
    with_steady_heap(TEST, || {
        let zero = Snapshot::zeroed(100 * page_size()).unwrap();
        let mut view = zero.view().unwrap();
        view[5 * page_size()] = 1;

        // Before the kernel was ever asked which pages were written.
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
        assert_eq!(tier(&view), fresh, "a shortage that passed changed how pages are found");
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
                // Of fresh snapshots, so that nothing is mapped or consolidated yet.
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

type Call = (&'static str, fn(&mut Arc<Snapshot>) -> io::Result<()>);

/// Every fallible call on a snapshot.
fn calls() -> Vec<Call> {
    vec![
        ("view", |snapshot| snapshot.view().map(drop)),
        ("view_mut", |snapshot| Arc::get_mut(snapshot).unwrap().view_mut().map(drop)),
        ("view_arc", |snapshot| snapshot.view_arc().map(drop)),
        ("try_clone", |snapshot| snapshot.try_clone().map(drop)),
        ("read_at", |snapshot| snapshot.read_at(&mut [0; 9], 3).map(drop)),
        ("diff", |snapshot| snapshot.diff(&Snapshot::zeroed(1)?).map(drop)),
        ("diff, the other side", |snapshot| Snapshot::zeroed(1)?.diff(snapshot).map(drop)),
    ]
}

#[test]
fn changes_that_cannot_be_captured_at_a_drop_are_kept_and_reported() {
    const TEST: &str = "changes_that_cannot_be_captured_at_a_drop_are_kept_and_reported";
    with_steady_heap(TEST, || {
        for (call, run) in calls() {
            for commit in [false, true] {
                let what = format!("{call}, {}", if commit { "commit" } else { "drop" });
                let bytes = noise((4 << 20) + 5, 7);
                let mut changed = padded(bytes.clone());
                touch(&mut changed, 500);
                let mut snapshot = Arc::new(Snapshot::from_slice(&bytes).unwrap());
                let earlier = Snapshot::clone(&snapshot);
                let mut view = Arc::get_mut(&mut snapshot).unwrap().view_mut().unwrap();
                view.copy_from_slice(&changed);
                assert!(!view.changes().unwrap().is_empty());

                let limit = Limit::address_space(0);
                if commit {
                    assert_tells(&view.commit().unwrap_err(), "kept", ADDRESS_SPACE);
                } else {
                    drop(view);
                }
                // None of these can fail, and none may panic.
                assert_eq!((snapshot.len(), snapshot.content_len()), (changed.len(), bytes.len()), "{what}");
                let _ = (snapshot.is_empty(), snapshot.stats(), format!("{snapshot:?}"));
                let clone = Snapshot::clone(&snapshot);
                for _ in 0..3 {
                    let error = run(&mut snapshot).expect_err(&what);
                    assert_tells(&error, "captur", ADDRESS_SPACE);
                }
                drop(limit);

                run(&mut snapshot).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_holds(&what, &snapshot, &changed);
                assert_holds(&what, &clone, &changed);
                assert_eq!(snapshot.diff(&clone).unwrap().ranges(), [], "{what}");
                assert_holds(&what, &earlier, &padded(bytes.clone()));
                let handle = Arc::get_mut(&mut snapshot).unwrap();
                handle.view_mut().unwrap()[1] ^= 0xFF;
                changed[1] ^= 0xFF;
                assert_holds(&what, handle, &changed);
            }
        }
    });
}

#[test]
fn an_error_at_a_drop_is_reported_once_even_if_there_is_room_again() {
    const TEST: &str = "an_error_at_a_drop_is_reported_once_even_if_there_is_room_again";
    with_steady_heap(TEST, || {
        for (call, run) in calls() {
            let bytes = noise(4 << 20, 8);
            let mut changed = bytes.clone();
            touch(&mut changed, 500);
            let mut snapshot = Arc::new(Snapshot::from_slice(&bytes).unwrap());
            let mut view = Arc::get_mut(&mut snapshot).unwrap().view_mut().unwrap();
            view.copy_from_slice(&changed);
            let limit = Limit::address_space(0);
            drop(view);
            drop(limit);
            let error = run(&mut snapshot).expect_err(call);
            assert!(message(&error).len() > 20, "{call}: {error}");
            run(&mut snapshot).unwrap_or_else(|error| panic!("{call}, again: {error}"));
            assert_holds(call, &snapshot, &changed);
        }
    });
}

#[test]
fn kept_changes_can_be_shown_by_another_view() {
    const TEST: &str = "kept_changes_can_be_shown_by_another_view";
    with_steady_heap(TEST, || {
        let bytes = noise(4 << 20, 9);
        let mut changed = bytes.clone();
        touch(&mut changed, 500);
        let mut snapshot = Snapshot::from_slice(&bytes).unwrap();
        let original = snapshot.clone();
        let mut other = original.view().unwrap();
        other[5] ^= 0xFF;
        let mut others = bytes;
        others[5] ^= 0xFF;
        let mut view = snapshot.view_mut().unwrap();
        view.copy_from_slice(&changed);
        view.changes().unwrap();
        let limit = Limit::address_space(0);
        view.commit().unwrap_err();
        other.restore_to(&snapshot).unwrap_err();
        assert_same("unchanged by the failure", &other, &others);
        drop(limit);
        other.restore_to(&snapshot).unwrap();
        assert_same("restored to", &other, &changed);
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

        let mut views = Vec::with_capacity(limit);
        let error = loop {
            assert!(views.len() < limit, "more views than mappings");
            match one.view() {
                Ok(view) => views.push(view),
                Err(error) => break error,
            }
        };
        assert_tells(&error, "view", MAPPINGS);
        assert_tells(&error, &small.len().to_string(), MAPPINGS);
        assert!(views.len() > limit - 5000, "only {} views of {limit} mappings", views.len());

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
            // There are slots for captured pages left.
            let again = view.take_snapshot().unwrap();
            assert_eq!(again.diff(&taken).unwrap().ranges(), [0..page_size()]);
            view.restore_to(&again).unwrap();
        }
        mutable.copy_from_slice(&changed);
        mutable.commit().unwrap();
        let mut read = vec![0; bytes.len()];
        committed.read_at(&mut read, 0).unwrap();
        assert_same("committed", &read, &changed);

        // More captured pages than there are slots for.
        let large = &mut views[5];
        large[0] ^= 1;
        match large.take_snapshot() {
            Ok(again) => assert_eq!(again.diff(&one).unwrap().ranges(), [0..page_size()]),
            Err(error) => assert_tells(&error, "captured pages", MAPPINGS),
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
        let mut views = Vec::with_capacity(limit);
        while let Ok(view) = one.view() {
            views.push(view);
        }

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
        assert_eq!(tier(&view), fresh, "a shortage that passed changed how pages are found");

        // An image with a long run of captured pages wants more than one mapping.
        let mut views = Vec::with_capacity(limit);
        while let Ok(view) = one.view() {
            views.push(view);
        }
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
        // Mappings of zeroes next to each other become one to the kernel.
        let mut zeroed: Vec<_> = (0..64).map(|_| zero.view().unwrap()).collect();
        zeroed.iter_mut().for_each(|view| view.fill(9));
        let mut views = Vec::with_capacity(limit);
        while let Ok(view) = one.view() {
            views.push(view);
        }
        let before = memory().unwrap().anonymous;
        let mut kept = Vec::with_capacity(32);
        for (i, view) in zeroed.into_iter().enumerate() {
            if i % 2 == 1 {
                kept.push(view);
            }
        }
        let given_back = before.saturating_sub(memory().unwrap().anonymous);
        assert!(given_back > 28 << 20, "{given_back} bytes of 32 MiB came back");
        assert!(kept.iter().all(|view| view.iter().all(|&byte| byte == 9)));
        drop(views);
        for mut view in kept {
            view.restore().unwrap();
            assert!(view.iter().all(|&byte| byte == 0));
        }
        assert!(zero.view().unwrap().iter().all(|&byte| byte == 0));
    });
}

#[test]
fn locked_memory_can_be_restored_and_captured() {
    const TEST: &str = "locked_memory_can_be_restored_and_captured";
    alone(TEST, || {
        if let Err(error) = rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE) {
            assert!(!is_capable_of(CAP_IPC_LOCK), "mlockall: {error}");
            return skip(TEST, format!("mlockall: {error}"));
        }
        // More than a view keeps resident when it is restored: the rest would be discarded if it could be.
        let bytes = noise(80 << 20, 14);
        let mut changed = bytes.clone();
        changed.chunks_mut(page_size()).for_each(|page| page[9] ^= 0xFF);
        for base in [Snapshot::from_slice(&bytes), Snapshot::zeroed(bytes.len())] {
            let base = match base {
                // It may be more than may be locked.
                Err(error) if !is_capable_of(CAP_IPC_LOCK) => return skip(TEST, message(&error)),
                base => base.unwrap(),
            };
            let mut view = base.view().unwrap();
            let root = view.to_vec();
            view.copy_from_slice(&changed);
            view.restore().unwrap();
            assert_same("restored", &view, &root);
            view.restore().unwrap();
            assert_same("restored twice", &view, &root);
            view[..40 << 20].copy_from_slice(&changed[..40 << 20]);
            let shows = view.to_vec();
            let taken = view.take_snapshot().unwrap();
            view.restore_to(&base).unwrap();
            assert_same("restored to the base", &view, &root);
            view.restore_to(&taken).unwrap();
            assert_same("restored to the taken", &view, &shows);
            drop(taken);
            view.restore().unwrap();
            for round in 0..3 {
                // Captures over pages whose frames could not be returned.
                view[..8 << 20].fill(round);
                let taken = view.take_snapshot().unwrap();
                let mut read = vec![0; 9 << 20];
                taken.read_at(&mut read, 0).unwrap();
                assert!(read[..8 << 20].iter().all(|&byte| byte == round));
                assert_same("behind", &read[8 << 20..], &root[8 << 20..9 << 20]);
            }
        }
    });
}

#[test]
fn the_limits_of_these_tests_are_felt() {
    const TEST: &str = "the_limits_of_these_tests_are_felt";
    with_steady_heap(TEST, || {
        let limit = Limit::descriptors();
        assert_eq!(File::open("/dev/null").unwrap_err().raw_os_error(), Some(24));
        drop(limit);
        File::open("/dev/null").unwrap();
        let limit = Limit::address_space(0);
        assert!(std::thread::Builder::new().spawn(|| ()).is_err(), "a stack without address space");
        drop(limit);
        std::thread::spawn(|| ()).join().unwrap();
    });
}
