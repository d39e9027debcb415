//! Tests of repositories in a simulated storage: damage, hostile files, crashes and failures.

mod allocator;
mod cache;
mod crashes;
mod damage;
mod folders;
mod format;
mod healing;
mod hostile;
mod locks;
mod names;

use std::collections::BTreeMap;
use std::sync::Arc;

use memsnap::Snapshot;

use crate::id::Id;
use crate::repository::Repository;
use crate::storage::simulated::Simulated;

const BLOCK: usize = crate::format::BLOCK;

/// Returns a block of bytes that cannot be compressed.
fn noise(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Returns a block of bytes that can be compressed.
fn text(seed: u8) -> Vec<u8> {
    let numbers = (0..=u8::MAX).cycle();
    numbers.take(BLOCK).map(|number| if number % 64 < 60 { seed } else { number }).collect()
}

fn content(snapshot: &Snapshot) -> Vec<u8> {
    snapshot.view().unwrap().content().to_vec()
}

fn open(storage: &Simulated) -> crate::Result<Repository> {
    let mut repository = Repository::open_in(Arc::new(storage.clone()))?;
    // No test has another writer, so waiting for a lock would never end.
    repository.set_wait(std::time::Duration::ZERO);
    Ok(repository)
}

fn create(storage: &Simulated) -> Repository {
    Repository::create_in(Arc::new(storage.clone())).unwrap();
    open(storage).unwrap()
}

/// A repository and the bytes of its snapshots.
struct Small {
    storage: Simulated,
    base: Id,
    child: Id,
    bytes: BTreeMap<Id, Vec<u8>>,
}

/// Returns a repository of two snapshots: `base` with a pack of a compressed frame and a full manifest, and `child` with
/// a pack of a frame that is stored as it is, a partial manifest, a label, an attachment and a name.
fn small() -> Small {
    let storage = Simulated::new();
    let repository = create(&storage);
    let first = [text(1), vec![0; BLOCK], text(2), text(3)].concat();
    let second = [text(1), noise(4), text(2), vec![0; BLOCK], text(1)].concat();
    let base = Snapshot::from_slice(&first).unwrap();
    let base = repository.save(&base).name("base").run().unwrap();
    let child = Snapshot::from_slice(&second).unwrap();
    let save = repository.save(&child).parent(&base).name("child").label("key", "value");
    let child = save.attach("registers", *b"rip=0").run().unwrap();
    let bytes = BTreeMap::from([(base.id(), first), (child.id(), second)]);
    Small { storage, base: base.id(), child: child.id(), bytes }
}
