//! Options of snapshots and views have the effects that their documentation describes.
//!
//! For huge pages see `huge_pages`.

#[path = "../common/mod.rs"]
mod common;
#[cfg(all(target_os = "linux", not(memsnap_unix)))]
mod linux;

use std::io::{self, ErrorKind};
use std::sync::Arc;

use common::alone::Doomed;
use common::kinds::{self, ALL_TRACKINGS, Kind, TRACKINGS, goes_on};
use common::maps::{assert_access, try_read, try_write};
use common::script::read;
use common::{LINUX, assert_same, pattern, serial, supported};
use memsnap::{
    HugePages, Populate, Snapshot, SnapshotOptions, Tracking, View, ViewOptions, WhyNotFaster, page_size,
};

#[test]
fn bad_names_are_refused() {
    let _serial = serial();
    let longest = "n".repeat(79);
    let with = |name: &str| {
        let mut options = SnapshotOptions::new();
        options.name(name);
        let made = [
            options.zeroed(1).map(drop),
            options.from_slice(b"1").map(drop),
            options.from_reader(&b"1"[..]).map(drop),
            options.from_file(tempfile::tempfile().unwrap()).map(drop),
        ];
        made.map(|made| made.map_err(|error| error.kind()))
    };
    for name in ["a", "with space", "ends with ~", &longest] {
        assert_eq!(with(name), [Ok(()); 4], "{name:?}");
    }
    let too_long = "n".repeat(80);
    for name in ["", "[anon", "a]", "a$", "`", "back\\slash", "line\n", "null\0", "ö", "\u{7f}", &too_long] {
        assert_eq!(with(name), [Err(ErrorKind::InvalidInput); 4], "{name:?}");
    }
}

fn is_guarded<S>(what: &str, view: &mut View<S>, (before, after): (usize, usize), room: usize) {
    let (page, start, len) = (page_size(), view.as_mut_ptr(), view.len());
    let (front, back) = (before.div_ceil(page), (room + after).div_ceil(page));
    assert_access(what, start.wrapping_sub(front * page), front, "---");
    assert_access(what, start, len / page, "rw-");
    assert_access(what, start.wrapping_add(len), back, "---");
    assert!(view.stats().reserved >= (front + back) * page, "{what}: {:?}", view.stats());
    let mut forbidden = Vec::new();
    if front > 0 {
        forbidden.extend([start.wrapping_sub(1), start.wrapping_sub(front * page)]);
    }
    if back > 0 {
        forbidden.extend([start.wrapping_add(len), start.wrapping_add(len + back * page - 1)]);
    }
    for address in forbidden {
        assert_eq!(try_read(address), None, "{what}");
        assert!(!try_write(address, 1), "{what}");
    }
}

#[test]
fn pages_beyond_the_ends_are_guarded() {
    let _serial = serial();
    let room = 10 * page_size();
    let large = if cfg!(target_pointer_width = "64") { 1 << 31 } else { 1 << 26 };
    for guard in [(0, 1), (1, 0), (3 * page_size(), 5 * page_size() - 1), (large / 2, large)] {
        let bytes = pattern(3, 1);
        for mut snapshot in [Snapshot::from_slice(&bytes).unwrap(), Snapshot::zeroed(bytes.len()).unwrap()] {
            let root = read(&snapshot);
            let mut options = ViewOptions::new();
            options.guard(guard.0, guard.1);
            is_guarded("no room", &mut snapshot.view_with(&options).unwrap(), guard, 0);
            options.reserve(bytes.len() + room);
            let mut view = snapshot.view_mut_with(&options).unwrap();
            is_guarded("with room", &mut view, guard, room);
            view.grow(bytes.len() + room).unwrap();
            is_guarded("grown", &mut view, guard, 0);
            view.restore().unwrap();
            is_guarded("restored", &mut view, guard, room);
            assert_same("guarded", &view, &root);
            drop(view);
            let shared = Arc::new(snapshot);
            is_guarded("arc", &mut shared.view_arc_with(&options).unwrap(), guard, room);
        }
    }
}

#[test]
fn guards_stop_who_goes_beyond_the_ends() {
    let mut doomed = Doomed::of("guards_stop_who_goes_beyond_the_ends");
    let _serial = serial();
    for mut snapshot in [Snapshot::from_slice(&[1]).unwrap(), Snapshot::zeroed(1).unwrap()] {
        let mut options = ViewOptions::new();
        options.guard(2 * page_size(), page_size()).reserve(2 * page_size());
        let mut view = snapshot.view_mut_with(&options).unwrap();
        let (start, end) = (view.as_mut_ptr(), view.as_mut_ptr().wrapping_add(page_size()));
        let last = end.wrapping_add(2 * page_size() - 1);
        for address in [start.wrapping_sub(1), start.wrapping_sub(2 * page_size()), end, last] {
            // SAFETY: `assert_stopped` runs this only in another process, which the system stops at the
            // access.
            doomed.assert_stopped(true, || unsafe { address.write_volatile(1) });
        }
        // SAFETY: as above.
        doomed.assert_stopped(true, || _ = unsafe { last.read_volatile() });
        // SAFETY: the address is that of a byte of the view. `assert_stopped` runs this in another process,
        // which exits directly afterwards.
        doomed.assert_stopped(false, || unsafe { start.write_volatile(1) });
    }
}

/// This must hold whether or not the system can populate pages.
#[test]
fn populated_views_are_as_exact_as_others() {
    let _serial = serial();
    for populate in [Populate::Read, Populate::Write] {
        let mut options = ViewOptions::new();
        options.populate(populate);
        for Kind { name, mut snapshot, bytes } in kinds::all() {
            let what = format!("{populate:?}, {name}");
            let view = snapshot.view_with(&options).unwrap();
            assert_same(&what, &view, &bytes);
            assert!(view.changes().unwrap().is_empty(), "{what}");
            assert_eq!(view.take_snapshot().unwrap().stats().captured, snapshot.stats().captured, "{what}");
            drop(view);
            goes_on(&what, &mut snapshot.view_with(&options).unwrap(), &bytes);
            goes_on(&what, &mut snapshot.view_mut_with(&options).unwrap(), &bytes);
        }
    }
}

#[test]
fn restores_leave_as_much_private_memory_as_they_were_told() {
    let _serial = serial();
    for Kind { name, snapshot, bytes } in kinds::all() {
        let captured = snapshot.stats().captured;
        for budget in [0, page_size() - 1, 10 * page_size() + 1, usize::MAX] {
            let mut view = snapshot.view_with(ViewOptions::new().keep_resident(budget)).unwrap();
            for round in 0..12 {
                view.iter_mut().step_by(page_size()).for_each(|byte| *byte ^= 0x3C);
                if round == 5 {
                    view.take_snapshot().unwrap();
                }
                view.restore().unwrap();
                let stats = view.stats();
                if stats.tracker != Tracking::Compare {
                    let most = (budget / page_size() * page_size()).saturating_add(captured);
                    assert!(stats.private <= most, "{name}, {budget}, round {round}: {stats:?}");
                }
                if round > 7 && budget == usize::MAX {
                    assert_eq!(stats.private, bytes.len(), "{name}, round {round}");
                }
                assert_same(name, &view, &bytes);
            }
        }
    }
}

#[test]
fn each_way_of_tracking_works_or_says_that_it_cannot() {
    let _serial = serial();
    for &tracking in TRACKINGS {
        let mut options = ViewOptions::new();
        options.tracking(tracking);
        for Kind { name, mut snapshot, bytes } in kinds::all() {
            let what = format!("{tracking}, {name}");
            let view = snapshot.view_with(&options);
            let Some(mut view) = supported("each_way_of_tracking_works_or_says_that_it_cannot", view) else {
                break;
            };
            goes_on(&what, &mut view, &bytes);
            is_tracked(&what, &view, tracking);
            drop(view);
            let mut view = snapshot.view_mut_with(&options).unwrap();
            let in_place = view.stats().why_not_faster == Some(WhyNotFaster::InPlace);
            assert_eq!(in_place, name == "zeroed");
            goes_on(&what, &mut view, &bytes);
            is_tracked(&what, &view, tracking);
            drop(view);
            goes_on(&what, &mut Arc::new(snapshot.clone()).view_arc_with(&options).unwrap(), &bytes);
            let mut view = snapshot.view().unwrap();
            view.set_tracking(tracking).unwrap();
            goes_on(&what, &mut view, &bytes);
            is_tracked(&what, &view, tracking);
        }
    }
}

/// Pages that may be pinned are never write-protected, whatever method is requested and however often they
/// are searched. The view is not written in place either, since a file with pinned pages cannot become the
/// base of a snapshot.
#[test]
fn views_that_are_pinned_are_neither_write_protected_nor_written_in_place() {
    let _serial = serial();
    for &tracking in TRACKINGS {
        let mut options = ViewOptions::new();
        options.pinned(true).tracking(tracking);
        for Kind { name, mut snapshot, bytes } in kinds::all() {
            let what = format!("{tracking}, {name}");
            let opened = snapshot
                .view_with(&options)
                .map(|mut view| is_never_armed(&what, &mut view, tracking, &bytes));
            if let Err(error) = opened {
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{what}: {error}");
                assert!(snapshot.view_mut_with(&options).is_err(), "{what}");
                break;
            }
            assert_ne!(tracking, Tracking::Armed, "{what}");
            is_never_armed(&what, &mut snapshot.view_mut_with(&options).unwrap(), tracking, &bytes);
            let shared = Arc::new(snapshot);
            is_never_armed(&what, &mut shared.view_arc_with(&options).unwrap(), tracking, &bytes);
        }
    }
    let snapshot = Snapshot::from_slice(&[1]).unwrap();
    let error = snapshot.view_with(ViewOptions::new().pinned(true).tracking(Tracking::Armed)).unwrap_err();
    assert!(!LINUX || error.to_string().contains("ViewOptions::pinned"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

fn is_never_armed<S>(what: &str, view: &mut View<S>, tracking: Tracking, bytes: &[u8]) {
    assert_ne!(view.stats().why_not_faster, Some(WhyNotFaster::InPlace), "{what}");
    for _ in 0..6 {
        goes_on(what, view, bytes);
        let stats = view.stats();
        assert_ne!(stats.tracker, Tracking::Armed, "{what}");
        if tracking == Tracking::Auto && common::forced_tier().is_none() && stats.tracker == Tracking::Scan {
            assert_eq!(stats.why_not_faster, Some(WhyNotFaster::PinnedMemory), "{what}");
        }
    }
    let before = view.stats();
    assert_eq!(view.set_tracking(Tracking::Armed).unwrap_err().kind(), ErrorKind::Unsupported, "{what}");
    assert_eq!(view.stats(), before, "{what}");
    view.set_tracking(Tracking::Auto).unwrap();
    goes_on(what, view, bytes);
    assert_ne!(view.stats().tracker, Tracking::Armed, "{what}");
    view[0] ^= 1;
    let taken = view.take_snapshot().unwrap();
    view.restore().unwrap();
    assert_eq!(read(&taken)[0], bytes[0] ^ 1, "{what}");
}

fn is_tracked<S>(what: &str, view: &View<S>, tracking: Tracking) {
    // A new mapping is write-protected at the next search.
    view.take_snapshot().unwrap();
    let stats = view.stats();
    match tracking {
        Tracking::Auto if common::forced_tier().is_some() => {}
        Tracking::Auto => assert_ne!(stats.why_not_faster, Some(WhyNotFaster::Chosen), "{what}"),
        Tracking::Armed | Tracking::WorkingSet => {
            assert_eq!((stats.tracker, stats.why_not_faster), (tracking, None), "{what}")
        }
        _ => {
            assert_eq!(
                (stats.tracker, stats.why_not_faster),
                (tracking, Some(WhyNotFaster::Chosen)),
                "{what}"
            );
        }
    }
}

/// Returns the tracking methods that views can be opened with.
fn possible() -> Vec<Tracking> {
    let bytes = pattern(9, 1);
    let mut snapshots = [Snapshot::from_slice(&bytes).unwrap(), Snapshot::zeroed(bytes.len()).unwrap()];
    let can = |tracking: &Tracking| {
        let tracking = *tracking;
        let mut options = ViewOptions::new();
        options.tracking(tracking);
        let mut results: Vec<io::Result<()>> = Vec::new();
        for snapshot in &mut snapshots {
            results.push(snapshot.view_with(&options).map(drop));
            results.push(snapshot.view_mut_with(&options).map(drop));
            results.push(Arc::new(snapshot.clone()).view_arc_with(&options).map(drop));
            let mut view = snapshot.view().unwrap();
            view[0] = 9;
            let before = view.stats();
            results.push(view.set_tracking(tracking));
            if results.last().is_some_and(Result::is_err) {
                assert_eq!(view.stats(), before);
            }
            view[1] = 9;
            assert_eq!(read(&view.take_snapshot().unwrap())[..2], [9, 9]);
        }
        let can = results[0].is_ok();
        for result in results {
            match result {
                Ok(()) => assert!(can, "{tracking} works only in some views"),
                Err(error) => {
                    assert!(!can, "{tracking} works only in some views: {error}");
                    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
                    assert!(error.to_string().contains("Tracking::Auto"), "{error}");
                }
            }
        }
        can
    };
    ALL_TRACKINGS.into_iter().filter(can).collect()
}

#[test]
fn a_way_of_tracking_works_in_all_views_or_none() {
    let _serial = serial();
    let possible = possible();
    assert!(possible.contains(&Tracking::Auto) && possible.contains(&Tracking::Compare), "{possible:?}");
    assert!(possible.iter().all(|tracking| TRACKINGS.contains(tracking)), "{possible:?}");
}

#[test]
fn more_than_there_are_addresses_is_refused() {
    let _serial = serial();
    let mut snapshot = Snapshot::from_slice(&[1]).unwrap();
    let with = |change: &dyn Fn(&mut ViewOptions)| {
        let mut options = ViewOptions::new();
        change(&mut options);
        options
    };
    let too_much: [ViewOptions; 4] = [
        with(&|options| _ = options.reserve(usize::MAX)),
        with(&|options| _ = options.guard(usize::MAX, 0)),
        with(&|options| _ = options.guard(0, usize::MAX)),
        with(&|options| _ = options.guard(0, usize::MAX).huge_pages(HugePages::Advise)),
    ];
    for options in &too_much {
        let results = [
            snapshot.view_with(options).map(drop),
            snapshot.view_mut_with(options).map(drop),
            Arc::new(snapshot.clone()).view_arc_with(options).map(drop),
        ];
        for result in results {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }
    let most = isize::MAX as usize;
    for options in [
        with(&|options| _ = options.reserve(most)),
        with(&|options| _ = options.guard(most, most)),
        with(&|options| _ = options.reserve(most).guard(most, most)),
    ] {
        assert!(snapshot.view_with(&options).is_err());
        assert!(snapshot.view_mut_with(&options).is_err());
    }
    assert_eq!(snapshot.view().unwrap().content(), [1]);
}

#[test]
fn debug_prints_one_brief_line() {
    let _serial = serial();
    let mut snapshot = SnapshotOptions::new().name("shown").from_slice(&[1; 9]).unwrap();
    for text in [format!("{snapshot:?}"), format!("{:?}", snapshot.view().unwrap())] {
        assert!(text.len() < 400 && !text.contains('\n'), "{text}");
        assert!(text.contains("len: ") && text.contains("captured: "), "{text}");
    }
    let view = snapshot.view_mut().unwrap().into_protected();
    assert!(format!("{view:?}").contains("tracker: "));
    assert!(format!("{:?} {:?}", ViewOptions::new(), SnapshotOptions::new()).len() < 500);
}
