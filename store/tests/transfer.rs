//! Pushing and pulling, with a store in memory.
#![cfg(feature = "remote")]

mod common;
#[path = "common/odd.rs"]
mod odd;

use std::sync::Arc;
use std::time::Duration;

use common::transfer::{self, at_once};
use common::{BLOCK, Machine, change, noise};
use memsnap_store::{Error, Remote, RemoteOptions};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use odd::{Odd, Odds};

fn open<S: ObjectStore>(store: &Arc<S>) -> Remote {
    Remote::with_store(store.clone(), "", &RemoteOptions::new()).unwrap()
}

fn in_memory(test: fn(transfer::Open<'_>)) {
    let store = Arc::new(InMemory::new());
    test(&|| open(&store));
}

#[test]
fn children_arrive() {
    in_memory(transfer::children_arrive);
}

#[test]
fn equal_blocks_are_sent_once() {
    in_memory(transfer::equal_blocks_are_sent_once);
}

#[test]
fn costs_are_those_of_the_changes() {
    in_memory(transfer::costs_are_those_of_the_changes);
}

#[test]
fn removed_snapshots_are_collected() {
    in_memory(transfer::removed_snapshots_are_collected);
}

#[test]
fn packs_that_are_known_in_part_are_used() {
    in_memory(transfer::packs_that_are_known_in_part_are_used);
}

#[test]
fn manifests_that_stay_keep_their_packs() {
    in_memory(transfer::manifests_that_stay_keep_their_packs);
}

/// The connection is lost after each number of requests.
///
/// The next push completes the snapshot, also after a collection without a grace time.
#[test]
fn a_push_that_was_interrupted_can_be_started_again() {
    let here = Machine::new();
    let base_bytes = noise(1, 40);
    let base = here.save(&base_bytes, None, "base");
    let mut bytes = base_bytes.clone();
    change(&mut bytes, 2, 6);
    let child = here.save(&bytes, Some(&base), "child");

    let mut interrupted = 0;
    for requests in 0.. {
        let store = Arc::new(InMemory::new());
        open(&Odd::with(store.clone(), Odds::None));
        let failing = Odd::with(store.clone(), Odds::LosesConnection { after: 1 + requests });
        let remote = open(&failing);
        let result = here.repository.push(&remote, child.id()).name("child").run();
        here.check();
        let left_over = std::fs::read_dir(here.path().join("tmp")).unwrap().count();
        assert_eq!(left_over, 0, "after {requests} requests, a temporary file is left");
        let is_complete = match result {
            Ok(_) => true,
            Err(error) => {
                assert!(matches!(error, Error::Remote { .. }), "after {requests} requests: {error}");
                interrupted += 1;
                false
            }
        };
        let there = Machine::new();
        let good_store = Odd::with(store.clone(), Odds::None);
        let good = open(&good_store);
        // A snapshot is complete, or it is not listed.
        match there.repository.pull(&good, child.id()).run() {
            Ok(_) => assert!(there.bytes(child.id()) == bytes),
            Err(Error::NotFound { .. }) => assert!(!is_complete),
            Err(error) => panic!("after {requests} requests: {error}"),
        }
        if requests % 2 == 1 {
            // The lease of the push is left over. Until it has ended, a collection deletes nothing.
            good_store.advance(Duration::from_secs(60 * 60));
            good.collect(&at_once()).unwrap();
        }
        here.repository.push(&good, child.id()).name("child").run().unwrap();
        assert_eq!(there.repository.pull(&good, "child").run().unwrap().id, child.id());
        assert!(there.bytes(child.id()) == bytes);
        there.check();
        if is_complete {
            break;
        }
    }
    assert!(interrupted > 10, "{interrupted}");
}

/// The objects that a snapshot needs are written before it, so a crash leaves no incomplete snapshot.
#[test]
fn objects_are_written_before_those_that_need_them() {
    let here = Machine::new();
    let mut bytes = noise(1, 40);
    let base = here.save(&bytes, None, "base");
    change(&mut bytes, 2, 6);
    let child = here.save(&bytes, Some(&base), "child");
    let failing = Odd::new(Odds::None);
    let remote = open(&failing);
    here.repository.push(&remote, child.id()).name("child").run().unwrap();
    let written = failing.written();
    let position = |wanted: &str| {
        let found = written.iter().position(|path| path.starts_with(wanted));
        found.unwrap_or_else(|| panic!("{wanted} is not in {written:?}"))
    };
    let last_pack = written.iter().rposition(|path| path.starts_with("packs/")).unwrap();
    let order = [
        position("leases/"),
        last_pack,
        position(&format!("places/{}", base.id())),
        position(&format!("manifests/{}", base.id())),
        position(&format!("places/{}", child.id())),
        position(&format!("manifests/{}", child.id())),
        position("snapshots/"),
        position("names/"),
    ];
    assert!(order.is_sorted(), "{written:?}");
}

/// Packs that arrived before the connection was lost are not sent again.
#[test]
fn packs_that_arrived_are_used() {
    let here = Machine::new();
    // Three packs, of which the last one is short.
    let blocks = (80 << 20) / BLOCK;
    let bytes = noise(3, blocks);
    let id = here.save(&bytes, None, "large").id();
    let store: Arc<InMemory> = Arc::default();
    open(&Odd::with(store.clone(), Odds::None));
    // The configuration, a lease and its time, collectors, packs and places; then each pack is an upload in 8 MiB parts.
    let failing = Odd::with(store.clone(), Odds::LosesConnection { after: 8 });
    let remote = open(&failing);
    here.repository.push(&remote, id).run().unwrap_err();
    let arrived = failing.written().iter().filter(|path| path.starts_with("packs/")).count();
    assert!((1..3).contains(&arrived), "{:?}", failing.written());

    let remote = open(&Odd::with(store.clone(), Odds::None));
    let before = remote.traffic();
    here.repository.push(&remote, id).run().unwrap();
    let sent = remote.traffic().sent - before.sent;
    let limit = bytes.len() as u64 - arrived as u64 * (31 << 20) + (2 << 20);
    assert!(sent < limit, "{arrived} packs had arrived, and {sent} bytes were sent instead of {limit}");
    let there = Machine::new();
    there.repository.pull(&remote, id).run().unwrap();
    assert!(there.bytes(id) == bytes);
}

/// A verification reported damage of an index that had all needed blocks.
///
/// A pull copies a frame whole, with a block that the repository has already. The block then has its place in the new
/// pack. Once a collection has deleted this pack, the index has no place of the block, and the old pack still has it.
#[test]
fn a_block_that_nothing_needs_may_lose_its_place() {
    let (here, there) = (Machine::new(), Machine::new());
    let (common, own) = (noise(1, 1), noise(2, 9));
    let pulled = there.save(&[&common[..], &noise(3, 9)].concat(), None, "pulled").id();
    let remote = open(&Arc::<InMemory>::default());
    there.repository.push(&remote, pulled).run().unwrap();

    // One pack with the common block and nine others.
    let both_bytes = [&common[..], &own].concat();
    let both = here.save(&both_bytes, None, "both").id();
    here.repository.pull(&remote, pulled).run().unwrap();
    // Four lists of places of about the same length become one, which has one place of each block.
    here.save(&noise(4, 9), None, "third");
    here.save(&noise(5, 9), None, "fourth");
    let own = here.save(&own, None, "own").id();
    for id in [pulled, both] {
        here.repository.remove(id).unwrap();
    }
    let collected = here.repository.collect(&at_once()).unwrap();
    assert_eq!((collected.packs, collected.repacked), (1, 0));
    here.check();

    // The next save that has the block stores it again.
    let snapshot = memsnap::Snapshot::from_slice(&both_bytes).unwrap();
    let packs = || std::fs::read_dir(here.path().join("packs")).unwrap().count();
    let before = packs();
    let again = here.repository.save(&snapshot).run().unwrap().id();
    assert_eq!(packs(), before + 1);
    assert!(here.bytes(again) == both_bytes);
    here.check();
    assert!(here.bytes(own) == both_bytes[BLOCK..]);
}

/// A verification reported damage of a pack that had a block twice.
///
/// A pull copies two frames that have a block in common to one pack. The block has its place in one of them.
#[test]
fn a_pack_may_have_a_block_twice() {
    let (one, two, three) = (Machine::new(), Machine::new(), Machine::new());
    let (common, first, second) = (noise(1, 1), noise(2, 9), noise(3, 9));
    let remote = open(&Arc::<InMemory>::default());
    let base = one.save(&[&common[..], &first].concat(), None, "base").id();
    one.repository.push(&remote, base).run().unwrap();

    // The other machine has the common block in a pack of its own, which it sends whole.
    two.save(&[&common[..], &second].concat(), None, "other");
    two.repository.pull(&remote, base).run().unwrap();
    let bytes = [&common[..], &first, &second].concat();
    let snapshot = memsnap::Snapshot::from_slice(&bytes).unwrap();
    let child = two.repository.save(&snapshot).parent_id(base).run().unwrap().id();
    two.check();
    two.repository.push(&remote, child).run().unwrap();

    three.repository.pull(&remote, child).run().unwrap();
    assert!(three.bytes(child) == bytes);
    assert_eq!(std::fs::read_dir(three.path().join("packs")).unwrap().count(), 1);
    three.check();
}
