//! Tests of pushing and pulling that every kind of store has to pass.
//!
//! `open` opens the same remote each time.

use std::time::Duration;

use memsnap_store::{Collect, Error, Remote};

use super::{BLOCK, Machine, change, noise};

pub type Open<'a> = &'a dyn Fn() -> Remote;

/// A collection that deletes at once.
pub fn at_once() -> Collect {
    Collect::new().grace(Duration::ZERO)
}

/// A base and children arrive in an empty repository and in one that has the base, with their names.
pub fn children_arrive(open: Open<'_>) {
    let here = Machine::new();
    let mut bytes = noise(1, 300);
    bytes[50 * BLOCK..90 * BLOCK].fill(0);
    bytes[100 * BLOCK..150 * BLOCK].fill(7);
    let mut saved = here.save(&bytes, None, "state-0");
    let mut states = vec![(saved.id(), bytes.clone())];
    here.repository.push(&open(), "state-0").name("base").run().unwrap();

    let with_base = Machine::new();
    let pulled = with_base.repository.pull(&open(), "base").run().unwrap();
    assert_eq!(pulled.id, saved.id());
    assert!(with_base.repository.names().unwrap().is_empty());

    for number in 1..6_usize {
        change(&mut bytes, number as u64, 8);
        bytes[number * BLOCK..(number + 1) * BLOCK].fill(0);
        saved = here.save(&bytes, Some(&saved), &format!("state-{number}"));
        states.push((saved.id(), bytes.clone()));
    }
    let pushed = here.repository.push(&open(), saved.id()).name("last").run().unwrap();
    assert_eq!(pushed.id, saved.id());

    // The snapshots between the two were not pushed. Their manifests exist if the last one needs them, but are not
    // listed.
    let remote = open();
    let listed: Vec<_> =
        remote.list().unwrap().into_iter().map(|summary| (summary.id, summary.names)).collect();
    assert_eq!(listed, [(states[0].0, vec!["base".to_owned()]), (saved.id(), vec!["last".to_owned()])]);
    assert_eq!(remote.resolve("last").unwrap(), saved.id());
    assert_eq!(remote.resolve(&saved.id().to_string()[..12]).unwrap(), saved.id());
    assert!(matches!(remote.resolve(states[2].0), Err(Error::NotFound { .. })));

    let empty = Machine::new();
    for machine in [&empty, &with_base] {
        let pulled = machine.repository.pull(&remote, "last").name("mine").run().unwrap();
        assert_eq!(pulled.id, saved.id());
        assert_eq!(machine.repository.resolve("mine").unwrap(), saved.id());
        assert!(machine.bytes(saved.id()) == bytes);
        machine.check();
        machine.repository.collect(&at_once()).unwrap();
        assert!(machine.bytes(saved.id()) == bytes);
        machine.check();
        // The second time, nothing is missing.
        let again = machine.repository.pull(&remote, "last").run().unwrap();
        assert_eq!(again.blocks, 0);
    }
    assert!(with_base.bytes(states[0].0) == states[0].1);
    assert!(matches!(empty.repository.load(states[0].0).run(), Err(Error::NotFound { .. })));

    // A machine can push a snapshot that it has pulled. A snapshot whose manifest exists without being listed is listed.
    for (id, bytes) in &states {
        here.repository.push(&remote, *id).run().unwrap();
        empty.repository.pull(&remote, *id).run().unwrap();
        assert!(empty.bytes(*id) == *bytes);
    }
    assert_eq!(empty.repository.list().unwrap().len(), states.len());
    empty.check();
}

/// Two machines push images with 90 % of their blocks in common, at other offsets.
///
/// The second one sends the other blocks.
pub fn equal_blocks_are_sent_once(open: Open<'_>) {
    let (one, other) = (Machine::new(), Machine::new());
    let bytes = noise(2, 1000);
    one.save(&bytes, None, "one");
    one.repository.push(&open(), "one").run().unwrap();

    let mut moved = noise(3, 100);
    moved.extend_from_slice(&bytes[400 * BLOCK..]);
    moved.extend_from_slice(&bytes[..300 * BLOCK]);
    let id = other.save(&moved, None, "other").id();
    let remote = open();
    let before = remote.traffic();
    let pushed = other.repository.push(&remote, "other").run().unwrap();
    assert_eq!(pushed.blocks, 100);
    let sent = remote.traffic().sent - before.sent;
    // The manifest has 32 bytes for each block, and the list of places 16.
    let limit = 100 * BLOCK as u64 * 13 / 10 + 1000 * 50;
    assert!(sent <= limit, "{sent} bytes were sent instead of {limit}");

    let third = Machine::new();
    third.repository.pull(&open(), id).run().unwrap();
    assert!(third.bytes(id) == moved);
    third.check();
}

/// The bytes of a push of a child depend on its changes. The number of requests does not.
pub fn costs_are_those_of_the_changes(open: Open<'_>) {
    let (here, there) = (Machine::new(), Machine::new());
    let mut bytes = noise(4, 4000);
    let mut saved = here.save(&bytes, None, "base");
    here.repository.push(&open(), saved.id()).run().unwrap();
    there.repository.pull(&open(), saved.id()).run().unwrap();
    let mut requests = Vec::new();
    for (seed, count) in [(11, 16), (12, 256), (13, 64)] {
        let changed = change(&mut bytes, seed, count);
        saved = here.save(&bytes, Some(&saved), "child");
        let limit = (changed * BLOCK) as u64 * 13 / 10;

        let remote = open();
        let before = remote.traffic();
        let pushed = here.repository.push(&remote, saved.id()).run().unwrap();
        let after = remote.traffic();
        assert_eq!(pushed.blocks, changed as u64);
        assert_eq!(pushed.bytes, after.sent + after.received - before.sent - before.received);
        let bytes_moved = pushed.bytes;
        assert!(bytes_moved <= limit, "push of {changed} blocks: {bytes_moved} bytes, more than {limit}");

        let remote = open();
        let start = remote.traffic();
        let pulled = there.repository.pull(&remote, saved.id()).run().unwrap();
        assert_eq!(pulled.blocks, changed as u64);
        let bytes_moved = pulled.bytes;
        assert!(bytes_moved <= limit, "pull of {changed} blocks: {bytes_moved} bytes, more than {limit}");
        requests.push((after.requests - before.requests, remote.traffic().requests - start.requests));
        assert!(there.bytes(saved.id()) == bytes);
    }
    println!("requests of (push, pull): {requests:?}");
    assert!(requests.iter().all(|of| of.0 <= 22 && of.1 <= 10), "{requests:?}");
    assert!(requests.windows(2).all(|two| two[0] == two[1]), "{requests:?}");
}

/// Snapshots that were removed are collected, and the others stay.
///
/// A name of a removed snapshot is an error.
pub fn removed_snapshots_are_collected(open: Open<'_>) {
    let here = Machine::new();
    let kept_bytes = noise(5, 100);
    let kept = here.save(&kept_bytes, None, "kept");
    let base_bytes = noise(6, 100);
    let base = here.save(&base_bytes, None, "base");
    let mut child_bytes = base_bytes.clone();
    change(&mut child_bytes, 7, 10);
    let child = here.save(&child_bytes, Some(&base), "child");
    let remote = open();
    for name in ["kept", "base", "child"] {
        here.repository.push(&remote, name).name(name).run().unwrap();
    }
    assert_eq!(remote.collect(&at_once()).unwrap().packs, 0);

    // The child needs the base.
    assert_eq!(remote.remove("base").unwrap(), base.id());
    assert!(matches!(remote.resolve("base"), Err(Error::NotFound { .. })));
    assert!(matches!(remote.remove("base"), Err(Error::NotFound { .. })));
    assert!(matches!(here.repository.pull(&remote, "base").run(), Err(Error::NotFound { .. })));
    let collected = remote.collect(&at_once()).unwrap();
    assert_eq!((collected.packs, collected.manifests), (0, 0));
    let other = Machine::new();
    other.repository.pull(&remote, "child").run().unwrap();
    assert!(other.bytes(child.id()) == child_bytes);

    remote.remove("child").unwrap();
    let dry = remote.collect(&at_once().dry_run(true)).unwrap();
    assert_eq!((dry.packs, dry.manifests), (2, 2));
    assert!(dry.bytes > 110 * BLOCK as u64);
    // Marked objects stay for the grace time.
    assert_eq!(remote.collect(&Collect::new()).unwrap().bytes, 0);
    let collected = remote.collect(&at_once()).unwrap();
    assert_eq!((collected.packs, collected.manifests, collected.bytes), (2, 2, dry.bytes));
    assert_eq!(remote.collect(&at_once()).unwrap().bytes, 0);

    // The rest is intact, and a machine that has the deleted snapshot can push it again.
    assert_eq!(remote.list().unwrap().iter().map(|summary| summary.id).collect::<Vec<_>>(), [kept.id()]);
    other.repository.push(&remote, child.id()).name("child").run().unwrap();
    let third = Machine::new();
    for (id, bytes) in [(kept.id(), &kept_bytes), (child.id(), &child_bytes)] {
        third.repository.pull(&remote, id).run().unwrap();
        assert!(third.bytes(id) == *bytes);
    }
    third.check();
}

/// A push uses blocks that others have pushed, also if it knows only some blocks of a pack.
pub fn packs_that_are_known_in_part_are_used(open: Open<'_>) {
    let (one, other) = (Machine::new(), Machine::new());
    let bytes = noise(8, 200);
    // The two machines have the same pack. The list of the remote names most of its blocks.
    let first = one.save(&bytes, None, "all");
    assert_eq!(other.save(&bytes, None, "all").snapshot().len(), first.snapshot().len());
    let most = one.save(&bytes[..170 * BLOCK], None, "most");
    one.repository.push(&open(), most.id()).run().unwrap();

    let all = other.repository.resolve("all").unwrap();
    other.repository.push(&open(), all).run().unwrap();
    let third = Machine::new();
    third.repository.pull(&open(), all).run().unwrap();
    assert!(third.bytes(all) == bytes);
    third.check();
}

/// A manifest that no snapshot needs keeps its packs, because the next push of it does not send them.
pub fn manifests_that_stay_keep_their_packs(open: Open<'_>) {
    let here = Machine::new();
    let bytes = noise(9, 20);
    let first = here.save(&bytes, None, "first").id();
    let snapshot = memsnap::Snapshot::from_slice(&bytes).unwrap();
    let second = here.repository.save(&snapshot).label("number", "2").run().unwrap().id();
    let (remote, grace) = (open(), Collect::new().grace(Duration::from_secs(1)));
    here.repository.push(&remote, first).run().unwrap();
    remote.remove(first).unwrap();
    // This marks the first manifest and the pack.
    remote.collect(&grace).unwrap();
    here.repository.push(&remote, second).run().unwrap();
    remote.remove(second).unwrap();
    std::thread::sleep(Duration::from_millis(2200));
    // This deletes the first manifest and marks the second one.
    let collected = remote.collect(&grace).unwrap();
    assert_eq!((collected.manifests, collected.packs), (1, 0));

    here.repository.push(&remote, second).run().unwrap();
    let there = Machine::new();
    there.repository.pull(&remote, second).run().unwrap();
    assert!(there.bytes(second) == bytes);
}
