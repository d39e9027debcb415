//! Makes each single call into the operating system fail, one after the other, in a script of all
//! operations: afterwards everything shows the old or the new state, never a mixture that counts as
//! clean, and a restore repairs.

mod logged;

use std::io::{self, Write};
use std::mem;

use crate::sys::fault;
use crate::{Access, Snapshot, Tracking, View, ViewOptions, page_size};

/// Enough for runs of pages to be mapped.
const PAGES: usize = 102;

/// Tries `operation` with faults. After a failure: `check` what exists, and try again without faults.
pub(crate) fn survive<T>(mut operation: impl FnMut() -> io::Result<T>, check: impl FnOnce(io::Error)) -> T {
    operation().unwrap_or_else(|error| {
        fault::suspend(|| {
            check(error);
            operation().expect("the same call works once the fault is gone")
        })
    })
}

pub(crate) fn make(operation: impl FnMut() -> io::Result<Snapshot>, bytes: &[u8]) -> Snapshot {
    let snapshot = survive(operation, drop);
    assert_shows(&snapshot, bytes);
    snapshot
}

pub(crate) fn assert_shows(snapshot: &Snapshot, bytes: &[u8]) {
    fault::suspend(|| {
        let mut read = vec![0xA5; bytes.len()];
        assert_eq!(snapshot.read_at(&mut read, 0).unwrap(), bytes.len());
        assert!(read == bytes, "a snapshot does not hold its bytes");
    });
}

/// Opens a view of `snapshot`, which shows `bytes`.
pub(crate) fn open<'a>(snapshot: &'a Snapshot, bytes: &[u8]) -> View<&'a Snapshot> {
    let view = survive(|| snapshot.view(), |_| assert_shows(snapshot, bytes));
    assert!(&*view == bytes, "a new view does not show its snapshot");
    view
}

/// Takes a snapshot of what `view` shows.
pub(crate) fn take<S>(view: &View<S>) -> Snapshot {
    let shown = view.to_vec();
    let taken =
        survive(|| view.take_snapshot(), |_| assert!(**view == *shown, "a failed take changed the view"));
    assert!(**view == *shown, "taking a snapshot changed the view");
    assert_shows(&taken, &shown);
    taken
}

/// Runs `restore`, after which the view shows `bytes`.
pub(crate) fn show<S>(view: &mut View<S>, bytes: &[u8], restore: impl Fn(&mut View<S>) -> io::Result<()>) {
    let address = view.as_ptr();
    if restore(view).is_err() {
        let restored = fault::suspend(|| {
            if view.is_empty() {
                // Windows, without memory for zeroes.
                let error = view.take_snapshot().unwrap_err();
                assert!(error.to_string().contains("restore"), "{error}");
                view.changes().unwrap_err();
                view.zero(..).unwrap_err();
                view.grow(bytes.len()).unwrap_err();
                // Bytes that were to stay cannot.
                return restore(view).map_err(|_| view.restore().unwrap()).is_ok();
            }
            // Whatever the view shows now, it knows that it does.
            let shown = view.to_vec();
            assert!(shown.starts_with(view.content()));
            assert_shows(&view.take_snapshot().unwrap(), &shown);
            assert!(view.changes().unwrap().is_empty());
            view[0] ^= 0xFF;
            assert_eq!(view.changes().unwrap().ranges(), [0..page_size()]);
            restore(view).unwrap();
            true
        });
        if !restored {
            return;
        }
    }
    assert_eq!(view.as_ptr(), address);
    assert!(**view == *bytes, "a restored view does not show its snapshot");
}

pub(crate) fn edit(bytes: &mut [u8], value: u8) {
    let page = page_size();
    bytes[3 * page..80 * page].fill(value);
    bytes[90 * page + 7] = value;
    bytes[99 * page] = value;
}

pub(crate) fn pattern(value: u8) -> Vec<u8> {
    (0..PAGES * page_size()).map(|i| (i / 99).to_le_bytes()[0] ^ value).collect()
}

fn file(bytes: &[u8]) -> std::fs::File {
    fault::suspend(|| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    })
}

fn every_operation() {
    let bytes = pattern(1);
    let root = make(|| Snapshot::from_slice(&bytes), &bytes);
    let other = pattern(2);
    let unrelated = make(|| Snapshot::from_file(file(&other)), &other);
    make(|| Snapshot::from_reader(&other[..]), &other);
    let zeroes = vec![0; bytes.len()];
    let zeroed = make(|| Snapshot::zeroed(zeroes.len()), &zeroes);
    #[allow(unsafe_code)]
    // SAFETY: nobody else has the unnamed file.
    let mapped = make(|| unsafe { Snapshot::map_file(&file(&other)) }, &other);

    for (root, bytes) in [(&root, &bytes), (&zeroed, &zeroes), (&mapped, &other)] {
        let mut view = open(root, bytes);
        edit(&mut view, 7);
        let first = take(&view);
        let first_bytes = view.to_vec();
        edit(&mut view[page_size()..], 8);
        let second = take(&view);
        let second_bytes = view.to_vec();
        edit(&mut view, 9);
        survive(|| view.changes(), drop);
        show(&mut view, bytes, View::restore);
        edit(&mut view, 10);
        show(&mut view, &first_bytes, |view| view.restore_to(&first));
        show(&mut view, &second_bytes, |view| view.restore_to(&second));
        show(&mut view, &other, |view| view.restore_to(&unrelated));
        edit(&mut view, 11);
        let branch = take(&view);
        let branch_bytes = view.to_vec();
        show(&mut view, &zeroes, |view| view.restore_to(&zeroed));
        show(&mut view, &branch_bytes, |view| view.restore_to(&branch));
        show(&mut view, bytes, View::restore);
        assert_eq!(
            survive(|| first.diff(&second), drop).ranges(),
            fault::suspend(|| second.diff(&first).unwrap().ranges())
        );
        survive(|| branch.diff(&first), drop);
        for _ in 0..3 {
            open(&first, &first_bytes);
        }
        // Often enough for the image to be made flat, by one of the last.
        fault::suspend(|| (0..44).for_each(|_| drop(first.view().unwrap())));
        for _ in 0..10 {
            survive(|| first.view(), drop);
        }
        let mut flat = open(&first, &first_bytes);
        edit(&mut flat, 12);
        show(&mut flat, &second_bytes, |view| view.restore_to(&second));
        show(&mut flat, &first_bytes, View::restore);
    }
    for (mut snapshot, bytes) in [(root, &bytes), (zeroed, &zeroes), (mapped, &other)] {
        let earlier = snapshot.clone();
        mutate(&mut snapshot, true);
        mutate(&mut snapshot, false);
        assert_shows(&earlier, bytes);
    }
}

/// All that changes the length of a view or a part of it.
fn every_part() {
    let (bytes, zeroes) = (pattern(3), vec![0; PAGES * page_size()]);
    parts_of_a_view(&make(|| Snapshot::from_slice(&bytes), &bytes), &bytes);
    parts_of_a_view(&make(|| Snapshot::zeroed(zeroes.len()), &zeroes), &zeroes);
    growth_in_place();
}

/// A view written in place once kept the pages of a growth that failed after they were mapped, so that the next snapshot
/// was longer than the view.
fn growth_in_place() {
    let (len, longer) = (10 * page_size(), 30 * page_size());
    let mut snapshot = make(|| Snapshot::zeroed(len), &vec![0; len]);
    let Ok(mut view) = snapshot.view_mut_with(ViewOptions::new().reserve(longer)) else { return };
    view.fill(40);
    if view.grow(longer).is_err() {
        fault::suspend(|| {
            assert_eq!(view.len(), len);
            ends_as_long_as_it_is(longer);
            assert_eq!(view.take_snapshot().unwrap().len(), len);
            view.grow(longer).unwrap();
        });
    }
    let mut expected = vec![40; len];
    expected.resize(longer, 0);
    assert!(*view == *expected, "a view that grew does not show what it showed, and zeroes");
    fault::suspend(|| view.commit().unwrap());
    assert_shows(&snapshot, &expected);
}

/// Nor is the snapshot longer that such a view leaves when it ends.
fn ends_as_long_as_it_is(longer: usize) {
    for first in 0..4 {
        let mut snapshot = Snapshot::zeroed(10 * page_size()).unwrap();
        let mut view = snapshot.view_mut_with(ViewOptions::new().reserve(longer)).unwrap();
        view.fill(40);
        let (grown, _) = fault::inject(first, u64::MAX, || view.grow(longer));
        let bytes = view.to_vec();
        assert_eq!(bytes.len(), if grown.is_ok() { longer } else { 10 * page_size() });
        view.commit().unwrap();
        assert_shows(&snapshot, &bytes);
        assert_eq!(snapshot.len(), bytes.len());
    }
}

fn parts_of_a_view(root: &Snapshot, bytes: &[u8]) {
    let page = page_size();
    let mut options = ViewOptions::new();
    options.reserve(2 * bytes.len()).guard(page, page).keep_resident(4 * page);
    let mut view = survive(|| root.view_with(&options), |_| assert_shows(root, bytes));
    edit(&mut view, 30);

    let mut expected = view.to_vec();
    let longer = bytes.len() + 40 * page;
    if view.grow(longer).is_err() {
        assert!(*view == *expected, "a failed growth changed the view");
        fault::suspend(|| view.grow(longer).unwrap());
    }
    expected.resize(longer, 0);
    assert!(*view == *expected, "a view that grew does not show what it showed, and zeroes");
    edit(&mut view[40 * page..], 31);
    let grown = take(&view);
    let grown_bytes = view.to_vec();

    if view.zero(5 * page + 3..70 * page).is_err() {
        fault::suspend(|| {
            assert!(view.is_empty(), "zeroes fail only where a view is lost");
            view.restore_to(&grown).unwrap();
            view.zero(5 * page + 3..70 * page).unwrap();
        });
    }
    expected.copy_from_slice(&grown_bytes);
    expected[5 * page + 3..70 * page].fill(0);
    assert!(*view == *expected, "a zeroed range is not zero");
    let zeroed = take(&view);
    show(&mut view, &grown_bytes, |view| view.restore_to(&grown));
    show(&mut view, &expected, |view| view.restore_to(&zeroed));

    edit(&mut view[page..], 34);
    let written = view.to_vec();
    let range = 6 * page - 1..95 * page + 1;
    if view.discard(range.clone()).is_err() {
        assert!(*view == *written, "a failed discard changed the view");
        fault::suspend(|| view.discard(range.clone()).unwrap());
    }
    let before = mem::replace(&mut expected, written);
    expected[range.clone()].copy_from_slice(&before[range]);
    assert!(*view == *expected, "a discarded range does not show the last snapshot");
    drop(take(&view));
    show(&mut view, &before, |view| view.restore_to(&zeroed));

    edit(&mut view, 32);
    let kept = [10 * page + 5..20 * page, 30 * page..31 * page];
    expected.truncate(bytes.len());
    expected.copy_from_slice(bytes);
    kept.iter().for_each(|range| expected[range.clone()].copy_from_slice(&view[range.clone()]));
    show(&mut view, &expected, |view| view.restore_excluding(&kept));
    show(&mut view, bytes, View::restore);

    edit(&mut view, 33);
    expected.copy_from_slice(&view);
    let mut protected = view.into_protected();
    for (range, access) in [(4 * page..9 * page, Access::NONE), (9 * page..99 * page, Access::READ)] {
        if protected.protect(range.clone(), access).is_err() {
            assert!(protected.get(range.clone()).is_none(), "what may be protected can be had");
            fault::suspend(|| protected.protect(range, access).unwrap());
        }
    }
    let taken = survive(|| protected.take_snapshot(), drop);
    assert_shows(&taken, &expected);
    assert!(protected.get(4 * page..5 * page).is_none());
    if protected.restore().is_err() {
        fault::suspend(|| protected.restore().unwrap());
    }
    assert!(protected.into_open().is_ok_and(|view| *view == *bytes), "a restore puts access and bytes back");
}

/// All that can be done with a mutable view, whose end is `commit` or a drop.
fn mutate(snapshot: &mut Snapshot, commit: bool) {
    let before = fault::suspend(|| snapshot.view().unwrap().to_vec());
    let Ok(mut view) = snapshot.view_mut() else {
        assert_shows(snapshot, &before);
        return;
    };
    edit(&mut view, 20);
    let taken = take(&view);
    let taken_bytes = view.to_vec();
    edit(&mut view[page_size()..], 21);
    show(&mut view, &before, View::restore);
    show(&mut view, &taken_bytes, |view| view.restore_to(&taken));
    edit(&mut view[2 * page_size()..], 22);
    let written = view.to_vec();
    if commit {
        let failed = view.commit().is_err();
        if failed {
            assert_shows(&snapshot.clone(), &written);
        }
    } else {
        drop(view);
        let clone = snapshot.clone();
        // A failure at drop is reported once, by the snapshot and by clones of it alike; the bytes stay.
        fault::suspend(|| clone.try_clone().or_else(|_| clone.try_clone()).unwrap());
    }
    assert_shows(snapshot, &written);
}

/// Where each call takes several microseconds, some of them have to do.
const STRIDE: usize = if cfg!(windows) { 7 } else { 1 };

const SCRIPTS: [fn(); 2] = [every_operation, every_part];

/// Runs `script` with each single call failing.
pub(crate) fn with_every_single_failure(script: fn()) {
    let ((), calls) = fault::inject(u64::MAX, 0, script);
    assert!(calls > 50, "{calls} calls are not all operations");
    for call in (0..calls).step_by(STRIDE) {
        fault::inject(call, 1, script);
    }
}

/// Runs `script` with some or all calls failing from one on.
pub(crate) fn with_failures_that_last(script: fn()) {
    let ((), calls) = fault::inject(u64::MAX, 0, script);
    for call in (0..calls).step_by(3 * STRIDE) {
        fault::inject(call, 5, script);
        fault::inject(call, u64::MAX, script);
    }
}

#[test]
fn every_single_failure_leaves_old_or_new() {
    SCRIPTS.into_iter().for_each(with_every_single_failure);
}

#[test]
fn failures_that_last_leave_old_or_new() {
    SCRIPTS.into_iter().for_each(with_failures_that_last);
}

#[test]
fn changes_that_could_not_be_captured_at_drop_are_reported_once_and_kept() {
    let mut snapshot = Snapshot::from_slice(&pattern(1)).unwrap();
    let mut view = snapshot.view_mut().unwrap();
    edit(&mut view, 5);
    let written = view.to_vec();
    fault::inject(0, u64::MAX, || drop(view));
    assert_eq!(snapshot.content_len(), written.len());
    assert_eq!(snapshot.stats().mapped, written.len());
    let error = snapshot.view().unwrap_err();
    assert!(error.to_string().contains("mutable view"), "{error}");
    assert!(snapshot.view().unwrap()[..] == written[..]);
}

/// With more captured than a view was to keep in memory, each restore of an armed view looked at all of its private
/// pages, to give back what it could not: in a virtual machine with 128 MiB written, for a hundred times as long.
#[test]
fn captured_pages_are_not_searched_for_what_to_give_back() {
    let calls_of_a_restore = |kept: usize| {
        let root = Snapshot::from_slice(&pattern(1)).unwrap();
        let mut view = root.view_with(ViewOptions::new().keep_resident(kept)).unwrap();
        view.set_tracking(Tracking::Armed).is_ok().then(|| {
            view.fill(2);
            let taken = view.take_snapshot().unwrap();
            let mut calls = 0;
            for round in 0..4 {
                view[0] = round;
                calls = fault::inject(u64::MAX, 0, || view.restore_to(&taken).unwrap()).1;
            }
            calls
        })
    };
    assert_eq!(calls_of_a_restore(0), calls_of_a_restore(usize::MAX));
}

/// Runs `script` with the numbers of calls that are to fail, together with all after them, until it says that none failed.
fn with_each_failure_from(mut script: impl FnMut(u64) -> bool) {
    let failed = (0..).take_while(|&first| script(first)).count();
    assert!(failed > 0, "nothing failed");
}

const TRACKINGS: [Tracking; 6] = [
    Tracking::Auto,
    Tracking::Armed,
    Tracking::Scan,
    Tracking::Pagemap,
    Tracking::WorkingSet,
    Tracking::Compare,
];

/// Takes the snapshot first, since reading a page can make it one that was looked at.
fn shown_and_held<S>(view: &View<S>, bytes: &[u8], what: &str) {
    let mut held = vec![0xA5; bytes.len()];
    assert_eq!(view.take_snapshot().unwrap().read_at(&mut held, 0).unwrap(), bytes.len());
    assert!(held == bytes, "{what}: the snapshot taken of it");
    assert!(**view == *bytes, "{what}: the view");
}

/// A restore to a shorter snapshot that failed when it had shortened the view left what it agreed with as it was. When
/// the view grew again, it showed zeroes where its next snapshot still held the old bytes, and a restore to the longer
/// snapshot left the zeroes.
#[test]
fn a_view_that_grows_after_a_failed_restore_shows_what_its_snapshot_holds() {
    let page = page_size();
    for base in [Snapshot::zeroed(4 * page).unwrap(), Snapshot::from_slice(&vec![1; 4 * page]).unwrap()] {
        for tracking in TRACKINGS {
            let mut options = ViewOptions::new();
            let Ok(mut view) = base.view_with(options.reserve(64 * page).tracking(tracking)) else {
                continue;
            };
            view.grow(30 * page).unwrap();
            view[6 * page..].fill(7);
            let long = view.take_snapshot().unwrap();
            let mut bytes = view.to_vec();
            bytes[4 * page..].fill(0);
            let long_bytes = view.to_vec();
            with_each_failure_from(|first| {
                let mut view = long.view_with(&options).unwrap();
                // Closes the pages, where they can be closed.
                view[0] ^= 1;
                view.take_snapshot().unwrap();
                view.restore_to(&long).unwrap();
                let (restored, _) = fault::inject(first, u64::MAX, || view.restore_to(&base));
                if restored.is_err() && view.len() == 4 * page {
                    let mut shown = view.to_vec();
                    shown.resize(30 * page, 0);
                    view.grow(30 * page).unwrap();
                    shown_and_held(&view, &shown, "grown after a failure");
                    view[20 * page] = 3;
                    shown[20 * page] = 3;
                    shown_and_held(&view, &shown, "written after that");
                    view.restore_to(&base).unwrap();
                    view.grow(30 * page).unwrap();
                    shown_and_held(&view, &bytes, "grown after a restore");
                }
                view.restore_to(&long).unwrap();
                shown_and_held(&view, &long_bytes, "restored");
                restored.is_err()
            });
        }
    }
}

/// An image was shorter than the file that is its base, after a failed restore had shortened the view that it was taken
/// of. When a view of it grew, the bytes of the file behind its end came back in the next snapshot, and a restore to an
/// image that has them left zeroes.
#[test]
fn what_is_behind_the_end_of_an_image_is_gone() {
    let page = page_size();
    let long_bytes = vec![8; 80 * page];
    let long = Snapshot::from_slice(&long_bytes).unwrap();
    let short = Snapshot::from_slice(&vec![5; 35 * page]).unwrap();
    for tracking in TRACKINGS {
        let mut options = ViewOptions::new();
        if long.view_with(options.reserve(100 * page).tracking(tracking)).is_err() {
            continue;
        }
        let mut torn = Vec::new();
        with_each_failure_from(|first| {
            let mut view = long.view_with(&options).unwrap();
            view[0] = 9;
            let (restored, _) = fault::inject(first, u64::MAX, || view.restore_to(&short));
            if restored.is_ok() || view.len() != short.len() || torn.len() > 3 {
                return restored.is_err();
            }
            let bytes = view.to_vec();
            let taken = view.take_snapshot().unwrap();
            assert_shows(&taken, &bytes);
            shorter_than_its_base(&taken, &bytes, &long, &long_bytes, &options);
            // Once more when it is one flat file.
            (0..70).for_each(|_| drop(taken.view().unwrap()));
            shorter_than_its_base(&taken, &bytes, &long, &long_bytes, &options);
            torn.push(taken);
            true
        });
        assert!(!torn.is_empty(), "{tracking:?}: no restore failed after it had shortened the view");
    }
}

fn shorter_than_its_base(
    taken: &Snapshot,
    bytes: &[u8],
    long: &Snapshot,
    long_bytes: &[u8],
    options: &ViewOptions,
) {
    let mut grown = bytes.to_vec();
    grown.resize(long_bytes.len(), 0);
    let mut view = taken.view_with(options).unwrap();
    view.grow(grown.len()).unwrap();
    shown_and_held(&view, &grown, "grown");
    let longer = view.take_snapshot().unwrap();
    assert_shows(&longer, &grown);
    let differing = longer.diff(long).unwrap().ranges();
    assert_eq!(differing.last().unwrap().end, long_bytes.len());
    for target in [long, &longer, taken, &longer, long, taken, long] {
        view.restore_to(target).unwrap();
        let mut expected = vec![0xA5; target.len()];
        target.read_at(&mut expected, 0).unwrap();
        shown_and_held(&view, &expected, "restored to another");
    }
    shown_and_held(&longer.view().unwrap(), &grown, "a view of the grown snapshot");
    let mut view = taken.view_with(options).unwrap();
    view.restore_to(long).unwrap();
    shown_and_held(&view, long_bytes, "restored to the long one");
}

/// To take a snapshot of a protected view makes pages readable for a while. When they could not be protected again, the
/// call failed, and yet the view had moved on to the snapshot that nobody got: its changes were gone from `changes`.
#[test]
fn a_failed_take_of_a_protected_view_changes_nothing() {
    let page = page_size();
    for tracking in TRACKINGS {
        for base in [Snapshot::zeroed(9 * page).unwrap(), Snapshot::from_slice(&vec![1; 9 * page]).unwrap()] {
            let Ok(view) = base.view_with(ViewOptions::new().tracking(tracking)) else { continue };
            drop(view);
            let mut failures = 0;
            for (first, count) in (0..60).flat_map(|first| [(first, 1), (first, u64::MAX)]) {
                let mut view = base.view_with(ViewOptions::new().tracking(tracking)).unwrap();
                view[5 * page] = 2;
                view.take_snapshot().unwrap();
                view[5 * page] = 7;
                view[7 * page] = 7;
                let mut view = view.into_protected();
                view.protect(4 * page..6 * page, Access::NONE).unwrap();
                let (taken, _) = fault::inject(first, count, || view.take_snapshot());
                view.protect(4 * page..6 * page, Access::READ_WRITE).unwrap();
                let view = view.into_open().unwrap_or_else(|_| panic!("nothing is protected"));
                let changes = view.changes().unwrap().ranges();
                if taken.is_err() {
                    failures += 1;
                    assert_eq!(changes, [5 * page..6 * page, 7 * page..8 * page], "call {first}");
                } else {
                    assert_eq!(changes, []);
                }
                shown_and_held(&view, &view, "after the call");
            }
            assert!(failures > 2, "{failures} failures");
        }
    }
}

/// Where there was no memory to map a view anew nor for zeroes in its place (Windows), the view once handed out bytes that
/// could not be written, or refused all calls for ever, also a restore.
#[test]
fn a_view_without_memory_has_no_bytes_until_a_restore() {
    let (bytes, other) = (pattern(1), pattern(2));
    let unrelated = Snapshot::from_slice(&other).unwrap();
    let mut lost = 0;
    for (first, commit) in (0..30).flat_map(|first| [(first, false), (first, true)]) {
        let mut snapshot = Snapshot::from_slice(&bytes).unwrap();
        let mut view = snapshot.view_mut().unwrap();
        let (restored, _) = fault::inject(first, u64::MAX, || view.restore_to(&unrelated));
        if view.is_empty() {
            restored.unwrap_err();
            lost += 1;
            assert!(view.content().is_empty() && view.take_snapshot().is_err());
            let error = view.restore_excluding(&[0..1]).unwrap_err();
            assert!(error.to_string().contains("restore"), "{error}");
            if commit {
                view.commit().unwrap_err();
                assert!(*snapshot.view().unwrap() == *bytes, "the view ended with bytes that it had lost");
                continue;
            }
        }
        view.restore_to(&unrelated).unwrap();
        view[0] ^= 1;
        view[0] ^= 1;
        view.commit().unwrap();
        assert!(*snapshot.view().unwrap() == *other);
    }
    assert_eq!(lost > 0, cfg!(windows));
}
