//! Snapshots of every kind, and a test that runs on each of them.

use std::io::Write;
use std::ops::Range;

use memsnap::{Snapshot, Tracking, View, page_size};

use super::script::read;
use super::{LINUX, assert_same, pattern};

/// All tracking methods.
pub(crate) const ALL_TRACKINGS: [Tracking; 6] = [
    Tracking::Auto,
    Tracking::Armed,
    Tracking::Scan,
    Tracking::Pagemap,
    Tracking::WorkingSet,
    Tracking::Compare,
];

/// The tracking methods that may work on this system.
pub(crate) const TRACKINGS: &[Tracking] = if LINUX {
    &[Tracking::Auto, Tracking::Armed, Tracking::Scan, Tracking::Pagemap, Tracking::Compare]
} else if cfg!(windows) {
    &[Tracking::Auto, Tracking::WorkingSet, Tracking::Compare]
} else {
    &[Tracking::Auto, Tracking::Compare]
};

/// The number of pages of each snapshot.
pub(crate) const PAGES: usize = 150;

/// A snapshot with its name and its bytes.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) snapshot: Snapshot,
    pub(crate) bytes: Vec<u8>,
}

/// Returns one snapshot of each kind.
pub(crate) fn all() -> Vec<Kind> {
    let bytes = pattern(PAGES, 1);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    // SAFETY: the file has no name, and nobody writes to it any more.
    let mapped = unsafe { Snapshot::map_file(&file) }.unwrap();
    let of_bytes = Snapshot::from_slice(&bytes).unwrap();
    let mut kinds = vec![
        kind("from_file", Snapshot::from_file(file).unwrap(), bytes.clone()),
        kind("map_file", mapped, bytes.clone()),
        kind("from_reader", Snapshot::from_reader(&bytes[..]).unwrap(), bytes.clone()),
        kind("zeroed", Snapshot::zeroed(bytes.len()).unwrap(), vec![0; bytes.len()]),
    ];
    let zeroed = Snapshot::zeroed(bytes.len()).unwrap();
    kinds.push(captured("captured over bytes", &of_bytes, bytes.clone()));
    kinds.push(captured("captured over zeroes", &zeroed, vec![0; bytes.len()]));
    let mut flat = captured("flat", &of_bytes, bytes.clone());
    (0..70).for_each(|_| drop(flat.snapshot.view().unwrap()));
    assert!(flat.snapshot.stats().flat > 0);
    flat.name = "flat as a whole";
    kinds.push(flat);
    let mut flat = captured("flat", &zeroed, vec![0; bytes.len()]);
    (0..70).for_each(|_| drop(flat.snapshot.view().unwrap()));
    flat.name = "flat as a whole, over zeroes";
    kinds.push(flat);
    kinds.push(kind("from_slice", of_bytes, bytes));
    kinds
}

fn kind(name: &'static str, snapshot: Snapshot, bytes: Vec<u8>) -> Kind {
    Kind { name, snapshot, bytes }
}

/// Takes a snapshot with captured pages.
///
/// Views copy some of these pages. The others form long runs, which views map.
fn captured(name: &'static str, root: &Snapshot, mut bytes: Vec<u8>) -> Kind {
    let mut view = root.view().unwrap();
    for page in [2, 5, 6, 140] {
        bytes[page * page_size()] = 0xC0;
    }
    bytes[20 * page_size()..100 * page_size()].fill(0xC1);
    bytes[120 * page_size()..132 * page_size()].fill(0);
    view.copy_from_slice(&bytes);
    kind(name, view.take_snapshot().unwrap(), bytes)
}

/// Returns ranges that are invalid for a view of `len` bytes.
#[allow(clippy::reversed_empty_ranges)]
pub(crate) fn ranges_outside(len: usize) -> [Range<usize>; 5] {
    [0..len + 1, len + 1..len + 1, 9..8, 0..usize::MAX, usize::MAX..usize::MAX]
}

/// Writes to a view, takes snapshots of it and restores it.
pub(crate) fn goes_on<S>(what: &str, view: &mut View<S>, root: &[u8]) {
    let mut bytes = root.to_vec();
    assert_same(what, view, root);
    for round in 1..4 {
        for at in [0, root.len() / 3, root.len() / 2, root.len() - 1] {
            view[at] ^= round;
            bytes[at] ^= round;
        }
        let taken = view.take_snapshot().unwrap();
        assert_same(what, &read(&taken), &bytes);
        view[root.len() / 4..root.len() / 2].fill(7);
        view.restore_to(&taken).unwrap();
        assert_same(what, view, &bytes);
        view.restore().unwrap();
        assert_same(what, view, root);
        view.restore_to(&taken).unwrap();
        assert_same(what, view, &bytes);
        assert!(view.changes().unwrap().is_empty(), "{what}");
    }
    view.restore().unwrap();
}
