//! Makes each system call in a script of all operations fail, one after the other.
//!
//! Afterwards, each snapshot shows the old or the new state, and so does each view, except after a failed
//! restore. Such a view may show a mixture. Its pages then do not count as clean, and the next restore
//! repairs it.

mod derived;
mod lengths;
mod logged;

use std::io::{self, Write};
use std::mem;

use crate::sys::fault;
use crate::{Access, Snapshot, Tracking, View, ViewOptions, page_size};

/// Enough pages for runs of pages to be mapped.
const PAGES: usize = 102;

/// Runs `operation` with faults. If it fails, calls `check` and then runs it again without faults.
pub(crate) fn survive<T>(mut operation: impl FnMut() -> io::Result<T>, check: impl FnOnce(io::Error)) -> T {
    operation().unwrap_or_else(|error| {
        fault::suspend(|| {
            check(error);
            operation().expect("the same call must work without the fault")
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

/// Opens a view of `snapshot`, which holds `bytes`.
pub(crate) fn open<'a>(snapshot: &'a Snapshot, bytes: &[u8]) -> View<&'a Snapshot> {
    let view = survive(|| snapshot.view(), |_| assert_shows(snapshot, bytes));
    assert!(&*view == bytes, "a new view does not show its snapshot");
    view
}

/// Takes a snapshot of `view` and checks it.
pub(crate) fn take<S>(view: &View<S>) -> Snapshot {
    let shown = view.to_vec();
    let taken =
        survive(|| view.take_snapshot(), |_| assert!(**view == *shown, "a failed snapshot changed the view"));
    assert!(**view == *shown, "taking a snapshot changed the view");
    assert_shows(&taken, &shown);
    taken
}

/// Runs `restore`, after which the view must show `bytes`.
pub(crate) fn show<S>(view: &mut View<S>, bytes: &[u8], restore: impl Fn(&mut View<S>) -> io::Result<()>) {
    let address = view.as_ptr();
    if restore(view).is_err() {
        let restored = fault::suspend(|| {
            if view.is_empty() {
                // On Windows, there was no memory for zeroes either.
                let error = view.take_snapshot().unwrap_err();
                assert!(error.to_string().contains("restore"), "{error}");
                view.changes().unwrap_err();
                view.zero(..).unwrap_err();
                view.grow(bytes.len()).unwrap_err();
                // A restore that excludes bytes cannot work, since the bytes are lost.
                return restore(view).map_err(|_| view.restore().unwrap()).is_ok();
            }
            // Whatever the view shows, a snapshot of it is exact, and no page counts as changed.
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
    // SAFETY: nobody else has the unnamed file, and it is not written again.
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
        // After so many views, one of the next makes the image flat.
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

/// Runs all operations that change the length of a view or a part of it.
fn every_part() {
    let (bytes, zeroes) = (pattern(3), vec![0; PAGES * page_size()]);
    parts_of_a_view(&make(|| Snapshot::from_slice(&bytes), &bytes), &bytes);
    parts_of_a_view(&make(|| Snapshot::zeroed(zeroes.len()), &zeroes), &zeroes);
    growth_in_place();
}

/// A view written in place kept the pages of a growth that failed after they were mapped.
///
/// The next snapshot was longer than the view.
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
    assert!(*view == *expected, "a view that grew does not show its old bytes and zeroes");
    fault::suspend(|| view.commit().unwrap());
    assert_shows(&snapshot, &expected);
}

/// When such a view ends, its snapshot must not be longer than the view either.
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
    assert!(*view == *expected, "a view that grew does not show its old bytes and zeroes");
    edit(&mut view[40 * page..], 31);
    let grown = take(&view);
    let grown_bytes = view.to_vec();

    if view.zero(5 * page + 3..70 * page).is_err() {
        fault::suspend(|| {
            assert!(view.is_empty(), "zeroing failed, but the view still has its memory");
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
            assert!(
                protected.get(range.clone()).is_none(),
                "a page is accessible although it may be protected"
            );
            fault::suspend(|| protected.protect(range, access).unwrap());
        }
    }
    let taken = survive(|| protected.take_snapshot(), drop);
    assert_shows(&taken, &expected);
    assert!(protected.get(4 * page..5 * page).is_none());
    if protected.restore().is_err() {
        fault::suspend(|| protected.restore().unwrap());
    }
    assert!(
        protected.into_open().is_ok_and(|view| *view == *bytes),
        "the restore did not put access and bytes back"
    );
}

/// Runs all operations of a mutable view, and ends it by `commit` or by dropping it.
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
        // The snapshot or a clone of it reports a failure at the drop once. The bytes are not lost.
        fault::suspend(|| clone.try_clone().or_else(|_| clone.try_clone()).unwrap());
    }
    assert_shows(snapshot, &written);
}

/// On Windows, each call takes several microseconds, so only every seventh call is made to fail.
const STRIDE: usize = if cfg!(windows) { 7 } else { 1 };

const SCRIPTS: [fn(); 2] = [every_operation, every_part];

/// Runs `script` once for each system call in it, and makes this call fail.
pub(crate) fn with_every_single_failure(script: fn()) {
    let ((), calls) = fault::inject(u64::MAX, 0, script);
    assert!(calls > 50, "{calls} calls are too few for all operations");
    for call in (0..calls).step_by(STRIDE) {
        fault::inject(call, 1, script);
    }
}

/// Runs `script` twice for every third system call in it. Five calls from this one on fail, and then all
/// calls from this one on.
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

/// If more pages were captured than a view may keep resident, each restore of an armed view searched all its
/// private pages for some to give back, and found none. In a virtual machine with 128 MiB written, such a
/// restore took a hundred times as long.
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

const TRACKINGS: [Tracking; 6] = [
    Tracking::Auto,
    Tracking::Armed,
    Tracking::Scan,
    Tracking::Pagemap,
    Tracking::WorkingSet,
    Tracking::Compare,
];

/// Checks a snapshot of the view, and then the view.
///
/// The snapshot comes first, since reading a page may change how its state is found.
fn shown_and_held<S>(view: &View<S>, bytes: &[u8], what: &str) {
    let mut held = vec![0xA5; bytes.len()];
    assert_eq!(view.take_snapshot().unwrap().read_at(&mut held, 0).unwrap(), bytes.len());
    assert!(held == bytes, "{what}: the snapshot does not hold the bytes");
    assert!(**view == *bytes, "{what}: the view does not show the bytes");
}

/// A snapshot of a protected view makes pages readable for some time. If they could not be protected again,
/// the call failed, but the view had changed to the new snapshot, which the caller did not get. So `changes`
/// no longer returned the changes.
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
                let view = view.into_open().unwrap_or_else(|_| panic!("some pages are still protected"));
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

/// On Windows, there may be no memory to map a view anew, nor for zeroes in its place. The view then returned
/// bytes that could not be written, or refused all later calls, even a restore.
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
                assert!(
                    *snapshot.view().unwrap() == *bytes,
                    "the snapshot has other bytes after its view lost its memory"
                );
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
