//! Logged views: the program reports what it writes.

#[path = "../common/mod.rs"]
mod common;

use std::io::ErrorKind;
use std::sync::Arc;
use std::thread;

use common::maps::present;
use common::{LINUX, assert_same};
use memsnap::{HugePages, LoggedView, Populate, Snapshot, Tracking, ViewOptions, page_size};

const PAGES: usize = 64;

fn options() -> ViewOptions<memsnap::Logged> {
    let mut options = ViewOptions::logged();
    options.checked(true);
    options
}

fn filled(pages: usize) -> Vec<u8> {
    (0..pages * page_size()).map(|i| (i / page_size()).to_le_bytes()[0] ^ i.to_le_bytes()[0]).collect()
}

fn write<S>(view: &mut LoggedView<S>, page: usize, value: u8) {
    let at = page * page_size() + page % page_size();
    view.get_mut(at..at + 1).unwrap()[0] = value;
}

#[test]
fn pages_that_are_borrowed_for_writing_are_captured_and_put_back() {
    for snapshot in
        [Snapshot::from_slice(&filled(PAGES)).unwrap(), Snapshot::zeroed(PAGES * page_size()).unwrap()]
    {
        let clean = snapshot.view().unwrap().to_vec();
        let mut view = snapshot.view_with(&options()).unwrap();
        assert_eq!(view.stats().tracker, Tracking::Logged);
        let mut model = clean.clone();
        for page in [3, 4, 40, 63] {
            write(&mut view, page, 0xA5);
            model[page * page_size() + page % page_size()] = 0xA5;
        }
        assert_same("written", &view, &model);
        assert_eq!(view.changes().unwrap().len(), 3);
        let taken = view.take_snapshot().unwrap();
        assert_same("taken", &taken.view().unwrap(), &model);
        assert!(view.changes().unwrap().is_empty());
        view.restore().unwrap();
        assert_same("restored", &view, &clean);
        view.restore_to(&taken).unwrap();
        assert_same("restored to", &view, &model);
        write(&mut view, 9, 1);
        view.restore().unwrap();
        assert_same("restored again", &view, &clean);
    }
}

/// A restore that excludes bytes, and `zero`, write parts of pages at the edges of their ranges. The log has
/// to contain these pages too.
#[test]
fn edges_that_the_view_writes_itself_are_reported() {
    let snapshot = Snapshot::from_slice(&filled(PAGES)).unwrap();
    let clean = snapshot.view().unwrap().to_vec();
    let page = page_size();
    let mut view = snapshot.view_with(&options()).unwrap();
    view.get_mut(page..3 * page).unwrap().fill(7);
    let kept = page + 5..2 * page + 9;
    view.restore_excluding(std::slice::from_ref(&kept)).unwrap();
    let mut model = clean.clone();
    model[kept].fill(7);
    assert_same("restored in part", &view, &model);
    let taken = view.take_snapshot().unwrap();
    assert_same("taken", &taken.view().unwrap(), &model);
    view.zero(page - 5..2 * page + 5).unwrap();
    model[page - 5..2 * page + 5].fill(0);
    assert_same("zeroed", &view, &model);
    assert_same("taken", &view.take_snapshot().unwrap().view().unwrap(), &model);
    view.get_mut(10..3 * page).unwrap().fill(9);
    view.discard(20..2 * page + 30).unwrap();
    model[10..20].fill(9);
    model[2 * page + 30..3 * page].fill(9);
    assert_same("discarded", &view, &model);
    view.restore().unwrap();
    assert_same("restored", &view, &clean);
}

#[test]
fn a_page_that_was_not_reported_is_named_and_then_counts_as_reported() {
    let snapshot = Snapshot::from_slice(&filled(PAGES)).unwrap();
    let clean = snapshot.view().unwrap().to_vec();
    let mut view = snapshot.view_with(&options()).unwrap();
    write(&mut view, 3, 1);
    // SAFETY: the byte is within the view, and no slice of the view is in use.
    unsafe { view.as_mut_ptr().wrapping_add(5 * page_size()).write(0x77) };
    let error = view.take_snapshot().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    let named = format!("{:?}", 5 * page_size()..6 * page_size());
    assert!(error.to_string().contains(&named), "{error}");
    let taken = view.take_snapshot().unwrap();
    assert_same("taken", &taken.view().unwrap(), &view);
    // SAFETY: as above.
    unsafe { view.as_mut_ptr().wrapping_add(7 * page_size()).write(0x77) };
    assert_eq!(view.restore().unwrap_err().kind(), ErrorKind::InvalidData);
    assert_eq!(view[7 * page_size()], 0x77, "the error changed the page");
    // SAFETY: as above.
    unsafe { view.as_mut_ptr().wrapping_add(8 * page_size()).write(0x77) };
    assert_eq!(view.changes().map(drop).unwrap_err().kind(), ErrorKind::InvalidData);
    view.restore().unwrap();
    assert_same("restored", &view, &clean);
}

/// The check missed a page that was zeroed or discarded, and then written without a report.
///
/// The check counted the page as reported. The next restore counted it as not private, and so left the
/// written bytes.
#[test]
fn pages_written_after_they_were_given_back_are_named() {
    let page = page_size();
    let pages = 2 * page..30 * page;
    for (snapshot, discards) in [
        (Snapshot::zeroed(PAGES * page).unwrap(), true),
        (Snapshot::zeroed(PAGES * page).unwrap(), false),
        (Snapshot::from_slice(&filled(PAGES)).unwrap(), true),
        (Snapshot::from_slice(&filled(PAGES)).unwrap(), false),
    ] {
        let clean = snapshot.view().unwrap().to_vec();
        let mut view = snapshot.view_with(&options()).unwrap();
        view.get_mut(pages.clone()).unwrap().fill(7);
        if discards {
            view.discard(pages.clone()).unwrap();
        } else {
            // After a snapshot, the pages no longer count as reported.
            view.take_snapshot().unwrap();
            view.zero(pages.clone()).unwrap();
        }
        // SAFETY: the byte is within the view, and no slice of the view is in use.
        unsafe { view.as_mut_ptr().wrapping_add(5 * page).write(0x77) };
        let restored = view.restore();
        // On systems where `zero` and `discard` cannot give pages back, the pages count as reported.
        if LINUX {
            let error = restored.unwrap_err();
            assert!(error.to_string().contains(&format!("{:?}", 5 * page..6 * page)), "{error}");
        }
        view.restore().unwrap();
        assert_same("restored", &view, &clean);
    }
}

/// The check must not return an error for a page that was only read, or written with the same bytes.
#[test]
fn only_pages_that_differ_are_missed() {
    let snapshot = Snapshot::from_slice(&filled(PAGES)).unwrap();
    let mut view = snapshot.view_with(&options()).unwrap();
    assert_eq!(view.iter().map(|&byte| usize::from(byte)).sum::<usize>() % 2, 0);
    let same = view[5 * page_size()];
    // SAFETY: the byte is within the view, and no slice of the view is in use.
    unsafe { view.as_mut_ptr().wrapping_add(5 * page_size()).write(same) };
    view.take_snapshot().unwrap();
    view.restore().unwrap();
}

#[test]
fn ranges_that_are_not_within_the_view_are_refused() {
    let snapshot = Snapshot::zeroed(page_size()).unwrap();
    let mut view = snapshot.view_with(&ViewOptions::logged()).unwrap();
    assert_eq!(view.mark_written(..page_size() + 1).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert!(view.get_mut(1..page_size() + 1).is_none());
    view.mark_written(page_size()..).unwrap();
    let mut chosen = ViewOptions::logged();
    let error = snapshot.view_with(chosen.tracking(Tracking::Logged)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(view.set_tracking(Tracking::Logged).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn a_mutable_logged_view_leaves_what_was_reported() {
    for mut snapshot in
        [Snapshot::from_slice(&filled(PAGES)).unwrap(), Snapshot::zeroed(PAGES * page_size()).unwrap()]
    {
        let mut model = snapshot.view().unwrap().to_vec();
        let mut view = snapshot.view_mut_with(&options()).unwrap();
        write(&mut view, 3, 1);
        let taken = view.take_snapshot().unwrap();
        write(&mut view, 4, 2);
        view.restore().unwrap();
        assert_same("restored", &view, &model);
        write(&mut view, 5, 3);
        view.commit().unwrap();
        let byte = |page| page * page_size() + page % page_size();
        model[byte(5)] = 3;
        assert_same("committed", &snapshot.view().unwrap(), &model);
        assert_eq!(taken.view().unwrap()[byte(3)], 1);
    }
}

#[test]
fn a_logged_view_grows_and_shrinks() {
    let snapshot = Snapshot::from_slice(&filled(4)).unwrap();
    let mut chosen = options();
    let mut view = snapshot.view_with(chosen.reserve(PAGES * page_size())).unwrap();
    view.grow(20 * page_size()).unwrap();
    write(&mut view, 18, 5);
    write(&mut view, 2, 5);
    let long = view.take_snapshot().unwrap();
    assert_same("taken", &long.view().unwrap(), &view);
    view.restore().unwrap();
    assert_eq!(&view[..], &filled(4)[..]);
    view.grow(30 * page_size()).unwrap();
    assert!(view[4 * page_size()..].iter().all(|&byte| byte == 0));
    view.restore_to(&long).unwrap();
    assert_same("restored to", &view, &long.view().unwrap());
}

/// `discard` writes captured bytes to pages that `zero` gave back, so that the pages become private again.
/// The log did not record this. The next restore took the pages for zeroes and left the bytes.
#[test]
fn what_a_discard_writes_is_put_back() {
    let snapshot = Snapshot::zeroed(PAGES * page_size()).unwrap();
    let page = page_size();
    for range in [4 * page..6 * page, 4 * page + 9..6 * page - 9] {
        let mut view = snapshot.view_with(&options()).unwrap();
        view.get_mut(3 * page..7 * page).unwrap().fill(7);
        let taken = view.take_snapshot().unwrap();
        view.zero(3 * page..7 * page).unwrap();
        view.discard(range.clone()).unwrap();
        let mut model = vec![0; PAGES * page];
        model[range].fill(7);
        assert_same("discarded", &view, &model);
        view.restore().unwrap();
        assert_same("restored", &view, &vec![0; PAGES * page]);
        view.restore_to(&taken).unwrap();
        assert_same("restored to", &view, &taken.view().unwrap());
    }
}

/// A restore copies captured pages into the view, so that they become private. The next restore gives them
/// back if the view may not keep them.
#[test]
fn what_a_restore_copies_is_known_to_be_private() {
    let snapshot = Snapshot::from_slice(&filled(PAGES)).unwrap();
    let mut chosen = options();
    let mut view = snapshot.view_with(chosen.keep_resident(0)).unwrap();
    for page in 3..7 {
        write(&mut view, page, 0xA5);
    }
    let taken = view.take_snapshot().unwrap();
    for _ in 0..3 {
        view.restore().unwrap();
        if LINUX {
            assert_eq!(view.stats().private, 0);
        }
        view.restore_to(&taken).unwrap();
        assert_eq!(view.stats().private, 4 * page_size());
    }
}

/// Threads of a guest report what they write, without a lock and without `&mut`.
#[test]
fn threads_report_at_the_same_time() {
    let snapshot = Snapshot::zeroed(PAGES * page_size()).unwrap();
    let mut view = snapshot.view_with(&options()).unwrap();
    for round in 1..20_u8 {
        let start = view.as_mut_ptr().expose_provenance();
        thread::scope(|scope| {
            let view = &view;
            for thread in 0..4 {
                scope.spawn(move || {
                    for page in (thread..PAGES).step_by(4) {
                        let byte = std::ptr::with_exposed_provenance_mut::<u8>(start + page * page_size());
                        // SAFETY: the byte is within the view. No slice of the view is in use, and each
                        // thread has its own pages.
                        unsafe { byte.write(round) };
                        view.mark_written(page * page_size()..page * page_size() + 1).unwrap();
                    }
                });
            }
        });
        let taken = view.take_snapshot().unwrap();
        assert!((0..PAGES).all(|page| taken.view().unwrap()[page * page_size()] == round));
        if round % 3 == 0 {
            view.restore().unwrap();
            assert!(view.iter().all(|&byte| byte == 0));
        }
    }
}

/// Private pages that were not in the log stayed with the view for good. These were populated pages, and the
/// neighbours of a written page in a huge page.
#[test]
fn private_memory_that_was_not_reported_is_given_back() {
    let test = "private_memory_that_was_not_reported_is_given_back";
    if !common::LINUX {
        return common::skip(test, "on this system, single pages cannot be given back");
    }
    const MORE: usize = 2_048;
    let (mut populated, mut advised) = (options(), options());
    let snapshot = Snapshot::from_slice(&filled(MORE)).unwrap();
    let mut view = snapshot.view_with(populated.keep_resident(0).populate(Populate::Write)).unwrap();
    assert_eq!(view.stats().private, MORE * page_size());
    while view.stats().private > 0 {
        let before = view.stats().private;
        view.restore().unwrap();
        assert!(view.stats().private < before);
    }
    assert_same("restored", &view, &filled(MORE));

    let snapshot = Snapshot::zeroed(MORE * page_size()).unwrap();
    let mut view =
        snapshot.view_with(advised.checked(false).keep_resident(0).huge_pages(HugePages::Advise)).unwrap();
    let address = view.as_ptr();
    write(&mut view, MORE / 2, 1);
    assert_eq!(view.stats().private, page_size());
    assert_eq!(present(address, MORE), Some(1));
    view.restore().unwrap();
    assert_eq!(present(address, MORE), Some(0));
}

/// A view must not keep all of its private pages if each round writes other ones.
#[test]
fn private_memory_stays_within_what_the_view_may_keep() {
    const MORE: usize = 4_000;
    let snapshot = Arc::new(Snapshot::from_slice(&filled(MORE)).unwrap());
    for kept in [0, 50, 300] {
        let mut chosen = options();
        let mut view = snapshot.view_arc_with(chosen.keep_resident(kept * page_size())).unwrap();
        for round in 0..300 {
            for i in 0..7 {
                write(&mut view, (round * 131 + i * 577) % MORE, 1);
            }
            let taken = (round % 3 == 0).then(|| view.take_snapshot().unwrap());
            view.restore().unwrap();
            // On other systems, single private pages cannot be given back.
            if LINUX {
                // Besides the pages that the view may keep, a sweep leaves up to 64 pages, and up to twice the
                // 7 pages of a round.
                assert!(view.stats().private <= (kept + 64 + 14) * page_size(), "{:?}", view.stats());
            }
            drop(taken);
        }
        assert_same("restored", &view, &filled(MORE));
    }
}
