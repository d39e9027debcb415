//! Zeroes take no memory and no time, however many there are. Only pages that are written do.

mod common;

use std::io::{self, ErrorKind};
use std::sync::LazyLock;

use common::maps::{Memory, memory};
use common::{LINUX, addresses_are_limited, alone, noise, skip};
use memsnap::{CowView, Snapshot, Tracking, page_size};

/// The number of pages if all of them have to be compared.
const FEW: usize = 20_000;

/// The length of a view: a tebibyte, if written pages can be found in it within milliseconds.
static LEN: LazyLock<usize> = LazyLock::new(|| {
    let found_by = Snapshot::zeroed(1).unwrap().view().unwrap().stats().tracker;
    let large = usize::try_from(1_u64 << 40).ok().filter(|_| found_by == Tracking::Scan);
    large.unwrap_or(FEW * page_size())
});
const PAGES: usize = 1000;

/// Returns whether the tracking method knows which pages of a view are private, rather than which ones may
/// be.
fn is_exact(view: &CowView<'_>) -> bool {
    view.stats().tracker == Tracking::Scan
}

/// Returns how much more memory the process has than `before`.
///
/// Returns 0 if the system does not report this, or if all pages are compared, which fills the holes of
/// memory files.
fn held_since(before: Option<Memory>) -> usize {
    let known = memory().zip(before).filter(|_| *LEN > FEW * page_size());
    known.map_or(0, |(now, before)| now.rss.saturating_sub(before.rss))
}

/// Checks that the process has no more memory than `before`, except for `copies` copies of the written pages.
///
/// Kernel page tables, the memory of the test and the page table of the image may take 4 MiB more.
#[track_caller]
fn assert_within(before: Option<Memory>, copies: usize, what: &str) {
    let written = PAGES * page_size();
    let held = held_since(before);
    let most = copies * written + (4 << 20);
    assert!(held <= most, "{what}: {held} bytes held for {copies} copies of {written}");
}

/// Returns a view of this length.
///
/// If the machine does not allow a process to have so many addresses, skips the test and returns `None`.
#[track_caller]
fn opened<V>(test: &str, view: io::Result<V>) -> Option<V> {
    match view {
        Err(error) if error.kind() == ErrorKind::OutOfMemory && addresses_are_limited() => {
            skip(test, error);
            None
        }
        view => Some(view.unwrap()),
    }
}

/// Returns the places of the pages that are written, all over the view.
fn places() -> impl Iterator<Item = usize> {
    let step = *LEN / page_size() / PAGES;
    (0..PAGES).map(move |i| (i * step + i % 7) * page_size())
}

fn write(view: &mut [u8], bytes: &[u8]) {
    for (place, bytes) in places().zip(bytes.chunks(page_size())) {
        view[place..place + page_size()].copy_from_slice(bytes);
    }
}

/// Checks the written pages and their neighbours.
#[track_caller]
fn assert_shows(what: &str, view: &[u8], bytes: Option<&[u8]>) {
    let zeroes = vec![0; page_size()];
    for (i, place) in places().enumerate() {
        let at = i * page_size();
        let expected = bytes.map_or(&zeroes[..], |bytes| &bytes[at..at + page_size()]);
        assert!(view[place..place + page_size()] == *expected, "{what}: the page at {place} is wrong");
        let next = place + page_size();
        assert!(view[next..next + page_size()] == *zeroes, "{what}: the page at {next} is not zero");
    }
    assert!(view[*LEN - page_size()..] == *zeroes, "{what}: the last page is not zero");
}

#[test]
fn zeroes_cost_what_is_written_to_them() {
    const TEST: &str = "zeroes_cost_what_is_written_to_them";
    alone(TEST, || {
        let zeroed = Snapshot::zeroed(*LEN).unwrap();
        let Some(mut view) = opened(TEST, zeroed.view()) else { return };
        let (first, second) = (noise(PAGES * page_size(), 1), noise(PAGES * page_size(), 2));
        let written = PAGES * page_size();
        let _ = (view.stats(), memory());
        let before = memory();
        let within = |copies: usize, what: &str| assert_within(before, copies, what);

        write(&mut view, &first);
        assert!(view.stats().private == written || !is_exact(&view));
        within(1, "written");
        let taken = view.take_snapshot().unwrap();
        assert_eq!(taken.stats().captured, written);
        assert_eq!(taken.stats().store.live, written);
        assert_eq!((taken.stats().base, taken.stats().flat), (0, 0));
        assert_eq!(view.changes().unwrap().ranges(), []);
        within(2, "taken");

        let other = taken.view().unwrap();
        assert_shows("view of the taken", &other, Some(&first));
        within(3, "viewed");
        assert!(other.stats().private == written || !is_exact(&other));

        let differing: Vec<_> = places().map(|place| place..place + page_size()).collect();
        assert_eq!(zeroed.diff(&taken).unwrap().ranges(), differing);
        assert_eq!(taken.diff(&zeroed).unwrap().ranges(), differing);

        write(&mut view, &second);
        assert_eq!(view.changes().unwrap().ranges(), differing);
        let again = view.take_snapshot().unwrap();
        assert_eq!(again.stats().store.live, 2 * written);
        view.restore().unwrap();
        assert_shows("restored", &view, None);
        view.restore_to(&again).unwrap();
        assert_shows("restored to the second", &view, Some(&second));
        view.restore_to(&taken).unwrap();
        assert_shows("restored to the first", &view, Some(&first));
        assert_eq!(again.diff(&taken).unwrap().ranges(), differing);
        within(4, "all");

        drop((other, again));
        let _one_more = view.take_snapshot().unwrap();
        assert_eq!(taken.stats().store.live, written);
        within(3, "dropped");
        drop(view);
        let kept = taken.stats().store;
        assert!(kept.live + kept.recyclable <= 2 * written + (1 << 20), "{kept:?}");
        within(2, "only the snapshot");
    });
}

#[test]
fn reading_zeroes_takes_no_memory() {
    const TEST: &str = "reading_zeroes_takes_no_memory";
    alone(TEST, || {
        let zeroed = Snapshot::zeroed(*LEN).unwrap();
        let Some(mut written) = opened(TEST, zeroed.view()) else { return };
        written[*LEN / 2] = 1;
        let taken = written.take_snapshot().unwrap();
        for snapshot in [&zeroed, &taken] {
            let mut view = snapshot.view().unwrap();
            let before = memory();
            assert_shows("untouched", &view, None);
            let sum: u32 = places().map(|place| u32::from(view[place] | view[place + 5 * page_size()])).sum();
            assert_eq!(sum, 0);
            let held = held_since(before);
            assert!(held < 1 << 20, "reading took {held} bytes");
            // Pages that were only read are not changed, and restoring them takes no memory.
            assert_eq!(view.changes().unwrap().ranges(), []);
            assert!(view.stats().private <= page_size() || !is_exact(&view), "{:?}", view.stats());
            assert_eq!(view.take_snapshot().unwrap().stats().captured, snapshot.stats().captured);
            view.restore().unwrap();
            let held = held_since(before);
            assert!(held < 1 << 20, "restoring took {held} bytes");
        }
        // Reading from the snapshot takes no memory either.
        let before = memory();
        let mut buffer = vec![1; page_size()];
        for place in places() {
            assert_eq!(taken.read_at(&mut buffer, place).unwrap(), buffer.len());
            assert!(buffer.iter().all(|&byte| byte == 0));
        }
        let held = held_since(before);
        assert!(held < 1 << 20, "read_at took {held} bytes");
    });
}

#[test]
fn zeroes_filled_in_place_cost_what_is_written_to_them() {
    const TEST: &str = "zeroes_filled_in_place_cost_what_is_written_to_them";
    if !LINUX {
        return skip(TEST, "comparing all pages of a memory file fills its holes");
    }
    alone(TEST, || {
        if cfg!(windows) {
            return skip(TEST, "on Windows, a section takes as much memory as may be written to it");
        }
        let mut snapshot = Snapshot::zeroed(*LEN).unwrap();
        let earlier = snapshot.clone();
        let Some(mut view) = opened(TEST, snapshot.view_mut()) else { return };
        let (first, second) = (noise(PAGES * page_size(), 3), noise(PAGES * page_size(), 4));
        let written = PAGES * page_size();
        let differing: Vec<_> = places().map(|place| place..place + page_size()).collect();
        let _ = memory();
        let before = memory();
        let within = |copies: usize, what: &str| assert_within(before, copies, what);

        write(&mut view, &first);
        assert_eq!(view.changes().unwrap().ranges(), differing);
        view.commit().unwrap();
        assert_eq!(snapshot.stats().base, written as u64);
        assert_eq!(snapshot.stats().captured, 0);
        within(1, "filled");

        // This compares only the written pages, since reading a hole of a memory file fills it.
        let mut view = snapshot.view().unwrap();
        let shows = |view: &[u8], bytes: &[u8]| {
            places().zip(bytes.chunks(page_size())).all(|(at, bytes)| view[at..at + page_size()] == *bytes)
        };
        assert!(shows(&view, &first));
        assert_eq!(snapshot.diff(&earlier).unwrap().ranges(), differing);
        write(&mut view, &second);
        let taken = view.take_snapshot().unwrap();
        assert_eq!(taken.diff(&snapshot).unwrap().ranges(), differing);
        assert_eq!(taken.diff(&earlier).unwrap().ranges(), differing);
        view.restore().unwrap();
        assert!(shows(&view, &first));
        view.restore_to(&taken).unwrap();
        assert!(shows(&view, &second));
        assert!(shows(&taken.view().unwrap(), &second));
        // Comparing all pages fills the holes of the file.
        assert!(snapshot.stats().base == written as u64 || *LEN == FEW * page_size());
        within(4, "viewed");
    });
}

/// Write-protecting a page that was never in memory needs a kernel page table. A view write-protected all its
/// pages: a view of 64 GiB with a few MiB in use had kernel page tables of 128 MiB, and each snapshot walked
/// through all of them.
#[cfg(all(target_os = "linux", target_pointer_width = "64", not(memsnap_unix)))]
#[test]
fn a_sparse_view_takes_page_tables_for_what_is_in_use() {
    const TEST: &str = "a_sparse_view_takes_page_tables_for_what_is_in_use";
    const LEN: usize = 64 << 30;
    const USED: usize = 32 << 20;
    alone(TEST, || {
        let snapshot = Snapshot::zeroed(LEN).unwrap();
        let mut options = memsnap::ViewOptions::new();
        let view = snapshot.view_with(options.tracking(Tracking::Armed));
        let mut view = match view {
            Err(error) if error.kind() == ErrorKind::Unsupported => return skip(TEST, error),
            view => view.unwrap(),
        };
        // Half of the pages are at the start of the view, and half are in its middle.
        let places = || (0..USED / 2).step_by(page_size()).flat_map(|at| [at, LEN / 2 + at]);
        let write = |view: &mut [u8], value| places().for_each(|at| view[at] = value);
        write(&mut view, 1);
        let in_use = page_tables();
        let first = view.take_snapshot().unwrap();
        if view.stats().tracker != Tracking::Armed {
            return skip(TEST, "this system cannot write-protect pages");
        }
        for value in 20..60 {
            view[usize::from(value) * page_size()] = value;
            // These pages were not in memory when the others were write-protected. Reading does not change
            // them.
            let read = |page: usize| view[LEN / 4 * 3 + (usize::from(value) * 200 + page * 2) * page_size()];
            assert!((0..100).all(|page| read(page) == 0));
            let taken = view.take_snapshot().unwrap();
            assert_eq!(taken.stats().captured, USED);
        }
        for value in 2..20 {
            write(&mut view, value);
            let taken = view.take_snapshot().unwrap();
            assert!(places().all(|at| view[at] == value));
            assert_eq!(taken.stats().captured, USED);
            // This page was not among those that were write-protected.
            view[LEN / 4 + usize::from(value) * page_size()] = 1;
            view.restore_to(&first).unwrap();
            assert!(places().all(|at| view[at] == 1));
            assert_eq!(view[LEN / 4 + usize::from(value) * page_size()], 0);
        }
        let tables = page_tables();
        // The limit includes the page tables of the store, which has a copy of the pages in use.
        assert!(tables < in_use + (4 << 20), "{in_use} bytes of page tables in use, {tables} in the end");
    });
}

/// Returns the size of the kernel page tables of the process, in bytes.
#[cfg(all(target_os = "linux", target_pointer_width = "64", not(memsnap_unix)))]
fn page_tables() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPTE:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}
