//! Views stay exact while their image moves into huge pages. Nothing moves that must not.

use std::io::{ErrorKind, Write as _};

use crate::sys::{LARGE, fault, huge_region};
use crate::{HugePages, Snapshot, SnapshotOptions, Tracking, View, ViewOptions, page_size};

const LEN: usize = LARGE;

/// The bytes in a region. `None`, and a message that `test` is skipped, if the kernel moves no file.
fn region(test: &str) -> Option<usize> {
    let region = huge_region().map(|pages| pages * page_size());
    // Whether the kernel can move anything is found out with a view that is used for nothing else.
    let moved = region.and_then(|region| {
        let snapshot = Snapshot::from_slice(&pattern()).unwrap();
        let mut view = snapshot.view_with(ViewOptions::new().tracking(Tracking::Scan)).ok()?;
        adapt(&mut view, 2 * LEN / region);
        (view.stats().huge > 0).then_some(region)
    });
    if moved.is_none() {
        let _ = writeln!(std::io::stderr(), "\nskipped: {test}: the kernel moves no file into huge pages");
    }
    moved
}

fn pattern() -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    for (page, bytes) in bytes.chunks_mut(page_size()).enumerate() {
        bytes.fill(page.to_le_bytes()[0].max(1));
    }
    bytes
}

fn read<S>(view: &View<S>) -> u64 {
    view.iter().step_by(page_size()).map(|&byte| u64::from(byte)).sum()
}

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

/// Numbers that look random (`splitmix64`).
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

/// No write may be lost when the kernel forgets which pages were closed.
///
/// It forgets those of a huge page at the first write to that, and those of a region that is unregistered to be moved.
#[test]
fn no_write_is_missed_while_the_image_moves_and_after() {
    if region("no_write_is_missed_while_the_image_moves_and_after").is_none() {
        return;
    }
    let root = pattern();
    for tracking in [Tracking::Auto, Tracking::Armed, Tracking::Scan, Tracking::Pagemap] {
        for seed in 0..3 {
            let snapshot = Snapshot::from_slice(&root).unwrap();
            let memory = snapshot.stats().base;
            let mut view = match snapshot.view_with(ViewOptions::new().tracking(tracking)) {
                Err(error) if error.kind() == ErrorKind::Unsupported => continue,
                view => view.unwrap(),
            };
            let what = format!("{tracking}, seed {seed}");
            // A test run may force a tier.
            let moves = matches!(view.stats().tracker, Tracking::Armed | Tracking::Scan);
            let mut numbers = Numbers(seed);
            let mut bytes = root.clone();
            let mut taken: Vec<(Snapshot, Vec<u8>)> = Vec::new();
            let mut most = 0;
            read(&view);
            for round in 0..60 {
                // Regions with private pages are not moved. So writes are to one region first, and to all in the end.
                let part = if round < 30 { LEN / 4 } else { LEN };
                for _ in 0..numbers.below(4) * numbers.below(8) {
                    let at = numbers.below(part);
                    view[at] ^= 0x55;
                    bytes[at] ^= 0x55;
                }
                if numbers.below(4) == 0 {
                    let at = numbers.below(part - 200 * page_size());
                    view[at..][..200 * page_size()].fill(7);
                    bytes[at..][..200 * page_size()].fill(7);
                }
                if numbers.below(3) == 0 {
                    read(&view);
                }
                make_step_due(&mut view);
                match numbers.below(6) {
                    0 => {
                        view.restore().unwrap();
                        bytes.clone_from(&root);
                    }
                    1 if !taken.is_empty() => {
                        let (to, old) = &taken[numbers.below(taken.len())];
                        view.restore_to(to).unwrap();
                        bytes.clone_from(old);
                    }
                    2 => {
                        let at = numbers.below(part / 2);
                        view.zero(at..at + LEN / 16).unwrap();
                        bytes[at..at + LEN / 16].fill(0);
                    }
                    _ => {
                        let image = view.take_snapshot().unwrap();
                        assert_same(&what, &image.view().unwrap(), &bytes);
                        taken.truncate(2);
                        taken.push((image, bytes.clone()));
                    }
                }
                most = most.max(view.stats().huge);
                assert_same(&what, &view, &bytes);
                assert!(view.changes().is_ok_and(|changes| changes.ranges().len() <= LEN));
            }
            assert_eq!(most > 0, moves, "{what}");
            assert!(snapshot.stats().base <= memory / 7 * 8);
            assert_same(&what, &snapshot.view().unwrap(), &root);
        }
    }
}

/// Each call of a step fails once, and then each call together with all later ones.
///
/// If the region cannot be registered again, the view must leave the armed tier. Otherwise, later writes to the region
/// would be lost.
#[test]
fn a_step_may_fail_anywhere() {
    if region("a_step_may_fail_anywhere").is_none() {
        return;
    }
    let root = pattern();
    for tracking in [Tracking::Armed, Tracking::Scan] {
        for failures in [1, u64::MAX] {
            for first in 0.. {
                let snapshot = Snapshot::from_slice(&root).unwrap();
                let Ok(mut view) = snapshot.view_with(ViewOptions::new().tracking(tracking)) else { break };
                read(&view);
                // Arms the view, and moves no region.
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
                if calls <= first {
                    assert!(taken.is_ok(), "{what}");
                    break;
                }
            }
        }
    }
}

#[test]
fn nothing_is_moved_where_that_is_forbidden_or_takes_memory() {
    let Some(region) = region("nothing_is_moved_where_that_is_forbidden_or_takes_memory") else { return };
    let bytes = pattern();
    let steps = 2 * LEN / region;
    let stays = |what: &str, mut view: View<&Snapshot>| {
        let before = view.stats().costs.move_to_huge_page;
        adapt(&mut view, steps);
        view.restore().unwrap();
        // Each move changes its expected cost.
        assert_eq!(view.stats().costs.move_to_huge_page, before, "{what}");
        view.stats().huge
    };
    let scan = || ViewOptions::new().tracking(Tracking::Scan).clone();
    let snapshot = Snapshot::from_slice(&bytes).unwrap();
    assert_eq!(
        stays("the view must not", snapshot.view_with(scan().huge_pages(HugePages::Never)).unwrap()),
        0
    );
    let mut never = SnapshotOptions::new();
    let never = never.huge_pages(HugePages::Never).from_slice(&bytes).unwrap();
    assert_eq!(stays("the snapshot must not", never.view_with(&scan()).unwrap()), 0);
    let mut view = snapshot.view_with(&scan()).unwrap();
    view.restore_to(&never).unwrap();
    assert_eq!(stays("the snapshot restored must not", view), 0);
    let small = Snapshot::from_slice(&bytes[..LEN / 2]).unwrap();
    assert_eq!(stays("too small", small.view_with(&scan()).unwrap()), 0);
    assert_eq!(stays("no file", Snapshot::zeroed(LEN).unwrap().view_with(&scan()).unwrap()), 0);

    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    #[allow(unsafe_code)]
    // SAFETY: nobody else has the file, and nothing is written to it.
    let mapped = unsafe { Snapshot::map_file(&file) }.unwrap();
    // The number of huge pages is not checked: the kernel itself may have put such a file into huge pages.
    stays("a file of somebody else's", mapped.view_with(&scan()).unwrap());

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
    for _ in 0..steps {
        // The kernel maps the neighbours of a page that is read, but no holes.
        assert!(pages.clone().all(|page| view[page * page_size()] == 1));
        make_step_due(&mut view);
        view.take_snapshot().unwrap();
    }
    assert_eq!((view.stats().huge, sparse.stats().base), (0, memory));
}

/// Views that were opened before and after another view moved the image stay exact.
#[test]
fn views_share_what_one_of_them_moved() {
    let Some(region) = region("views_share_what_one_of_them_moved") else { return };
    let bytes = pattern();
    let snapshot = Snapshot::from_slice(&bytes).unwrap();
    let mut before = snapshot.view().unwrap();
    read(&before);
    before[0] = 0;
    let mut view = snapshot.view_with(ViewOptions::new().tracking(Tracking::Scan)).unwrap();
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
