//! Access to parts of a view, at the limits of the process.

use memsnap::{Access, Snapshot};

use super::common::linux::{AllMappings, with_steady_heap};
use super::common::script::read;
use super::common::unix::{Limit, run_in_child};
use super::common::{assert_same, message, pattern, serial, skip};
use super::{assert_allows, bytes_of};

#[test]
fn a_restore_that_fails_leaves_the_view_and_the_system_agreed() {
    let _serial = serial();
    let snapshot = Snapshot::from_slice(&pattern(40, 1)).unwrap();
    let mut view = snapshot.view().unwrap().into_protected();
    view.get_mut(..100).unwrap().fill(9);
    view.protect(bytes_of(0, 3), Access::NONE).unwrap();
    view.protect(bytes_of(10, 5), Access::READ).unwrap();
    // The child needs another descriptor to ask the kernel for written pages, and cannot open one.
    run_in_child(|| {
        let limit = Limit::descriptors();
        let restored = view.restore();
        drop(limit);
        assert_allows("failed", &mut view, 0, 40, "rw-");
        if restored.is_err() {
            assert_eq!(view.get(..1), Some(&[9][..]));
        }
        view.restore().unwrap();
        assert_same("restored", view.get(..).unwrap(), &pattern(40, 1));
    });
}

#[test]
fn without_mappings_left_nothing_is_shown_that_cannot_be_read() {
    const TEST: &str = "without_mappings_left_nothing_is_shown_that_cannot_be_read";
    with_steady_heap(TEST, || {
        let snapshot = Snapshot::from_slice(&pattern(40, 1)).unwrap();
        let mut view = snapshot.view().unwrap().into_protected();
        view.protect(bytes_of(30, 2), Access::NONE).unwrap();
        view.get_mut(..100).unwrap().fill(8);
        // This makes the mappings that the store and the comparison need.
        let first = view.take_snapshot().unwrap();
        assert_eq!(read(&first)[99], 8);
        view.get_mut(..100).unwrap().fill(9);
        let all = match AllMappings::take() {
            Ok(all) => all,
            Err(reason) => return skip(TEST, reason),
        };
        let refused = view.protect(bytes_of(5, 1), Access::READ).unwrap_err();
        assert!(message(&refused).contains("max_map_count"), "{}", message(&refused));
        assert!(view.get(bytes_of(5, 1)).is_none() && view.get(bytes_of(6, 1)).is_some());
        view.protect(bytes_of(5, 1), Access::READ_WRITE).unwrap();
        assert!(view.get(bytes_of(5, 1)).is_some() && view.get(bytes_of(30, 1)).is_none());
        let taken = view.take_snapshot().unwrap();
        drop(all);
        let mut expected = pattern(40, 1);
        expected[..100].fill(9);
        assert_same("taken", &read(&taken), &expected);
        view.restore().unwrap();
        assert_allows("restored", &mut view, 0, 40, "rw-");
        view.protect(bytes_of(5, 1), Access::READ).unwrap();
        assert_allows("protected", &mut view, 5, 1, "r--");
    });
}
