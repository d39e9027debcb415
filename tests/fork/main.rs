//! After a fork, the child and its parent both continue to use the same views and snapshots, at the same
//! time.
//!
//! Neither sees or changes the other's bytes.
#![cfg(unix)]

#[path = "../common/mod.rs"]
mod common;
mod flat;
#[cfg(target_os = "linux")]
mod keys;
mod mutable;
mod pages;

use std::sync::Arc;

use common::script::{Script, read};
use common::unix::{Fork, fork};
use common::{assert_same, pattern, serial};
use memsnap::{ArcView, Snapshot, page_size};

/// Runs `one` in one process while the other waits, and then `other` in the other process.
///
/// The child goes first, and then, in a second fork, the parent. Each fork starts from a new result of
/// `setup`.
#[track_caller]
fn one_after_the_other<T>(setup: impl Fn() -> T, one: impl Fn(&mut T), other: impl Fn(&mut T)) {
    for child_first in [true, false] {
        let mut inherited = setup();
        match fork() {
            Fork::InChild(mut parent) => {
                if child_first {
                    one(&mut inherited);
                    parent.signal();
                    parent.wait();
                } else {
                    parent.wait();
                    other(&mut inherited);
                }
                parent.exit();
            }
            Fork::InParent(mut child) => {
                if child_first {
                    child.wait();
                    other(&mut inherited);
                    child.signal();
                } else {
                    one(&mut inherited);
                    child.signal();
                }
                child.join();
            }
        }
    }
}

/// Forks, and runs `script` in both processes at once. Both get the `inherited` value from before the fork.
///
/// The number that `script` gets differs between the processes.
#[track_caller]
fn both_at_once<T>(mut inherited: T, script: impl Fn(&mut T, u8)) {
    match fork() {
        Fork::InChild(mut parent) => {
            parent.signal();
            script(&mut inherited, 100);
            parent.exit();
        }
        Fork::InParent(mut child) => {
            child.wait();
            script(&mut inherited, 200);
            child.join();
        }
    }
}

/// A view of a family of snapshots, and the bytes of its root.
struct Family {
    view: ArcView,
    root: Vec<u8>,
}

impl Family {
    fn of_bytes(pages: usize) -> Self {
        let root = pattern(pages, 1);
        Self { view: Arc::new(Snapshot::from_slice(&root).unwrap()).view_arc().unwrap(), root }
    }

    fn of_zeroes(pages: usize) -> Self {
        let root = vec![0; pages * page_size()];
        Self { view: Arc::new(Snapshot::zeroed(root.len()).unwrap()).view_arc().unwrap(), root }
    }

    /// Takes a snapshot with these bytes through the view, and restores the view to the root.
    fn capture(&mut self, bytes: &[u8]) -> Snapshot {
        self.view.copy_from_slice(bytes);
        let snapshot = self.view.take_snapshot().unwrap();
        self.view.restore().unwrap();
        snapshot
    }

    /// Checks that the snapshot holds `bytes`: by reading it, by a new view, and by a restore to it.
    #[track_caller]
    fn assert_holds(&mut self, snapshot: &Snapshot, bytes: &[u8]) {
        assert_same("read", &read(snapshot), bytes);
        assert_same("viewed", &snapshot.view().unwrap(), bytes);
        self.view.restore_to(snapshot).unwrap();
        assert_same("restored to", &self.view, bytes);
        self.view.restore().unwrap();
        assert_same("restored", &self.view, &self.root);
    }
}

fn fill_every(step: usize, bytes: &mut [u8], value: u8) {
    bytes.chunks_exact_mut(page_size()).step_by(step).for_each(|page| page.fill(value));
}

#[test]
fn every_operation_goes_on_in_both_processes() {
    let _serial = serial();
    for seed in 0..8 {
        let mut script = Script::new(seed);
        script.run(150);
        both_at_once(script, |script, process| {
            script.reseed(seed << 8 | u64::from(process));
            script.run(150);
        });
    }
}

#[test]
fn grandchildren_go_on_like_children() {
    fn generation(script: &mut Script, number: u64) {
        if number == 4 {
            return;
        }
        match fork() {
            Fork::InChild(parent) => {
                script.reseed(2 * number);
                script.run(50);
                generation(script, number + 1);
                script.run(50);
                parent.exit();
            }
            Fork::InParent(child) => {
                script.reseed(2 * number + 1);
                script.run(150);
                child.join();
                script.run(50);
            }
        }
    }
    let _serial = serial();
    let mut script = Script::new(0);
    script.run(50);
    generation(&mut script, 0);
}
