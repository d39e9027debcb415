//! The tracking method that a view chooses, and exact bytes while it changes.

mod common;

use common::{assert_same, noise, skip};
use memsnap::{Snapshot, Tracking, ViewOptions, page_size};

const LEN: usize = 32 << 20;

/// Returns whether views can be armed here.
fn can_be_armed() -> bool {
    let snapshot = Snapshot::from_slice(&[1]).unwrap();
    let mut view = snapshot.view().unwrap();
    if view.set_tracking(Tracking::Armed).is_err() {
        return false;
    }
    view[0] = 2;
    view.take_snapshot().unwrap();
    view.stats().tracker == Tracking::Armed
}

fn is_forced() -> bool {
    common::forced_tier().is_some()
}

#[test]
fn snapshots_of_a_view_in_use_lead_to_arming() {
    const TEST: &str = "snapshots_of_a_view_in_use_lead_to_arming";
    if !can_be_armed() || is_forced() {
        return skip(TEST, "this system cannot write-protect pages, or a tier is forced");
    }
    let mut bytes = noise(LEN, 1);
    let snapshot = Snapshot::from_slice(&bytes).unwrap();
    let mut view = snapshot.view().unwrap();
    let mut taken = Vec::new();
    for round in 0..20 {
        assert_same("in use", &view, &bytes);
        let at = round * 37 * page_size();
        view[at] ^= 0xFF;
        bytes[at] ^= 0xFF;
        taken.push((view.take_snapshot().unwrap(), bytes.clone()));
    }
    assert_eq!(view.stats().tracker, Tracking::Armed);
    for (snapshot, bytes) in &taken {
        view.restore_to(snapshot).unwrap();
        assert_same("restored to", &view, bytes);
    }
    view.restore().unwrap();
    assert_same("restored", &view, &noise(LEN, 1));
}

/// New mappings in a view are write-protected like the rest, so that no page has to be searched again because
/// of them.
#[test]
fn armed_views_stay_armed_when_they_grow_and_are_zeroed() {
    const TEST: &str = "armed_views_stay_armed_when_they_grow_and_are_zeroed";
    if !can_be_armed() {
        return skip(TEST, "this system cannot write-protect pages");
    }
    let mut bytes = noise(LEN, 1);
    let snapshot = Snapshot::from_slice(&bytes).unwrap();
    let mut options = ViewOptions::new();
    options.reserve(2 * LEN).tracking(Tracking::Armed);
    let mut view = snapshot.view_with(&options).unwrap();
    view.take_snapshot().unwrap();
    for round in 1..5 {
        assert_eq!(view.stats().tracker, Tracking::Armed);
        view.grow(LEN + round * page_size() * 10).unwrap();
        bytes.resize(view.len(), 0);
        let (at, written) = (round * 40 * page_size(), LEN + round * page_size());
        view.zero(at..at + 20 * page_size()).unwrap();
        bytes[at..at + 20 * page_size()].fill(0);
        for at in [at + page_size(), written, 5] {
            view[at] ^= 0xFF;
            bytes[at] ^= 0xFF;
        }
        let taken = view.take_snapshot().unwrap();
        assert_same("taken", &taken.view().unwrap(), &bytes);
        assert_same("in use", &view, &bytes);
        assert!(view.changes().unwrap().is_empty());
        if round % 2 == 0 {
            view.restore().unwrap();
            assert_same("restored", &view, &noise(LEN, 1));
            assert_eq!(view.stats().tracker, Tracking::Armed);
            view.restore_to(&taken).unwrap();
            assert_same("restored to", &view, &bytes);
        }
    }
}

/// If few pages are mapped, arming saves little time, and each first write to a write-protected page would
/// take a fault.
#[test]
fn sparse_and_small_views_are_not_armed() {
    if is_forced() {
        return skip("sparse_and_small_views_are_not_armed", "a tier is forced");
    }
    let large = Snapshot::from_slice(&noise(LEN, 1)).unwrap();
    let small = Snapshot::from_slice(&noise(10 * page_size(), 1)).unwrap();
    for snapshot in [large, small] {
        let mut view = snapshot.view().unwrap();
        for round in 0..40 {
            for page in [1, 5, 9] {
                view[page * page_size()] = round;
            }
            if round % 2 == 0 {
                view.take_snapshot().unwrap();
            } else {
                view.restore().unwrap();
            }
        }
        assert_ne!(view.stats().tracker, Tracking::Armed);
    }
}

/// Each snapshot write-protected all pages again. Then the first write to each page after each snapshot took
/// a fault, and each kernel page table with a write-protected page took a TLB flush on every processor that
/// runs the process.
#[cfg(target_os = "linux")]
#[test]
fn pages_that_are_written_before_each_snapshot_stay_open() {
    const TEST: &str = "pages_that_are_written_before_each_snapshot_stay_open";
    const WRITTEN: usize = 50;
    if !can_be_armed() {
        return skip(TEST, "this system cannot write-protect pages");
    }
    let bytes = noise(LEN, 1);
    let snapshot = Snapshot::from_slice(&bytes).unwrap();
    let mut view = snapshot.view_with(ViewOptions::new().tracking(Tracking::Armed)).unwrap();
    let mut expected = bytes.clone();
    let mut faults_of_writes = Vec::new();
    let step = LEN / page_size() / WRITTEN;
    for round in 0..40 {
        let before = page_faults();
        for at in (0..WRITTEN).map(|page| page * step * page_size()) {
            view[at] = round;
            expected[at] = round;
        }
        faults_of_writes.push(page_faults() - before);
        let taken = view.take_snapshot().unwrap();
        if round % 10 == 9 {
            assert_same("taken", &taken.view().unwrap(), &expected);
        }
    }
    assert_eq!(view.stats().tracker, Tracking::Armed);
    // The first writes are to pages that the view shares with the snapshot. The next ones are to pages that
    // were write-protected when the view was armed.
    let later = &faults_of_writes[2..];
    let faults: usize = later.iter().sum();
    assert!(faults < later.len() * WRITTEN / 4, "{faults_of_writes:?}");
}

/// Returns the number of page faults of this thread since it began.
#[cfg(target_os = "linux")]
fn page_faults() -> usize {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the argument is a `struct rusage`, which the call fills in.
    let result = unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
    assert_eq!(result, 0);
    // SAFETY: the call filled in the structure, for which zeroes are valid too.
    let usage = unsafe { usage.assume_init() };
    usage.ru_minflt.try_into().unwrap()
}

/// Pages that are not written again are write-protected, once comparing them has taken as long.
#[test]
fn pages_that_are_not_written_again_are_closed() {
    const TEST: &str = "pages_that_are_not_written_again_are_closed";
    if !can_be_armed() {
        return skip(TEST, "this system cannot write-protect pages");
    }
    let mut bytes = noise(LEN, 1);
    let snapshot = Snapshot::from_slice(&bytes).unwrap();
    let mut view = snapshot.view_with(ViewOptions::new().tracking(Tracking::Armed)).unwrap();
    let (mut spent, mut closed) = (0, 0);
    for round in 0..400 {
        for page in 0..20 {
            let at = (round * 20 + page) % (LEN / page_size()) * page_size();
            view[at] ^= 0xFF;
            bytes[at] ^= 0xFF;
        }
        let taken = view.take_snapshot().unwrap();
        let now = view.stats().costs.spent_in_vain;
        closed += usize::from(now < spent);
        spent = now;
        if round % 100 == 99 {
            assert_same("taken", &taken.view().unwrap(), &bytes);
        }
    }
    assert_eq!(view.stats().tracker, Tracking::Armed);
    assert!(closed >= 3, "write-protected {closed} times, {:?}", view.stats());
}

/// A view that was read in full once is mapped anew after some restores, since it does not use its pages any
/// more. A view whose pages are read again and again is armed.
#[test]
fn restores_of_a_view_in_use_lead_to_arming() {
    const TEST: &str = "restores_of_a_view_in_use_lead_to_arming";
    if !can_be_armed() || is_forced() {
        return skip(TEST, "this system cannot write-protect pages, or a tier is forced");
    }
    let bytes = noise(LEN, 1);
    let snapshot = Snapshot::from_slice(&bytes).unwrap();
    let (mut read_once, mut read_always) = (snapshot.view().unwrap(), snapshot.view().unwrap());
    assert_same("read once", &read_once, &bytes);
    for _ in 0..100 {
        assert_same("read always", &read_always, &bytes);
        for view in [&mut read_once, &mut read_always] {
            // Each round writes the same page, so that no other page is compared needlessly.
            let at = 700 * page_size();
            view[at..at + 10].fill(9);
            view.restore().unwrap();
            assert_same("restored", &view[at..at + 10], &bytes[at..at + 10]);
        }
    }
    assert_eq!(read_once.stats().tracker, Tracking::Scan);
    assert_eq!(read_always.stats().tracker, Tracking::Armed);
    assert_same("in the end", &read_once, &bytes);
}

/// Pages that a restore put back are not write-protected until the next snapshot. So the snapshot must not
/// conclude that they were written since.
#[test]
fn a_snapshot_after_a_restore_captures_nothing() {
    let bytes = noise(LEN, 1);
    let snapshot = Snapshot::from_slice(&bytes).unwrap();
    let mut view = snapshot.view().unwrap();
    drop(view.set_tracking(Tracking::Armed));
    for round in 2..6 {
        for page in [3, 70, 71, 500] {
            view[page * page_size()] ^= round;
        }
        assert_eq!(view.take_snapshot().unwrap().stats().captured, 4 * page_size());
        view.restore().unwrap();
        let taken = view.take_snapshot().unwrap();
        assert_eq!(taken.stats().captured, 0, "round {round}");
        assert_same("taken", &taken.view().unwrap(), &bytes);
    }
}

/// A view chooses the best tracking method that works on this kernel. If a test runs on a chosen kernel,
/// `MEMSNAP_EXPECTED_TIER` names that method.
#[test]
fn views_come_to_the_best_way_of_this_kernel() {
    const PAGES: usize = 512;
    if is_forced() {
        return skip("views_come_to_the_best_way_of_this_kernel", "a tier is forced");
    }
    let snapshot = Snapshot::from_slice(&noise(PAGES * page_size(), 1)).unwrap();
    let mut view = snapshot.view().unwrap();
    let ways = [Tracking::Armed, Tracking::Scan, Tracking::Pagemap, Tracking::WorkingSet, Tracking::Compare];
    // `Armed` can be requested even if the kernel may refuse it later.
    let can = |&way: &Tracking| if way == Tracking::Armed { can_be_armed() } else { opens(&snapshot, way) };
    let best = ways.into_iter().find(can).unwrap();
    for round in 0..200 {
        let sum: usize = view.iter().step_by(page_size()).map(|&byte| usize::from(byte)).sum();
        view[round % PAGES * page_size()] = sum.to_le_bytes()[0];
        view.take_snapshot().unwrap();
    }
    assert_eq!(view.stats().tracker, best, "{:?}", view.stats());
    // Tests are skipped if memsnap finds that a method is impossible. So this checks that it is impossible.
    #[cfg(all(target_os = "linux", not(memsnap_unix)))]
    {
        use common::linux::seccomp::{kernel_has_pagemap_scan, kernel_protects_pages};
        assert_eq!(can_be_armed(), kernel_protects_pages(), "armed");
        assert_eq!(opens(&snapshot, Tracking::Scan), kernel_has_pagemap_scan(), "scan");
    }
    if let Ok(expected) = std::env::var("MEMSNAP_EXPECTED_TIER") {
        assert_eq!(best.to_string(), expected, "{:?}", view.stats());
    }
}

fn opens(snapshot: &Snapshot, tracking: Tracking) -> bool {
    snapshot.view_with(ViewOptions::new().tracking(tracking)).is_ok()
}
