//! What the options of snapshots and views ask for is what the system then shows. For huge pages see
//! `huge_pages`.

mod common;
mod support;

use std::io::{self, ErrorKind};
use std::sync::Arc;

use common::kinds::{self, Kind, TRACKINGS, goes_on};
use common::maps::{areas, assert_access, present, try_read};
use common::script::read;
use common::seccomp::{
    NEW_USERFAULTFD, filters_are_available, install, refuse, refuse_ioctl, refuse_pagemap_scan,
};
use common::{assert_same, is_stopped, pattern, run_in_child, serial, skip};
use memsnap::{
    HugePages, Populate, Snapshot, SnapshotOptions, Tracking, View, ViewOptions, WhyNotFaster, page_size,
};

fn names<S>(view: &View<S>) -> Vec<String> {
    areas(view.as_ptr(), view.len()).into_iter().map(|area| area.name).collect()
}

#[test]
fn memory_is_shown_under_its_name() {
    const TEST: &str = "memory_is_shown_under_its_name";
    let _serial = serial();
    let mut options = SnapshotOptions::new();
    options.name("guest: memory/1");
    let (file, anon) = ("/memfd:guest: memory/1 (deleted)", "[anon:guest: memory/1]");
    let bytes = pattern(kinds::PAGES, 1);
    let of_bytes = options.from_slice(&bytes).unwrap();
    let of_stream = options.from_reader(&bytes[..]).unwrap();
    let mut of_zeroes = options.zeroed(bytes.len()).unwrap();
    for snapshot in [&of_bytes, &of_stream] {
        assert_eq!(names(&snapshot.view().unwrap()), [file]);
    }
    assert_eq!(names(&of_zeroes.view_mut().unwrap()), [file]);
    let mut view = of_bytes.view_with(ViewOptions::new().reserve(1 << 20)).unwrap();
    view[10 * page_size()..90 * page_size()].fill(9);
    let taken = view.take_snapshot().unwrap();
    assert!(names(&taken.view().unwrap()).iter().all(|name| name == file));
    (0..70).for_each(|_| drop(taken.view().unwrap()));
    assert!(taken.stats().flat > 0);
    assert_eq!(names(&taken.view().unwrap()), [file]);

    let unnamed = Snapshot::zeroed(1).unwrap();
    if names(&of_zeroes.view().unwrap()) != [anon] {
        return skip(TEST, "the kernel has no names for anonymous memory");
    }
    assert_ne!(names(&unnamed.view().unwrap()), [anon]);
    view.grow(180 * page_size()).unwrap();
    assert_eq!(names(&view), [file, anon]);
    view.restore().unwrap();
    view.zero(20 * page_size()..60 * page_size()).unwrap();
    assert_eq!(names(&view), [file, anon, file]);
    let zeroes = of_zeroes.view().unwrap().take_snapshot().unwrap();
    assert_eq!(names(&zeroes.view().unwrap()), [anon]);
}

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

/// The page faults of this thread while `script` runs.
fn faults(script: impl FnOnce()) -> libc::c_long {
    let count = || {
        // SAFETY: a structure of numbers, for which zero is a value.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: the structure lives through the call, which fills it in.
        assert_eq!(unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) }, 0);
        usage.ru_minflt
    };
    let before = count();
    script();
    count() - before
}

#[test]
fn populated_pages_are_ready() {
    let _serial = serial();
    const PAGES: usize = 4000;
    let bytes = pattern(PAGES, 1);
    let few = 100;
    // Bytes that are in memory, which `vec!` of zeroes are not.
    let mut zeroes = bytes.clone();
    zeroes.fill(0);
    let mut snapshots = vec![("zeroes", Snapshot::zeroed(bytes.len()).unwrap(), zeroes)];
    snapshots.push(("bytes", Snapshot::from_slice(&bytes).unwrap(), bytes));
    for (name, mut snapshot, mut bytes) in snapshots {
        let mut unprepared = snapshot.view().unwrap();
        let write = |view: &mut [u8]| view.iter_mut().step_by(page_size()).for_each(|byte| *byte ^= 1);
        assert_eq!(present(unprepared.as_ptr(), PAGES), 0);
        let unprepared_faults = faults(|| write(&mut unprepared));
        assert!(unprepared_faults >= PAGES as libc::c_long, "{name}: {unprepared_faults}");
        drop(unprepared);

        let view = snapshot.view_with(ViewOptions::new().populate(Populate::Read)).unwrap();
        assert_eq!(present(view.as_ptr(), PAGES), PAGES, "{name}");
        assert!(faults(|| assert_same(name, &view, &bytes)) < few, "{name}");
        if matches!(view.stats().tracker, Tracking::Scan | Tracking::Armed) {
            assert_eq!(view.stats().private, 0, "{name}");
        }
        assert!(view.changes().unwrap().is_empty());
        drop(view);

        let mut populated = ViewOptions::new();
        populated.populate(Populate::Write);
        let mut view = snapshot.view_with(&populated).unwrap();
        assert_eq!(view.stats().private, bytes.len(), "{name}");
        assert!(faults(|| write(&mut view)) < few, "{name}");
        write(&mut view);
        assert_eq!(view.take_snapshot().unwrap().stats().captured, 0);
        view[0] ^= 1;
        assert_eq!(view.take_snapshot().unwrap().stats().captured, page_size());
        drop(view);

        let mut view = snapshot.view_mut_with(&populated).unwrap();
        assert!(faults(|| write(&mut view)) < few, "mutable, {name}");
        write(&mut bytes);
        view.commit().unwrap();
        assert_same(name, &read(&snapshot), &bytes);
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
        // SAFETY: in a child that the system stops.
        assert!(is_stopped(|| unsafe { address.write_volatile(1) }), "{what}");
        // SAFETY: as above.
        assert!(is_stopped(|| _ = unsafe { address.read_volatile() }), "{what}");
    }
}

#[test]
fn guards_stop_who_goes_beyond_the_ends() {
    let _serial = serial();
    let room = 10 * page_size();
    for guard in [(0, 1), (1, 0), (3 * page_size(), 5 * page_size() - 1), (1 << 28, 1 << 29)] {
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
    for tracking in TRACKINGS {
        let mut options = ViewOptions::new();
        options.tracking(tracking);
        for Kind { name, mut snapshot, bytes } in kinds::all() {
            let what = format!("{tracking}, {name}");
            let mut view = match snapshot.view_with(&options) {
                Err(error) if error.kind() == ErrorKind::Unsupported => {
                    skip("each_way_of_tracking_works_or_says_that_it_cannot", error);
                    break;
                }
                view => view.unwrap(),
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

fn is_tracked<S>(what: &str, view: &View<S>, tracking: Tracking) {
    // What was mapped anew is protected when it is next searched.
    view.take_snapshot().unwrap();
    let stats = view.stats();
    match tracking {
        Tracking::Auto if option_env!("MEMSNAP_TIER").is_some() => {}
        Tracking::Auto => assert_ne!(stats.why_not_faster, Some(WhyNotFaster::Chosen), "{what}"),
        Tracking::Armed => assert_eq!((stats.tracker, stats.why_not_faster), (tracking, None), "{what}"),
        _ => {
            assert_eq!(
                (stats.tracker, stats.why_not_faster),
                (tracking, Some(WhyNotFaster::Chosen)),
                "{what}"
            );
        }
    }
}

/// Which of the ways of tracking views can be opened with, in the order of `TRACKINGS`.
fn possible() -> [bool; 5] {
    let bytes = pattern(9, 1);
    let mut snapshots = [Snapshot::from_slice(&bytes).unwrap(), Snapshot::zeroed(bytes.len()).unwrap()];
    TRACKINGS.map(|tracking| {
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
                Ok(()) => assert!(can, "{tracking} in some views only"),
                Err(error) => {
                    assert!(!can, "{tracking} in some views only: {error}");
                    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
                    assert!(error.to_string().contains("Tracking::Auto"), "{error}");
                }
            }
        }
        can
    })
}

#[test]
fn what_the_system_refuses_is_an_error_not_another_way() {
    const TEST: &str = "what_the_system_refuses_is_an_error_not_another_way";
    let _serial = serial();
    if !filters_are_available() {
        return skip(TEST, "the kernel has no seccomp filters");
    }
    run_in_child(|| {
        let usual = possible();
        assert!(usual[0] && usual[4]);
        run_refused(&usual);
    });
}

fn run_refused(usual: &[bool; 5]) {
    let forced = option_env!("MEMSNAP_TIER").is_some();
    let no_userfault =
        [refuse(libc::SYS_userfaultfd, libc::EPERM), refuse_ioctl(NEW_USERFAULTFD, libc::ENOTTY)];
    run_in_child(|| {
        install(&no_userfault);
        // The descriptor that is open stays in use, but a child has to open its own.
        assert_eq!(possible(), [true, false, usual[2], usual[3], true]);
    });
    run_in_child(|| {
        install(&[refuse_pagemap_scan(libc::EPERM)]);
        assert_eq!(possible(), [true, false, false, usual[3], true]);
        if usual[2] && !forced {
            let snapshot = Snapshot::from_slice(&[1; 9]).unwrap();
            let view = snapshot.view().unwrap();
            view.changes().unwrap();
            let refused = WhyNotFaster::Refused { tracking: Tracking::Scan, os_error: libc::EPERM };
            let stats = view.stats();
            assert_eq!((stats.tracker, stats.why_not_faster), (Tracking::Pagemap, Some(refused)));
            assert!(refused.to_string().starts_with("scan is refused: "), "{refused}");
        }
    });
    run_in_child(|| {
        install(&[refuse_pagemap_scan(libc::EPERM), refuse(libc::SYS_pread64, libc::EACCES)]);
        assert_eq!(possible(), [true, false, false, false, true]);
    });
}

#[test]
fn stats_tell_why_pages_are_not_protected() {
    const TEST: &str = "stats_tell_why_pages_are_not_protected";
    let _serial = serial();
    let snapshot = Snapshot::from_slice(&pattern(20, 1)).unwrap();
    let mut view = match snapshot.view_with(ViewOptions::new().tracking(Tracking::Armed)) {
        Err(error) => return skip(TEST, error),
        Ok(view) => view,
    };
    let locked = pattern(1, 1);
    // SAFETY: the page is mapped; to lock it changes no byte.
    if unsafe { libc::mlock(locked.as_ptr().cast(), 1) } != 0 {
        return skip(TEST, io::Error::last_os_error());
    }
    goes_on("locked", &mut view, &pattern(20, 1));
    let stats = view.stats();
    assert_eq!((stats.tracker, stats.why_not_faster), (Tracking::Scan, Some(WhyNotFaster::PinnedMemory)));
    // SAFETY: as above.
    assert_eq!(unsafe { libc::munlock(locked.as_ptr().cast(), 1) }, 0);
    goes_on("unlocked", &mut view, &pattern(20, 1));
    let stats = view.stats();
    assert_eq!((stats.tracker, stats.why_not_faster), (Tracking::Armed, None));
    if option_env!("MEMSNAP_TIER").is_none() {
        let stats = snapshot.view().unwrap().stats();
        assert_eq!((stats.tracker, stats.why_not_faster), (Tracking::Scan, Some(WhyNotFaster::NotWorthIt)));
    }
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
