//! Several processes at once: in one folder, and with their own repositories and one remote.
#![cfg(feature = "remote")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::Machine;
use common::process;
use memsnap_store::{Depth, Remote, RemoteOptions, Repository, Result};
use object_store::local::LocalFileSystem;

const TIME: Duration = Duration::from_secs(6);

fn open(folder: &str) -> Result<Remote> {
    let store = LocalFileSystem::new_with_prefix(folder).unwrap();
    Remote::with_store(Arc::new(store), "", &RemoteOptions::new())
}

#[test]
#[ignore = "is one of the processes of the other tests"]
fn process() {
    process::run(open);
}

#[test]
fn savers_readers_and_a_collector_share_a_folder() {
    let machine = Machine::new();
    let start = |role: &str, seed| process::start("process", role, &machine.path(), seed, TIME, "");
    let roles = [("save", 1), ("save", 2), ("read", 3), ("read", 4), ("collect", 5), ("verify", 6)];
    let told = process::wait(roles.map(|(role, seed)| start(role, seed)).into());
    let counts: Vec<usize> = told.iter().map(|told| told.count).collect();
    println!("lines that each process told: {counts:?}");
    let repository = Repository::open(machine.path()).unwrap();
    assert_eq!(repository.verify(Depth::Data).unwrap().problems, [""; 0]);
    for told in &told {
        told.check(&repository);
    }
    // Each process has completed some operations.
    assert!(counts.iter().all(|count| *count > 0) && counts[0] + counts[1] > 20, "{counts:?}");
}

/// Saves, pushes, pulls, verifications and collections in one folder. A push and a pull run while others save.
#[test]
fn processes_that_push_and_pull_share_a_folder() {
    let (machine, remote) = (Machine::new(), tempfile::tempdir().unwrap());
    let url = remote.path().to_str().unwrap();
    open(url).unwrap();
    let start = |role: &str, seed| process::start("process", role, &machine.path(), seed, TIME, url);
    let roles = [("push", 1), ("push", 2), ("save", 3), ("verify", 4), ("collect", 5)];
    let told = process::wait(roles.map(|(role, seed)| start(role, seed)).into());
    let counts: Vec<usize> = told.iter().map(|told| told.count).collect();
    println!("lines that each process told: {counts:?}");
    machine.check();
    let (remote, other) = (open(url).unwrap(), Machine::new());
    for told in &told {
        told.check(&machine.repository);
        for id in told.pushed.keys() {
            other.repository.pull(&remote, *id).run().unwrap();
        }
        told.check_pushed(&other.repository);
    }
    other.check();
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

#[test]
fn two_machines_push_to_a_remote_while_another_one_collects_it() {
    let folder = tempfile::tempdir().unwrap();
    process::machines_share_a_remote("process", folder.path().to_str().unwrap(), open);
}
