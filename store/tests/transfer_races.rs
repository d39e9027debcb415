//! Pushes and collections whose leases end, and damage that others have caused. The clock of the store is set by the
//! tests, so each of them is deterministic.
#![cfg(feature = "remote")]

mod common;
#[path = "common/odd.rs"]
mod odd;

use std::sync::Arc;
use std::time::Duration;

use common::{BLOCK, Machine, noise};
use memsnap::Snapshot;
use memsnap_store::{Collect, Error, Id, Remote, RemoteOptions};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use odd::{Odd, Odds};

/// Writes an object without the code under test.
fn write(store: &impl ObjectStore, path: &str, bytes: impl Into<Vec<u8>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(store.put(&Path::from(path), bytes.into().into())).unwrap();
}

fn open(store: &Arc<Odd>) -> Remote {
    Remote::with_store(store.clone(), "", &RemoteOptions::new()).unwrap()
}

const HOUR: Duration = Duration::from_secs(60 * 60);

/// Returns two snapshots with the same blocks.
fn twins(here: &Machine, bytes: &[u8]) -> [Id; 2] {
    let snapshot = Snapshot::from_slice(bytes).unwrap();
    ["1", "2"].map(|number| here.repository.save(&snapshot).label("number", number).run().unwrap().id())
}

/// Checks that a machine that knows nothing gets the bytes of a snapshot.
fn check_pull(store: &Arc<Odd>, id: Id, bytes: &[u8]) {
    let there = Machine::new();
    there.repository.pull(&open(store), id).run().unwrap();
    assert!(there.bytes(id) == bytes);
    there.check();
}

/// A push relied on a pack that was due to be deleted, and its lease ended while it sent the manifest. A collection
/// found neither the lease nor the manifest, and deleted the pack. Then the manifest arrived, and the push failed. When
/// it was repeated, it found the manifest, sent nothing, and published a snapshot that nobody could pull.
#[test]
fn a_push_that_is_repeated_after_its_lease_ended_sends_the_packs_again() {
    let (here, bytes) = (Machine::new(), noise(1, 100));
    let [first, second] = twins(&here, &bytes);
    let store = Odd::new(Odds::None);
    let remote = open(&store);
    here.repository.push(&remote, first).run().unwrap();
    remote.remove(first).unwrap();
    let grace = Collect::new().grace(HOUR);
    assert_eq!(remote.collect(&grace).unwrap().packs, 0);

    let other = store.clone();
    store.before(format!("manifests/{second}"), move || {
        other.advance(2 * HOUR);
        let collected = open(&other).collect(&Collect::new().grace(HOUR)).unwrap();
        assert_eq!((collected.packs, collected.manifests), (1, 1));
    });
    let error = here.repository.push(&remote, second).run().unwrap_err();
    assert!(matches!(error, Error::Expired { .. }), "{error}");
    assert!(matches!(remote.resolve(second), Err(Error::NotFound { .. })));

    let pushed = here.repository.push(&remote, second).run().unwrap();
    assert_eq!(pushed.blocks, 100);
    check_pull(&store, second, &bytes);
}

/// A virtual machine was stopped during a push, and restored from a snapshot an hour later. Its clocks went on from the
/// past, so it took its lease for valid, and published a snapshot whose packs had been deleted meanwhile.
#[test]
fn a_push_in_a_machine_that_was_restored_notices_that_its_lease_has_ended() {
    let (here, bytes) = (Machine::new(), noise(2, 100));
    let [first, second] = twins(&here, &bytes);
    // The machine stops before the last renewal of the lease, or between this and the write of the snapshot.
    for stopped_at in ["leases/", "snapshots/"] {
        let store = Odd::new(Odds::None);
        let remote = open(&store);
        here.repository.push(&remote, first).run().unwrap();
        remote.remove(first).unwrap();
        remote.collect(&Collect::new().grace(HOUR)).unwrap();
        let other = store.clone();
        let stop = move || {
            other.advance(2 * HOUR);
            open(&other).collect(&Collect::new().grace(HOUR)).unwrap();
        };
        let again = store.clone();
        store.before("places/", move || again.before(stopped_at, stop));
        let error = here.repository.push(&remote, second).run().unwrap_err();
        assert!(matches!(error, Error::Expired { .. }), "{stopped_at}: {error}");
        assert!(matches!(remote.resolve(second), Err(Error::NotFound { .. })), "{stopped_at}");

        here.repository.push(&remote, second).run().unwrap();
        check_pull(&store, second, &bytes);
    }
}

/// A collector renewed its announcement once and then deleted all packs, page after page. This can take longer than the
/// term. Pushes that began after the end relied on packs that were deleted then.
#[test]
fn a_collector_renews_its_announcement_between_the_pages_that_it_deletes() {
    let inner: Arc<InMemory> = Arc::default();
    let store = Odd::with(inner.clone(), Odds::None);
    let second = Duration::from_secs(1);
    // The shortest term is 10 s, and a renewal is due after about 1.4 s.
    let options = RemoteOptions::new().lease_term(10 * second).timeout(4 * second).retry_for(second);
    let remote = Remote::with_store(store.clone(), "", &options).unwrap();
    for number in 0..250_u64 {
        write(&*inner, &format!("packs/{}", Id::from(blake3::hash(&number.to_le_bytes()))), "garbage");
    }
    store.delete_slowly(Duration::from_millis(1600));
    let collected = remote.collect(&Collect::new().grace(Duration::ZERO)).unwrap();
    assert_eq!(collected.packs, 250);
    let written = store.written();
    let mut since = 0;
    for done in &written[written.iter().position(|path| path.starts_with("delete packs/")).unwrap()..] {
        if done.starts_with("delete packs/") {
            since += 1;
        } else if done.starts_with("collectors/") {
            since = 0;
        }
        assert!(since <= 100, "{since} packs were deleted since the last renewal: {written:?}");
    }
}

/// One damaged object of a remote, which no snapshot that is pushed needs, made every push fail that sent enough blocks
/// to look at what others had pushed.
#[test]
fn damage_that_others_have_caused_does_not_prevent_a_push() {
    let inner: Arc<InMemory> = Arc::default();
    let store = Odd::with(inner.clone(), Odds::None);
    let remote = open(&store);
    let other = Machine::new();
    let damaged = ["manifests", "places"].map(|folder| {
        let id = other.save(&noise(folder.len() as u64, 3), None, folder).id();
        other.repository.push(&remote, id).run().unwrap();
        write(&*inner, &format!("{folder}/{id}"), "nonsense");
        id
    });
    let newer = other.save(&noise(5, 3), None, "newer").id();
    other.repository.push(&remote, newer).run().unwrap();
    write(&*inner, &format!("manifests/{newer}"), [&b"memsnapM\x09\0\0\0"[..], &[0; 200]].concat());

    let (here, bytes) = (Machine::new(), noise(3, 300));
    let id = here.save(&bytes, None, "sound").id();
    here.repository.push(&remote, id).run().unwrap();
    check_pull(&store, id, &bytes);
    for id in damaged.into_iter().chain([newer]) {
        Machine::new().repository.pull(&remote, id).run().unwrap_err();
    }
}

/// A damaged bucket of the index of a remote in the cache made each push fail, and the error advised to repair the
/// index of the repository. The index of a remote is a cache, so it is made again.
#[test]
fn a_damaged_index_of_a_remote_is_made_again() {
    let (here, bytes) = (Machine::new(), noise(4, 600));
    let store = Odd::new(Odds::None);
    let remote = open(&store);
    here.save(&bytes[..500 * BLOCK], None, "first");
    here.repository.push(&remote, "first").run().unwrap();
    let cache = std::fs::read_dir(here.path().join("cache")).unwrap();
    let mut files = cache.map(|file| file.unwrap().path()).filter(|path| path.extension().unwrap() == "redb");
    let file = files.next().unwrap();

    // Every place of a block of the first snapshot: its hash is in a bucket.
    let mut index = std::fs::read(&file).unwrap();
    let mut changed = 0;
    for block in bytes[..500 * BLOCK].chunks(BLOCK) {
        let hash = blake3::hash(block);
        for at in 0..index.len() - 48 {
            if index[at] == hash.as_bytes()[0] && index[at..at + 32] == hash.as_bytes()[..] {
                index[at + 33] ^= 1;
                changed += 1;
            }
        }
    }
    assert!(changed >= 500, "{changed}");
    std::fs::write(&file, &index).unwrap();
    let id = here.save(&bytes, None, "second").id();
    here.repository.push(&remote, id).run().unwrap();
    check_pull(&store, id, &bytes);
    here.check();
}

/// A name can be valid in a repository and too long for a remote. The push failed after it had sent everything.
#[test]
fn a_name_that_is_too_long_for_a_remote_is_refused_before_anything_is_sent() {
    let here = Machine::new();
    let id = here.save(&noise(6, 10), None, "x").id();
    let store = Odd::new(Odds::None);
    let remote = open(&store);
    let before = remote.traffic();
    let error = here.repository.push(&remote, id).name("=".repeat(128)).run().unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    assert_eq!(remote.traffic(), before);
}

/// A collection made four requests for each manifest, one after the other.
#[test]
fn a_collection_makes_two_requests_for_each_manifest() {
    let here = Machine::new();
    let store = Odd::new(Odds::None);
    let remote = open(&store);
    let mut bytes = noise(7, 40);
    let mut saved = here.save(&bytes, None, "0");
    for number in 1..50_u64 {
        bytes[..BLOCK].copy_from_slice(&noise(100 + number, 1));
        saved = here.save(&bytes, Some(&saved), &number.to_string());
        if number % 10 == 0 {
            here.repository.push(&remote, saved.id()).run().unwrap();
        }
    }
    here.repository.push(&remote, saved.id()).run().unwrap();
    let manifests = store.written().iter().filter(|path| path.starts_with("manifests/")).count() as u64;
    assert!(manifests > 40, "{manifests}");
    let before = remote.traffic().requests;
    assert_eq!(remote.collect(&Collect::new()).unwrap().bytes, 0);
    let made = remote.traffic().requests - before;
    assert!(made <= 2 * manifests + 20, "{made} requests for {manifests} manifests");
    check_pull(&store, saved.id(), &bytes);
}
