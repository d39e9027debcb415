//! Views grow at the same address, within the addresses that were reserved for them, and restores shrink
//! them.

#[path = "../common/mod.rs"]
mod common;
#[cfg(all(target_os = "linux", not(memsnap_unix)))]
mod linux;
#[cfg(unix)]
mod unix;

use std::io::{ErrorKind, Read};
use std::sync::Arc;

use common::alone::Doomed;
use common::kinds::{self, Kind, TRACKINGS};
use common::maps::{assert_access, memory, present, try_read, try_write};
use common::script::{differing, read};
use common::{alone, assert_same, pattern, serial, skip, supported};
use memsnap::{Populate, Snapshot, Tracking, View, ViewOptions, page_size};

/// The number of pages that views can grow by.
const MORE: usize = 60;

fn with_room() -> ViewOptions {
    let mut options = ViewOptions::new();
    options.reserve((kinds::PAGES + MORE) * page_size()).guard(page_size(), 1);
    options
}

/// Returns `bytes`, followed by zeroes up to `pages` pages.
fn longer(bytes: &[u8], pages: usize) -> Vec<u8> {
    let mut longer = bytes.to_vec();
    longer.resize(pages * page_size(), 0);
    longer
}

/// Grows the view, writes to it, takes snapshots, shrinks it and grows it again.
fn grows_and_shrinks<S>(what: &str, view: &mut View<S>, root: &[u8]) {
    let (page, pages) = (page_size(), root.len() / page_size());
    let address = view.as_ptr();
    view.iter_mut().for_each(|byte| *byte ^= 1);
    for round in 0..3 {
        let mut bytes = longer(view, pages + 10);
        view.grow(bytes.len()).unwrap();
        assert_same(what, view, &bytes);
        bytes = longer(&bytes, pages + MORE);
        view.grow(bytes.len() - 5).unwrap();
        assert_same(what, view, &bytes);
        assert_eq!(view.content().len(), bytes.len() - 5);
        for at in [root.len(), root.len() + 11 * page, bytes.len() - 1] {
            view[at] = 0xEE;
            bytes[at] = 0xEE;
        }
        let changes = view.changes().unwrap();
        let at_end = changes.ranges().last().cloned();
        assert_eq!(at_end.map(|range| range.end), Some(bytes.len()), "{what}");
        let large = view.take_snapshot().unwrap();
        assert_eq!((large.len(), large.content_len()), (bytes.len(), bytes.len() - 5), "{what}");
        assert!(view.changes().unwrap().is_empty());
        assert_same(what, &read(&large), &bytes);
        assert_same(what, &large.view().unwrap(), &bytes);
        assert!(view.stats().reserved >= page);

        view.restore().unwrap();
        assert_eq!((view.as_ptr(), view.len()), (address, root.len()), "{what}");
        assert_same(what, view, root);
        let behind = address.wrapping_add(root.len());
        assert_access(what, behind, MORE + 1, "---");
        assert!(
            present(behind, MORE).is_none_or(|present| present == 0),
            "{what}: pages behind the end are resident"
        );
        assert_eq!(try_read(behind), None);
        assert!(view.changes().unwrap().is_empty());

        view.restore_to(&large).unwrap();
        assert_same(what, view, &bytes);
        assert_eq!(view.content().len(), bytes.len() - 5);
        let mut other = large.view().unwrap();
        other[0] ^= 9;
        other.restore().unwrap();
        assert_same(what, &other, &bytes);

        view.restore().unwrap();
        view.grow(bytes.len()).unwrap();
        assert_same(&format!("{what}, grown again in round {round}"), view, &longer(root, pages + MORE));
        let taken = view.take_snapshot().unwrap();
        assert_same(what, &read(&taken), view);
        let expected = differing(&bytes, &longer(root, pages + MORE));
        assert_eq!(large.diff(&taken).unwrap().ranges(), expected, "{what}");
        view.restore().unwrap();
    }
    assert_eq!(view.as_ptr(), address);
}

#[test]
fn views_of_every_kind_grow_and_shrink_at_their_address() {
    let _serial = serial();
    let options = with_room();
    for Kind { name, mut snapshot, bytes } in kinds::all() {
        grows_and_shrinks(&format!("view, {name}"), &mut snapshot.view_with(&options).unwrap(), &bytes);
        let shared = Arc::new(snapshot.clone());
        grows_and_shrinks(&format!("arc, {name}"), &mut shared.view_arc_with(&options).unwrap(), &bytes);
        let mut view = snapshot.view_mut_with(&options).unwrap();
        grows_and_shrinks(&format!("mutable, {name}"), &mut view, &bytes);
        drop(view);
        assert_same(name, &read(&snapshot), &bytes);
    }
}

#[test]
fn empty_views_grow_and_shrink_to_nothing() {
    let _serial = serial();
    let mut options = ViewOptions::new();
    options.reserve(MORE * page_size()).guard(0, 1);
    for mut snapshot in [Snapshot::zeroed(0).unwrap(), Snapshot::from_slice(&[]).unwrap()] {
        grows_and_shrinks("empty", &mut snapshot.view_with(&options).unwrap(), &[]);
        grows_and_shrinks("empty, mutable", &mut snapshot.view_mut_with(&options).unwrap(), &[]);
        assert!(snapshot.is_empty());
    }
}

#[test]
fn restores_to_snapshots_of_any_length_follow_it() {
    let _serial = serial();
    let options = with_room();
    let kinds = kinds::all();
    let short: Vec<_> = [0, 1, 30].map(|pages| pattern(pages, 8)).into();
    let mut others: Vec<_> =
        short.iter().map(|bytes| (Snapshot::from_slice(bytes).unwrap(), bytes.clone())).collect();
    others.push((Snapshot::zeroed(9 * page_size()).unwrap(), vec![0; 9 * page_size()]));
    for Kind { name, snapshot, bytes } in &kinds {
        let mut grown = snapshot.view_with(&options).unwrap();
        let mut expected = longer(bytes, kinds::PAGES + MORE);
        grown.grow(expected.len()).unwrap();
        expected[bytes.len() + 5 * page_size()..][..20 * page_size()].fill(3);
        grown.copy_from_slice(&expected);
        let large = grown.take_snapshot().unwrap();
        for view in [&mut grown, &mut snapshot.view_with(&options).unwrap()] {
            for (other, short) in &others {
                view.fill(0x77);
                view.restore_to(other).unwrap();
                assert_same(name, view, short);
                assert_access(name, view.as_ptr().wrapping_add(short.len()), MORE, "---");
                view.fill(0x78);
                view.restore_to(&large).unwrap();
                assert_same(name, view, &expected);
                view.restore_to(other).unwrap();
                view.restore_to(snapshot).unwrap();
                assert_same(name, view, bytes);
                let taken = view.take_snapshot().unwrap();
                assert_eq!((taken.len(), taken.content_len()), (bytes.len(), bytes.len()));
            }
        }
        // A view without reserved addresses can be restored to shorter snapshots, but not to longer ones.
        let mut narrow = snapshot.view().unwrap();
        narrow[7] = 0x55;
        let before = narrow.to_vec();
        let error = narrow.restore_to(&large).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_same(name, &narrow, &before);
        narrow.restore_to(&others[2].0).unwrap();
        assert_same(name, &narrow, &short[2]);
        narrow.restore().unwrap();
        assert_same(name, &narrow, bytes);
        assert_eq!(snapshot.diff(&large).unwrap().ranges(), [bytes.len()..large.len()]);
        assert_eq!(large.diff(snapshot).unwrap().ranges(), [bytes.len()..large.len()]);
        // The pages that only one snapshot has are listed, with no bytes for the other one.
        for change in snapshot.diff(&large).unwrap() {
            for page in change.pages() {
                assert!(page.old.is_empty());
                assert_same(name, page.new, &expected[page.offset..][..page_size()]);
            }
        }
    }
}

#[test]
fn growing_out_of_bounds_is_refused_and_changes_nothing() {
    let _serial = serial();
    for Kind { name, mut snapshot, bytes } in kinds::all() {
        let options = with_room();
        refuses(name, &mut snapshot.view_with(&options).unwrap(), &bytes);
        refuses(name, &mut snapshot.view_mut_with(&options).unwrap(), &bytes);
        let snapshot = Snapshot::from_slice(&bytes).unwrap();
        let mut narrow = snapshot.view().unwrap();
        assert_eq!(narrow.grow(bytes.len() + 1).unwrap_err().kind(), ErrorKind::InvalidInput);
        narrow.grow(bytes.len()).unwrap();
    }
    let content = Snapshot::from_slice(&[1; 10]).unwrap();
    let mut view = content.view().unwrap();
    assert_eq!(view.grow(9).unwrap_err().kind(), ErrorKind::InvalidInput);
    view.grow(11).unwrap();
    assert_eq!((view.len(), view.content()), (page_size(), &[&[1; 10][..], &[0]].concat()[..]));
    assert!(view.grow(10).is_err());
    let taken = view.take_snapshot().unwrap();
    assert_eq!((taken.len(), taken.content_len()), (page_size(), 11));
    view.restore().unwrap();
    assert_eq!(view.content(), [1; 10]);
}

fn refuses<S>(name: &str, view: &mut View<S>, bytes: &[u8]) {
    let most = (kinds::PAGES + MORE) * page_size();
    for len in [most + 1, usize::MAX, isize::MAX as usize, bytes.len() - 1, 0] {
        assert_eq!(view.grow(len).unwrap_err().kind(), ErrorKind::InvalidInput, "{name}: {len}");
        assert_same(name, view, bytes);
        assert_eq!(view.content().len(), bytes.len());
    }
    view.grow(most).unwrap();
    assert!(view.grow(most + 1).is_err());
    assert_eq!(view.len(), most);
}

#[test]
fn what_a_mutable_view_grew_by_its_snapshot_holds() {
    let _serial = serial();
    for commit in [true, false] {
        for take in [true, false] {
            for Kind { name, mut snapshot, bytes } in kinds::all() {
                let clone = snapshot.clone();
                let len = bytes.len() + 7 * page_size() + 9;
                let mut expected = longer(&bytes, kinds::PAGES + 8);
                let mut view = snapshot.view_mut_with(&with_room()).unwrap();
                if take {
                    view.take_snapshot().unwrap();
                }
                view.grow(len).unwrap();
                let edge = bytes.len() - 2..bytes.len() + 2;
                view[edge.clone()].fill(5);
                expected[edge].fill(5);
                if take {
                    assert_same(name, &read(&view.take_snapshot().unwrap()), &expected);
                }
                if commit {
                    view.commit().unwrap()
                } else {
                    drop(view)
                }
                assert_eq!((snapshot.len(), snapshot.content_len()), (expected.len(), len), "{name}");
                assert_same(name, &read(&snapshot), &expected);
                assert_same(name, snapshot.view().unwrap().content(), &expected[..len]);
                assert_eq!(clone.len(), bytes.len());
                assert_same(name, &read(&clone), &bytes);
            }
        }
    }
}

#[test]
fn who_touches_what_is_beyond_the_end_is_stopped() {
    let mut doomed = Doomed::of("who_touches_what_is_beyond_the_end_is_stopped");
    let _serial = serial();
    let root = Snapshot::from_slice(&pattern(2, 1)).unwrap();
    let mut view = root.view_with(ViewOptions::new().reserve(10 * page_size())).unwrap();
    let end = view.as_mut_ptr().wrapping_add(2 * page_size());
    // SAFETY: `assert_stopped` runs this only in another process. The system stops that process at the
    // access, or the process exits directly afterwards.
    let touch = || unsafe { end.write_volatile(1) };
    doomed.assert_stopped(true, touch);
    view.grow(10 * page_size()).unwrap();
    doomed.assert_stopped(false, touch);
    assert!(try_write(end, 1));
    view.restore().unwrap();
    doomed.assert_stopped(true, touch);
    // SAFETY: as above.
    doomed.assert_stopped(true, || assert_eq!(unsafe { end.read_volatile() }, 1));
    assert!(!try_write(end, 1));
}

#[test]
fn grown_pages_take_no_memory_and_give_it_back() {
    const TEST: &str = "grown_pages_take_no_memory_and_give_it_back";
    alone(TEST, || {
        const LARGE: usize = 64 << 20;
        let Some(before) = memory() else {
            return skip(TEST, "the system does not report the memory of the process");
        };
        let root = Snapshot::from_slice(&pattern(2, 1)).unwrap();
        let much = usize::try_from(1_u64 << 36).unwrap_or(1 << 30);
        let mut view = root.view_with(ViewOptions::new().reserve(much)).unwrap();
        let held = || memory().map_or(0, |memory| memory.rss.saturating_sub(before.rss));
        view.grow(much).unwrap();
        assert!(held() < 4 << 20);
        view.restore().unwrap();
        view.grow(LARGE).unwrap();
        view.fill(1);
        assert!(held() > LARGE / 2);
        view.restore().unwrap();
        assert!(held() < 8 << 20, "{} bytes held", held());
    });
}

#[test]
fn what_the_system_writes_into_grown_pages_is_captured() {
    let _serial = serial();
    for &tracking in TRACKINGS {
        for Kind { name, mut snapshot, bytes } in kinds::all() {
            let mut options = with_room();
            options.populate(Populate::Read);
            let mut view = snapshot.view_mut_with(&options).unwrap();
            let tracked = view.set_tracking(tracking);
            if supported("what_the_system_writes_into_grown_pages_is_captured", tracked).is_none() {
                break;
            }
            for pages in [kinds::PAGES + 20, kinds::PAGES + MORE] {
                let mut expected = longer(&view, pages);
                view.grow(expected.len()).unwrap();
                view.take_snapshot().unwrap();
                let start = bytes.len() - 3..bytes.len() + 20;
                let mut file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
                file.read_exact(&mut view[start.clone()]).unwrap();
                expected[start.clone()].copy_from_slice(&view[start]);
                let end = view.len() - 50..view.len();
                file.read_exact(&mut view[end.clone()]).unwrap();
                expected[end.clone()].copy_from_slice(&view[end]);
                assert_same(name, &read(&view.take_snapshot().unwrap()), &expected);
            }
        }
    }
}

#[test]
fn views_that_are_armed_stay_so_as_they_grow() {
    let _serial = serial();
    for Kind { name, snapshot, .. } in kinds::all() {
        let mut view = snapshot.view_with(&with_room()).unwrap();
        let armed = view.set_tracking(Tracking::Armed);
        if supported("views_that_are_armed_stay_so_as_they_grow", armed).is_none() {
            return;
        }
        view.take_snapshot().unwrap();
        for more in [3, 40, MORE] {
            view.grow((kinds::PAGES + more) * page_size()).unwrap();
            view.changes().map(drop).unwrap();
            assert_eq!(view.stats().why_not_faster, None, "{name}");
            let taken = view.take_snapshot().unwrap();
            assert_eq!(
                taken.stats().captured,
                snapshot.stats().captured,
                "{name}: pages were captured although nothing was written"
            );
        }
    }
}
