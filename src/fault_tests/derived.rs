//! Snapshots that are made from another one without a view.

use std::io;

use super::{assert_shows, file, make, pattern, survive};
use crate::sys::fault;
use crate::{Snapshot, page_size};

/// Makes each system call of `derive` fail, and then all calls from this one on, on new snapshots of all kinds.
///
/// Each error must name `attempt`, and must leave the old snapshot and the memory of its relatives as they were.
/// Without a failure, the new snapshot must have the bytes that `change` makes of the old ones.
fn with_each_failure(
    attempts: &[&str],
    derive: impl Fn(&Snapshot) -> io::Result<Snapshot>,
    change: impl Fn(&mut Vec<u8>),
) {
    let bytes = pattern(4);
    let mut expected = bytes.clone();
    change(&mut expected);
    let mut failures = 0;
    for failing in [1, u64::MAX] {
        for kind in 0..3 {
            for first in 0.. {
                // A new snapshot each time, since its base is mapped once, and its store has no memory yet.
                let old = match kind {
                    0 => Snapshot::from_slice(&bytes).unwrap(),
                    1 => Snapshot::from_file(file(&bytes)).unwrap(),
                    _ => Snapshot::zeroed(bytes.len()).unwrap().with_changes([(0, &bytes)]).unwrap(),
                };
                let stats = || (old.stats().images, old.stats().store.live);
                let before = stats();
                let (new, calls) = fault::inject(first, failing, || derive(&old));
                match new {
                    Ok(new) => assert_shows(&new, &expected),
                    Err(error) => {
                        failures += 1;
                        let message = error.to_string();
                        assert!(attempts.iter().any(|attempt| message.contains(attempt)), "{message}");
                        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory, "{message}");
                    }
                }
                assert_shows(&old, &bytes);
                assert_eq!(stats(), before);
                if calls <= first {
                    break;
                }
            }
        }
    }
    assert!(failures > 0, "no failure led to an error");
}

#[test]
fn changes_that_cannot_be_captured_leave_the_old_snapshot() {
    let page = page_size();
    let (many, few) = (vec![9; 30 * page], [8; 3]);
    with_each_failure(
        &["allocating memory for the changed pages of a snapshot", "mapping the base of an image"],
        |old| old.with_changes([(40 * page, &many[..]), (page - 1, &few)]),
        |bytes| {
            bytes[40 * page..70 * page].fill(9);
            bytes[page - 1..page + 2].fill(8);
        },
    );
}

#[test]
fn a_length_that_cannot_be_made_leaves_the_old_snapshot() {
    let page = page_size();
    with_each_failure(
        &["allocating memory for the changed pages of a snapshot", "mapping the base of an image"],
        |old| old.resized(50 * page + 10, 7),
        |bytes| {
            bytes[50 * page + 10..].fill(0);
            bytes.truncate(51 * page);
        },
    );
}

/// The memory for a capture may come in several parts. If a later one is refused, the first ones are returned.
#[test]
fn a_failure_after_some_pages_returns_their_memory() {
    let (page, pages) = (page_size(), 3000);
    let zeroed = make(|| Snapshot::zeroed(pages * page), &vec![0; pages * page]);
    let bytes = vec![1; pages * page];
    let ((), calls) = fault::inject(u64::MAX, 0, || drop(zeroed.with_changes([(0, &bytes)]).unwrap()));
    assert!(calls > 0);
    let mut failures = 0;
    for first in 0..calls {
        let zeroed = Snapshot::zeroed(pages * page).unwrap();
        let (written, _) = fault::inject(first, u64::MAX, || zeroed.with_changes([(0, &bytes)]));
        failures += usize::from(written.is_err());
        drop(written);
        assert_eq!(zeroed.stats().store.live, 0);
        let written = survive(|| zeroed.with_changes([(0, &bytes)]), drop);
        assert_shows(&written, &bytes);
        assert_eq!(zeroed.stats().store.live, pages * page);
    }
    assert!(failures > 1, "{failures} of {calls} calls led to an error");
}
