//! The effects of options that `/proc` reports, and options on a system that refuses calls.

use memsnap::{Populate, Snapshot, SnapshotOptions, Tracking, View, ViewOptions, WhyNotFaster, page_size};

use super::common::kinds::{self, goes_on};
use super::common::linux::seccomp::{
    NEW_USERFAULTFD, filters_are_available, install, refuse, refuse_ioctl, refuse_pagemap_scan,
};
use super::common::maps::{areas, present};
use super::common::script::read;
use super::common::unix::{lock, run_in_child};
use super::common::{assert_same, pattern, serial, skip, supported};
use super::possible;

fn names<S>(view: &View<S>) -> Vec<String> {
    areas(view.as_ptr(), view.len()).into_iter().map(|area| area.name).collect()
}

/// Returns whether the kernel supports names for anonymous memory.
fn kernel_names_memory() -> bool {
    const SET_VMA: libc::c_int = 0x5356_4d41;
    const ANON_NAME: libc::c_ulong = 0;
    // SAFETY: the range is empty, and the name is a string that outlives the call.
    unsafe { libc::prctl(SET_VMA, ANON_NAME, 0_usize, 0_usize, c"name".as_ptr()) == 0 }
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
    if !kernel_names_memory() {
        return skip(TEST, "the kernel does not support names for anonymous memory");
    }
    assert_eq!(names(&of_zeroes.view().unwrap()), [anon]);
    assert_ne!(names(&unnamed.view().unwrap()), [anon]);
    view.grow(180 * page_size()).unwrap();
    assert_eq!(names(&view), [file, anon]);
    view.restore().unwrap();
    view.zero(20 * page_size()..60 * page_size()).unwrap();
    assert_eq!(names(&view), [file, anon, file]);
    let zeroes = of_zeroes.view().unwrap().take_snapshot().unwrap();
    assert_eq!(names(&zeroes.view().unwrap()), [anon]);
}

/// Returns the number of page faults of this thread while `script` runs.
fn faults(script: impl FnOnce()) -> libc::c_long {
    let count = || {
        // SAFETY: the structure consists of numbers, for which zero is a valid value.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: the structure outlives the call, which fills it in.
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
    // These zeroes are resident. Those of `vec!` are not.
    let mut zeroes = bytes.clone();
    zeroes.fill(0);
    let mut snapshots = vec![("zeroes", Snapshot::zeroed(bytes.len()).unwrap(), zeroes)];
    snapshots.push(("bytes", Snapshot::from_slice(&bytes).unwrap(), bytes));
    for (name, mut snapshot, mut bytes) in snapshots {
        let mut unprepared = snapshot.view().unwrap();
        let write = |view: &mut [u8]| view.iter_mut().step_by(page_size()).for_each(|byte| *byte ^= 1);
        assert_eq!(present(unprepared.as_ptr(), PAGES), Some(0));
        let unprepared_faults = faults(|| write(&mut unprepared));
        assert!(unprepared_faults >= PAGES as libc::c_long, "{name}: {unprepared_faults}");
        drop(unprepared);

        let view = snapshot.view_with(ViewOptions::new().populate(Populate::Read)).unwrap();
        assert_eq!(present(view.as_ptr(), PAGES), Some(PAGES), "{name}");
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

#[test]
fn what_the_system_refuses_is_an_error_not_another_way() {
    const TEST: &str = "what_the_system_refuses_is_an_error_not_another_way";
    let _serial = serial();
    if !filters_are_available() {
        return skip(TEST, "the kernel has no seccomp filters");
    }
    run_in_child(|| {
        run_refused(&possible());
    });
}

fn run_refused(usual: &[Tracking]) {
    let forced = crate::common::forced_tier().is_some();
    let without = |refused: &[Tracking]| -> Vec<_> {
        usual.iter().copied().filter(|tracking| !refused.contains(tracking)).collect()
    };
    let no_userfault =
        [refuse(libc::SYS_userfaultfd, libc::EPERM), refuse_ioctl(NEW_USERFAULTFD, libc::ENOTTY)];
    run_in_child(|| {
        install(&no_userfault);
        // The open userfaultfd stays in use, but a child has to open its own.
        assert_eq!(possible(), without(&[Tracking::Armed]));
    });
    run_in_child(|| {
        install(&[refuse_pagemap_scan(libc::EPERM)]);
        assert_eq!(possible(), without(&[Tracking::Armed, Tracking::Scan]));
        if usual.contains(&Tracking::Scan) && !forced {
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
        assert_eq!(possible(), without(&[Tracking::Armed, Tracking::Scan, Tracking::Pagemap]));
    });
}

#[test]
fn stats_tell_why_pages_are_not_protected() {
    const TEST: &str = "stats_tell_why_pages_are_not_protected";
    let _serial = serial();
    let snapshot = Snapshot::from_slice(&pattern(20, 1)).unwrap();
    let view = snapshot.view_with(ViewOptions::new().tracking(Tracking::Armed));
    let Some(mut view) = supported(TEST, view) else { return };
    let locked = pattern(1, 1);
    if !lock(TEST, &locked[..1]) {
        return;
    }
    goes_on("locked", &mut view, &pattern(20, 1));
    let stats = view.stats();
    assert_eq!((stats.tracker, stats.why_not_faster), (Tracking::Scan, Some(WhyNotFaster::PinnedMemory)));
    // SAFETY: the page is mapped, and unlocking it changes no byte.
    assert_eq!(unsafe { libc::munlock(locked.as_ptr().cast(), 1) }, 0);
    goes_on("unlocked", &mut view, &pattern(20, 1));
    let stats = view.stats();
    assert_eq!((stats.tracker, stats.why_not_faster), (Tracking::Armed, None));
    if crate::common::forced_tier().is_none() {
        let stats = snapshot.view().unwrap().stats();
        assert_eq!((stats.tracker, stats.why_not_faster), (Tracking::Scan, Some(WhyNotFaster::NotWorthIt)));
    }
}
