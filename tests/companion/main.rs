//! Stress test: other threads and processes disturb views in every way that is allowed, and every byte is
//! checked.
//!
//! One thread takes snapshots of several views and restores them. Other threads and processes do everything
//! to the views that the documentation allows.
//!
//! Each round has two phases. First, all threads and processes write at once, in many ways, each to its own
//! bytes. Then nobody writes, and one thread calls the views. Operations that change no byte go on all the
//! time: pages are swapped out and read in, merged, collapsed and locked; other processes read them; other
//! threads fork; children use what they inherited.
//!
//! There is one test for each tracking method, which runs for `MEMSNAP_COMPANION_SECONDS` (3 by default). The
//! kernel's timing differs between runs, but `MEMSNAP_COMPANION_SEED` repeats the calls in the same order.
#![cfg(all(target_os = "linux", not(memsnap_unix)))]

mod account;
#[path = "../common/mod.rs"]
mod common;
mod forks;
mod nuisances;
mod peers;
mod raw;
mod ring;
mod rounds;
mod subject;
mod writers;

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use account::{Kind, count, has, lack};
use common::alone::alone_with;
use common::linux::{SwapFile, ksm};
use common::script::Random;
use common::{serial, skip, tell};
use memsnap::{Snapshot, Tracking, ViewOptions, page_size};
use peers::Writer;
use rounds::Rounds;
use writers::Peers;

/// The environment variable that tells the process of a test why there is no swap. It is empty if there is
/// swap.
const NO_SWAP: &str = "MEMSNAP_COMPANION_NO_SWAP";

/// The environment variable that tells the process of a test why there is no KSM. It is empty if there is
/// KSM.
const NO_KSM: &str = "MEMSNAP_COMPANION_NO_KSM";

#[test]
fn companion_of_automatic_views() {
    companion("companion_of_automatic_views", Tracking::Auto);
}

#[test]
fn companion_of_armed_views() {
    companion("companion_of_armed_views", Tracking::Armed);
}

#[test]
fn companion_of_scanned_views() {
    companion("companion_of_scanned_views", Tracking::Scan);
}

#[test]
fn companion_of_views_read_from_pagemap() {
    companion("companion_of_views_read_from_pagemap", Tracking::Pagemap);
}

#[test]
fn companion_of_compared_views() {
    companion("companion_of_compared_views", Tracking::Compare);
}

/// Adds swap and switches KSM on, if possible, and runs the test in a process of its own.
fn companion(test: &str, tracking: Tracking) {
    if env::var_os(NO_SWAP).is_some() {
        return alone_with(test, &[], || run(tracking));
    }
    let _serial = serial();
    let refused =
        Snapshot::zeroed(page_size()).unwrap().view_with(ViewOptions::new().tracking(tracking)).err();
    if let Some(error) = refused.filter(|error| error.kind() == ErrorKind::Unsupported) {
        return skip("companion", format!("{tracking}: {error}"));
    }
    let (swap, ksm) = (SwapFile::add(), ksm::switch_on());
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default().lines().count();
    let why = |error: &String| format!("{tracking}: {error}");
    let no_swap = swap.as_ref().err().filter(|_| swaps < 2).map(why).unwrap_or_default();
    let no_ksm = ksm.as_ref().err().map(why).unwrap_or_default();
    alone_with(test, &[(NO_SWAP, &no_swap), (NO_KSM, &no_ksm)], || {
        unreachable!("the process has the variables")
    });
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, but is {text:?}")))
}

fn run(tracking: Tracking) {
    let seconds = number("MEMSNAP_COMPANION_SECONDS").unwrap_or(3);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number("MEMSNAP_COMPANION_SEED").unwrap_or(u64::from(now.subsec_nanos()));
    println!("companion: {tracking}: MEMSNAP_COMPANION_SEED={seed}");
    let mut random = Random(seed);
    let mut next_seed = || random.below(usize::MAX) as u64;

    account::stop_on_panic();
    let peers = Peers {
        by_vm_write: Writer::start(Kind::PeerVmWrite, peers::by_vm_write),
        by_mem: Writer::start(Kind::PeerMem, peers::by_mem),
    };
    let watcher = peers::watch(next_seed());
    nuisances::probe();
    for (variable, kinds) in
        [(NO_SWAP, &[Kind::PageOut, Kind::PageOutAll][..]), (NO_KSM, &[Kind::Merge, Kind::Unmerge])]
    {
        let why = env::var(variable).unwrap_or_default();
        kinds.iter().filter(|_| !why.is_empty()).for_each(|&kind| lack(kind, &why));
    }

    let start = Instant::now();
    let end = start + Duration::from_secs(seconds);
    // On a slow machine, the test continues until everything has happened once.
    let last_end = end + Duration::from_secs(120);
    let rounds = thread::scope(|scope| {
        let mut rounds = Rounds::new(scope, tracking, &peers, &mut next_seed);
        while Instant::now() < end || (!account::missing().is_empty() && Instant::now() < last_end) {
            rounds.epoch();
        }
        rounds.end()
    });
    watcher.join();
    peers.by_vm_write.join();
    peers.by_mem.join();
    tell(&format!(
        "note: companion: {tracking}: seed {seed}, {} s, {rounds} rounds: {}",
        start.elapsed().as_secs(),
        account::report()
    ));
    assert_eq!(account::missing(), [""; 0], "the system supports these, but they never happened");
    assert!(tracking != Tracking::Armed || count(Kind::Armed) > 0, "no view was armed");
    // The kernel does not have to grant these requests.
    for (asked, effect) in [
        (Kind::PageOut, Kind::SwappedOut),
        (Kind::Collapse, Kind::Collapsed),
        (Kind::Merge, Kind::Merged),
        (Kind::Merge, Kind::MergedZero),
    ] {
        // The kernel makes no huge pages of write-protected pages.
        let not_at_all = (tracking, asked) == (Tracking::Armed, Kind::Collapse);
        if has(asked) && count(effect) == 0 && !not_at_all {
            skip("companion", format!("{tracking}: {}: this never happened", effect.name()));
        }
    }
}
