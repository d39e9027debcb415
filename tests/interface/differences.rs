//! Which pages `diff` and `changes` list.

use std::io::{Read, Seek, Write};

use memsnap::{Snapshot, page_size};

use super::common::script::differing;
use super::common::{assert_same, noise};
use super::{every_kind, odd_len, scribble, shown};

#[test]
fn diff_names_the_pages_that_differ_of_any_two_snapshots() {
    let mut kinds = every_kind(odd_len());
    kinds.extend(every_kind(odd_len() + 3 * page_size()));
    for (left_kind, left, left_bytes) in &kinds {
        for (right_kind, right, right_bytes) in &kinds {
            let expected = differing(left_bytes, right_bytes);
            assert_eq!(left.diff(right).unwrap().ranges(), expected, "{left_kind}, {right_kind}");
        }
    }
}

#[test]
fn changes_are_the_pages_that_differ_from_what_was_last_agreed_on() {
    for (kind, snapshot, bytes) in every_kind(odd_len()) {
        let mut view = snapshot.view().unwrap();
        assert_eq!(view.changes().unwrap().ranges(), [], "{kind}");
        view.copy_from_slice(&bytes);
        assert_eq!(view.changes().unwrap().ranges(), [], "{kind}, the same bytes written again");
        scribble(&mut view, 3);
        let mut scribbled = bytes.clone();
        scribble(&mut scribbled, 3);
        assert_eq!(view.changes().unwrap().ranges(), differing(&bytes, &scribbled), "{kind}");
        let taken = view.take_snapshot().unwrap();
        assert_eq!(view.changes().unwrap().ranges(), [], "{kind}, taken");
        view.copy_from_slice(&bytes);
        assert_eq!(
            view.changes().unwrap().ranges(),
            differing(&bytes, &scribbled),
            "{kind}, the old bytes written back"
        );
        assert_eq!(view.changes().unwrap().ranges(), snapshot.diff(&taken).unwrap().ranges(), "{kind}");
        view.restore().unwrap();
        assert_eq!(view.changes().unwrap().ranges(), [], "{kind}, restored");
    }
}

#[test]
fn bytes_that_the_system_writes_count() {
    let bytes = noise(3 * page_size(), 4);
    let snapshot = Snapshot::zeroed(10 * page_size()).unwrap();
    let mut view = snapshot.view().unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    file.rewind().unwrap();
    file.read_exact(&mut view[2 * page_size()..5 * page_size()]).unwrap();
    assert_eq!(view.changes().unwrap().ranges(), [2 * page_size()..5 * page_size()]);
    let taken = view.take_snapshot().unwrap();
    assert_same("taken", &shown(&taken)[2 * page_size()..5 * page_size()], &bytes);
    view.restore().unwrap();
    assert!(view.iter().all(|&byte| byte == 0));
}
