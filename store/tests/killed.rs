//! Processes that are killed at random moments.
//!
//! All acknowledged snapshots exist, nothing is damaged, and work continues.
//!
//! `MEMSNAP_STORE_KILLS` sets how often each kind of process is killed.
#![cfg(feature = "remote")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::process::{self, Told};
use common::{Machine, random};
use memsnap_store::{Collect, Remote, RemoteOptions, Repository, Result};
use object_store::local::LocalFileSystem;
use rand::RngExt;

/// After this many kills, the next process begins with an empty repository.
const KILLS_EACH: u64 = 20;

fn open(folder: &str) -> Result<Remote> {
    let store = LocalFileSystem::new_with_prefix(folder).unwrap();
    Remote::with_store(Arc::new(store), "", &RemoteOptions::new())
}

#[test]
#[ignore = "is the process that the other tests kill"]
fn process() {
    process::run(open);
}

/// Runs a process, and kills it some time after it has opened the repository. Returns what it printed.
fn run_and_kill(role: &str, folder: &Path, seed: u64, time: Duration, remote: &str) -> Vec<u8> {
    let mut child = process::start("process", role, folder, seed, Duration::from_secs(3600), remote);
    let mut output = BufReader::new(child.stdout.take().unwrap());
    // The line of the test harness comes before the test starts.
    let mut first = Vec::new();
    while !first.ends_with(b"running 1 test\n") {
        assert!(output.read_until(b'\n', &mut first).unwrap() > 0, "the process has ended");
    }
    let reader = std::thread::spawn(move || {
        let mut rest = Vec::new();
        std::io::Read::read_to_end(&mut output, &mut rest).unwrap();
        rest
    });
    std::thread::sleep(time);
    let ended = child.try_wait().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let rest = reader.join().unwrap();
    if let Some(status) = ended {
        panic!("the process has ended: {status}: {}", String::from_utf8_lossy(&rest));
    }
    rest
}

/// The leases of a process that was killed end after 10 minutes. The tests do not wait for that.
fn end_leases(remote: &Path) {
    for folder in ["leases", "collectors"] {
        for lease in fs::read_dir(remote.join(folder)).into_iter().flatten() {
            fs::remove_file(lease.unwrap().path()).unwrap();
        }
    }
}

fn is_killed(role: &str) {
    let kills = std::env::var("MEMSNAP_STORE_KILLS").map_or(8, |kills| kills.parse::<u64>().unwrap());
    let mut random = random(kills);
    let (began, mut acknowledged) = (Instant::now(), 0);
    for first in (0..kills).step_by(KILLS_EACH.try_into().unwrap()) {
        let (machine, folder) = (Machine::new(), tempfile::tempdir().unwrap());
        let url = folder.path().to_str().unwrap();
        open(url).unwrap();
        let mut told = Told::default();
        for number in first..kills.min(first + KILLS_EACH) {
            let time = Duration::from_micros(random.random_range(2_000..250_000));
            told.add(&run_and_kill(role, &machine.path(), number, time, url));
            end_leases(folder.path());
            let mut repository = Repository::open(machine.path()).unwrap();
            // The locks of a process end with it, so nothing is waited for. A collection needs all of them.
            repository.set_wait(Duration::ZERO);
            repository.collect(&Collect::new().dry_run(true)).unwrap();
            assert_eq!(repository.verify(memsnap_store::Depth::Data).unwrap().problems, [""; 0]);
            told.check(&repository);
            check_remote(&told, url);
        }
        acknowledged += told.count;
    }
    println!("{role}: {kills} kills in {:?}, {acknowledged} operations acknowledged", began.elapsed());
    assert!(acknowledged > 0, "every process was killed before it did anything");
}

fn check_remote(told: &Told, url: &str) {
    if told.pushed.is_empty() {
        return;
    }
    let (remote, machine) = (open(url).unwrap(), Machine::new());
    for (id, (seed, step)) in &told.pushed {
        machine.repository.pull(&remote, *id).run().unwrap();
        assert!(machine.bytes(*id) == process::bytes(*seed, *step));
    }
}

#[test]
fn a_saver_is_killed() {
    is_killed("save");
}

#[test]
fn a_saver_that_collects_is_killed() {
    is_killed("save and collect");
}

#[test]
fn a_machine_that_pushes_and_collects_is_killed() {
    is_killed("push and collect");
}
