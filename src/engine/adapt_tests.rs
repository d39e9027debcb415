//! Tests of moves into huge pages: views stay exact, and only suitable regions are moved.

use std::io::{ErrorKind, Write as _};

use crate::sys::{LARGE, fault, huge_region};
use crate::{HugePages, Snapshot, SnapshotOptions, Tracking, View, ViewOptions, page_size};

const LEN: usize = LARGE;

/// The number of bytes in a region.
///
/// If the kernel does not move files into huge pages, prints that `test` is skipped, and returns `None`.
fn region(test: &str) -> Option<usize> {
    let region = huge_region().map(|pages| pages * page_size());
    // A view that is used for nothing else shows whether the kernel moves anything.
    let moved = region.and_then(|region| {
        let snapshot = Snapshot::from_slice(&pattern()).unwrap();
        let mut view = snapshot.view_with(&scan()).ok()?;
        adapt(&mut view, 2 * LEN / region);
        (view.stats().huge > 0).then_some(region)
    });
    if moved.is_none() {
        let _ = writeln!(std::io::stderr(), "\nskipped: {test}: the kernel moves no file into huge pages");
    }
    moved
}

/// The bytes of a snapshot in which no page is zero.
fn pattern() -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    for (page, bytes) in bytes.chunks_mut(page_size()).enumerate() {
        bytes.fill(page.to_le_bytes()[0].max(1));
    }
    bytes
}

/// Reads a byte of each page, so that all pages are in memory.
fn read<S>(view: &View<S>) -> u64 {
    view.iter().step_by(page_size()).map(|&byte| u64::from(byte)).sum()
}

/// Makes the next snapshot or restore of `view` move a region, if that is possible.
fn make_step_due<S>(view: &mut View<S>) {
    view.tree.as_mut().unwrap().make_step_due();
}

/// Takes `steps` snapshots, each of which may move a region.
fn adapt<S>(view: &mut View<S>, steps: usize) {
    for _ in 0..steps {
        read(view);
        make_step_due(view);
        view.take_snapshot().unwrap();
    }
}

/// A generator of numbers that look random (`splitmix64`).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((bits ^ (bits >> 31)) % limit as u64).unwrap()
    }
}

#[track_caller]
fn assert_same(what: &str, bytes: &[u8], expected: &[u8]) {
    let differ = bytes.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!((bytes.len(), differ), (expected.len(), None), "{what}");
}

/// A view that is used at random, and the bytes that it must show.
struct RandomUse<'a> {
    what: String,
    numbers: Numbers,
    root: &'a [u8],
    view: View<&'a Snapshot>,
    bytes: Vec<u8>,
    /// The last snapshots taken, and their bytes.
    taken: Vec<(Snapshot, Vec<u8>)>,
}

impl RandomUse<'_> {
    /// Writes single bytes and, in one of four calls, 200 pages, all below `limit`.
    fn write(&mut self, limit: usize) {
        let Self { numbers, view, bytes, .. } = self;
        for _ in 0..numbers.below(4) * numbers.below(8) {
            let at = numbers.below(limit);
            view[at] ^= 0x55;
            bytes[at] ^= 0x55;
        }
        if numbers.below(4) == 0 {
            let at = numbers.below(limit - 200 * page_size());
            view[at..][..200 * page_size()].fill(7);
            bytes[at..][..200 * page_size()].fill(7);
        }
    }

    /// Reads all pages in one of three calls.
    fn read(&mut self) {
        if self.numbers.below(3) == 0 {
            read(&self.view);
        }
    }

    /// Restores the view, zeroes bytes below `limit`, or takes a snapshot.
    ///
    /// All but the second may move a region.
    fn call(&mut self, limit: usize) {
        make_step_due(&mut self.view);
        match self.numbers.below(6) {
            0 => {
                self.view.restore().unwrap();
                self.bytes.copy_from_slice(self.root);
            }
            1 if !self.taken.is_empty() => {
                let (to, old) = &self.taken[self.numbers.below(self.taken.len())];
                self.view.restore_to(to).unwrap();
                self.bytes.clone_from(old);
            }
            2 => {
                let at = self.numbers.below(limit / 2);
                self.view.zero(at..at + LEN / 16).unwrap();
                self.bytes[at..at + LEN / 16].fill(0);
            }
            _ => self.take(),
        }
    }

    fn take(&mut self) {
        let image = self.view.take_snapshot().unwrap();
        assert_same(&self.what, &image.view().unwrap(), &self.bytes);
        self.taken.truncate(2);
        self.taken.push((image, self.bytes.clone()));
    }

    fn check(&self) {
        assert_same(&self.what, &self.view, &self.bytes);
        assert!(self.view.changes().is_ok_and(|changes| changes.ranges().len() <= LEN));
    }
}

/// No write may be lost when the kernel forgets which pages were write-protected.
///
/// At the first write to a huge page, the kernel forgets this for its pages. When a region is unregistered so that it
/// can be moved, the kernel forgets it for the pages of the region.
#[test]
fn no_write_is_missed_while_the_image_moves_and_after() {
    if region("no_write_is_missed_while_the_image_moves_and_after").is_none() {
        return;
    }
    for tracking in [Tracking::Auto, Tracking::Armed, Tracking::Scan, Tracking::Pagemap] {
        for seed in 0..3 {
            use_at_random(tracking, seed);
        }
    }
}

/// Uses a view with `tracking` at random, unless the system does not support this method.
///
/// Checks its bytes after each call.
fn use_at_random(tracking: Tracking, seed: u64) {
    let root = pattern();
    let snapshot = Snapshot::from_slice(&root).unwrap();
    let memory = snapshot.stats().base;
    let view = match snapshot.view_with(ViewOptions::new().tracking(tracking)) {
        Err(error) if error.kind() == ErrorKind::Unsupported => return,
        view => view.unwrap(),
    };
    // The environment of the tests may force another tracking method.
    let moves = matches!(view.stats().tracker, Tracking::Armed | Tracking::Scan);
    let what = format!("{tracking}, seed {seed}");
    let (numbers, bytes, taken) = (Numbers(seed), root.clone(), Vec::new());
    let mut random = RandomUse { what, numbers, root: &root, view, bytes, taken };
    let mut most_huge = 0;
    read(&random.view);
    for round in 0..60 {
        // Regions with private pages are not moved. So the first writes are to one part of the view, and later ones to
        // all of it.
        let limit = if round < 30 { LEN / 4 } else { LEN };
        random.write(limit);
        random.read();
        random.call(limit);
        most_huge = most_huge.max(random.view.stats().huge);
        random.check();
    }
    let what = &random.what;
    assert_eq!(most_huge > 0, moves, "{what}");
    assert!(snapshot.stats().base <= memory / 7 * 8);
    assert_same(what, &snapshot.view().unwrap(), &root);
}

/// Each call into the system during a step fails once.
///
/// Then each call fails together with all later ones.
///
/// If the region cannot be registered again, the view must leave the armed tier. Otherwise, later writes to the region
/// would be lost.
#[test]
fn a_step_may_fail_anywhere() {
    if region("a_step_may_fail_anywhere").is_none() {
        return;
    }
    for tracking in [Tracking::Armed, Tracking::Scan] {
        for failures in [1, u64::MAX] {
            for first in 0.. {
                let has_failed = step_with_failures(tracking, first, failures);
                if has_failed != Some(true) {
                    break;
                }
            }
        }
    }
}

/// Takes a snapshot, in which `failures` calls fail from call `first` on.
///
/// Checks that no later write is missed.
///
/// Returns whether the step came as far as call `first`. `None` if the system does not support `tracking`.
fn step_with_failures(tracking: Tracking, first: u64, failures: u64) -> Option<bool> {
    let root = pattern();
    let snapshot = Snapshot::from_slice(&root).unwrap();
    let mut view = snapshot.view_with(ViewOptions::new().tracking(tracking)).ok()?;
    read(&view);
    // This snapshot arms the view, and moves no region.
    view[7] = 0;
    view.take_snapshot().unwrap();
    make_step_due(&mut view);
    let (taken, calls) = fault::inject(first, failures, || view.take_snapshot());
    let what = format!("{tracking}, {failures} failures from call {first} on");
    let mut bytes = root.clone();
    bytes[7] = 0;
    for page in (0..LEN / page_size()).step_by(16) {
        view[page * page_size() + 1] ^= 0x77;
        bytes[page * page_size() + 1] ^= 0x77;
    }
    let image = view.take_snapshot().unwrap();
    assert_same(&what, &image.view().unwrap(), &bytes);
    view.restore().unwrap();
    assert_same(&what, &view, &root);
    let has_failed = calls > first;
    assert!(has_failed || taken.is_ok(), "{what}");
    Some(has_failed)
}

fn scan() -> ViewOptions {
    ViewOptions::new().tracking(Tracking::Scan).clone()
}

/// Makes as many steps due as would move all of `view`. Checks that none moves a region.
///
/// Returns the number of bytes in huge pages. For a file of somebody else, the kernel itself may have put some there.
#[track_caller]
fn assert_stays(mut view: View<&Snapshot>, region: usize) -> usize {
    let before = view.stats().costs.move_to_huge_page;
    adapt(&mut view, 2 * LEN / region);
    view.restore().unwrap();
    // Each move changes the expected cost of a move.
    assert_eq!(view.stats().costs.move_to_huge_page, before);
    view.stats().huge
}

#[test]
fn nothing_is_moved_if_the_options_forbid_it() {
    let Some(region) = region("nothing_is_moved_if_the_options_forbid_it") else { return };
    let bytes = pattern();
    let snapshot = Snapshot::from_slice(&bytes).unwrap();
    let view = snapshot.view_with(scan().huge_pages(HugePages::Never)).unwrap();
    assert_eq!(assert_stays(view, region), 0, "the view forbids it");

    let mut options = SnapshotOptions::new();
    let never = options.huge_pages(HugePages::Never).from_slice(&bytes).unwrap();
    assert_eq!(assert_stays(never.view_with(&scan()).unwrap(), region), 0, "the snapshot forbids it");

    let mut view = snapshot.view_with(&scan()).unwrap();
    view.restore_to(&never).unwrap();
    assert_eq!(assert_stays(view, region), 0, "the snapshot that was restored forbids it");
}

#[test]
fn nothing_is_moved_if_there_is_no_large_file_of_our_own() {
    let Some(region) = region("nothing_is_moved_if_there_is_no_large_file_of_our_own") else { return };
    let bytes = pattern();
    let small = Snapshot::from_slice(&bytes[..LEN / 2]).unwrap();
    assert_eq!(assert_stays(small.view_with(&scan()).unwrap(), region), 0, "the file is too small");
    let zeroes = Snapshot::zeroed(LEN).unwrap();
    assert_eq!(assert_stays(zeroes.view_with(&scan()).unwrap(), region), 0, "there is no file");

    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    #[allow(unsafe_code)]
    // SAFETY: nothing else has the file, and nothing is written to it.
    let mapped = unsafe { Snapshot::map_file(&file) }.unwrap();
    assert_stays(mapped.view_with(&scan()).unwrap(), region);
}

#[test]
fn nothing_is_moved_if_that_would_give_memory_to_many_holes() {
    let Some(region) = region("nothing_is_moved_if_that_would_give_memory_to_many_holes") else { return };
    // A fifth of each region is holes.
    let mut sparse = Snapshot::zeroed(LEN).unwrap();
    let mut view = sparse.view_mut().unwrap();
    let pages = (0..LEN / page_size()).filter(|page| page % 512 >= 100);
    for page in pages.clone() {
        view[page * page_size()] = 1;
    }
    view.commit().unwrap();
    let memory = sparse.stats().base;
    let mut view = sparse.view_with(&scan()).unwrap();
    for _ in 0..2 * LEN / region {
        // The kernel maps the neighbours of a page that is read, but no holes.
        assert!(pages.clone().all(|page| view[page * page_size()] == 1));
        make_step_due(&mut view);
        view.take_snapshot().unwrap();
    }
    assert_eq!((view.stats().huge, sparse.stats().base), (0, memory));
}

/// Views stay exact that were opened before or after another view moved the image.
#[test]
fn views_share_what_one_of_them_moved() {
    let Some(region) = region("views_share_what_one_of_them_moved") else { return };
    let bytes = pattern();
    let snapshot = Snapshot::from_slice(&bytes).unwrap();
    let mut before = snapshot.view().unwrap();
    read(&before);
    before[0] = 0;
    let mut view = snapshot.view_with(&scan()).unwrap();
    adapt(&mut view, 2 * LEN / region);
    assert!(view.stats().huge > 0);
    let after = snapshot.view_with(ViewOptions::new().huge_pages(HugePages::Never)).unwrap();
    assert_same("opened after", &after, &bytes);
    before[0] = bytes[0];
    assert_same("opened before", &before, &bytes);
    before.restore().unwrap();
    assert_same("opened before", &before, &bytes);
    assert!(snapshot.stats().base <= (LEN as u64).next_multiple_of(region as u64));
}
