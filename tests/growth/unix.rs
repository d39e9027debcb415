//! Views that grow in the parent and in the child after a fork.

use memsnap::{Snapshot, page_size};

use super::common::kinds::{self, Kind};
use super::common::script::read;
use super::common::unix::{Fork, fork, run_in_child};
use super::common::{assert_same, serial};
use super::{grows_and_shrinks, with_room};

/// A view without pages was written in place, in a file that a forked child had too. Both processes could
/// grow their views into this file.
#[test]
fn a_view_written_in_place_grows_in_its_own_process_only() {
    let _serial = serial();
    for pages in [0, 5] {
        let mut snapshot = Snapshot::zeroed(pages * page_size()).unwrap();
        let mut view = snapshot.view_mut_with(&with_room()).unwrap();
        match fork() {
            Fork::InChild(parent) => {
                for len in [pages + 1, 50] {
                    assert!(view.grow(len * page_size()).is_err());
                }
                assert_eq!(view.len(), pages * page_size());
                assert!(view.take_snapshot().is_err());
                assert!(view.restore().is_err());
                parent.exit();
            }
            Fork::InParent(child) => child.join(),
        }
        view.grow(40 * page_size()).unwrap();
        assert_same("the parent's", &view, &vec![0; 40 * page_size()]);
        view.fill(4);
        view.commit().unwrap();
        assert_same("the parent's", &read(&snapshot), &vec![4; 40 * page_size()]);
    }
}

#[test]
fn copies_in_a_child_grow_apart() {
    let _serial = serial();
    for Kind { name, snapshot, bytes } in kinds::all() {
        let mut view = snapshot.view_with(&with_room()).unwrap();
        run_in_child(|| grows_and_shrinks(name, &mut view, &bytes));
        view.grow((kinds::PAGES + 1) * page_size()).unwrap();
        view[bytes.len()] = 1;
        run_in_child(|| {
            view.grow((kinds::PAGES + 2) * page_size()).unwrap();
            view[bytes.len() + page_size()] = 2;
            assert_eq!(read(&view.take_snapshot().unwrap())[bytes.len()], 1);
        });
        assert_eq!(view.len(), bytes.len() + page_size());
        assert_eq!(read(&view.take_snapshot().unwrap())[bytes.len()], 1);
    }
}
