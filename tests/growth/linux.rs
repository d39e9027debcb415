//! Views that grow at the limits of the process.

use memsnap::{Snapshot, ViewOptions, page_size};

use super::common::kinds::{self, Kind};
use super::common::linux::{AllMappings, with_steady_heap};
use super::common::maps::assert_access;
use super::common::script::read;
use super::common::unix::{Limit, run_in_child};
use super::common::{alone, assert_same, pattern, serial, skip};
use super::{MORE, longer, with_room};

#[test]
fn without_mappings_left_growing_fails_and_changes_nothing() {
    const TEST: &str = "without_mappings_left_growing_fails_and_changes_nothing";
    with_steady_heap(TEST, || {
        let bytes = pattern(3, 1);
        let snapshot = Snapshot::from_slice(&bytes).unwrap();
        let mut in_place = Snapshot::zeroed(3 * page_size()).unwrap();
        let mut options = ViewOptions::new();
        options.reserve(20 * page_size());
        let mut view = snapshot.view_with(&options).unwrap();
        let mut in_place = in_place.view_mut_with(&options).unwrap();
        in_place.copy_from_slice(&bytes);
        let all = match AllMappings::take() {
            Ok(all) => all,
            Err(reason) => return skip(TEST, reason),
        };
        let grown = view.grow(10 * page_size());
        assert_eq!(grown.is_err(), view.len() == bytes.len());
        let grown_in_place = in_place.grow(10 * page_size());
        assert_eq!(grown_in_place.is_err(), in_place.len() == bytes.len());
        drop(all);
        assert!(grown.is_err());
        assert_same("view", &view, &bytes);
        assert_same("view in place", &in_place[..bytes.len()], &bytes);
        assert_access("behind", view.as_ptr().wrapping_add(bytes.len()), 17, "---");
        view.grow(20 * page_size()).unwrap();
        in_place.grow(20 * page_size()).unwrap();
        assert_same("view", &view, &longer(&bytes, 20));
        assert_same("view in place", &in_place, &longer(&bytes, 20));
    });
}

#[test]
fn what_is_reserved_can_be_used_where_no_address_is_left() {
    alone("what_is_reserved_can_be_used_where_no_address_is_left", || {
        let options = with_room();
        for Kind { name, snapshot, bytes } in kinds::all() {
            let mut view = snapshot.view_with(&options).unwrap();
            let limit = Limit::address_space(0);
            let grown = view.grow((kinds::PAGES + MORE) * page_size());
            drop(limit);
            grown.unwrap();
            assert_same(name, &view, &longer(&bytes, kinds::PAGES + MORE));
        }
    });
}

/// After a failed restore that had shrunk the view, the content still had its old length, which was beyond
/// the end of the view.
#[test]
fn a_restore_that_fails_after_it_shrank_leaves_a_view_in_order() {
    let _serial = serial();
    let root = Snapshot::from_slice(&pattern(1, 1)).unwrap();
    let mut view = root.view_with(ViewOptions::new().reserve(1 << 20)).unwrap();
    view.grow(10 * page_size()).unwrap();
    view[0] = 9;
    view[9 * page_size()] = 1;
    // The child needs another descriptor to ask the kernel for written pages, and cannot open one.
    run_in_child(|| {
        let limit = Limit::descriptors();
        let restored = view.restore();
        drop(limit);
        let taken = view.take_snapshot().unwrap();
        assert_eq!(view.content().len(), taken.content_len());
        assert_same("taken", &read(&taken), &view);
        assert!(restored.is_err() || view[..] == pattern(1, 1));
        view.restore().unwrap();
        assert_same("restored", view.content(), &pattern(1, 1));
        view.grow(10 * page_size()).unwrap();
        assert_same("grown", &view, &longer(&pattern(1, 1), 10));
    });
}
