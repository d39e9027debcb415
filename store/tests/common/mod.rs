//! Machines with their own repositories, and images with random bytes.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::path::PathBuf;

use memsnap::Snapshot;
use memsnap_store::{Depth, Id, Repository, Saved};
use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use tempfile::TempDir;

pub mod process;
pub mod transfer;

pub const BLOCK: usize = 4096;

pub fn random(seed: u64) -> Xoshiro256PlusPlus {
    Xoshiro256PlusPlus::seed_from_u64(seed)
}

/// Returns blocks that cannot be compressed.
pub fn noise(seed: u64, blocks: usize) -> Vec<u8> {
    let mut bytes = vec![0; blocks * BLOCK];
    random(seed).fill_bytes(&mut bytes);
    bytes
}

/// Replaces some blocks by noise. Returns their number.
pub fn change(bytes: &mut [u8], seed: u64, count: usize) -> usize {
    let mut random = random(seed);
    let mut blocks: Vec<usize> = (0..count).map(|_| random.random_range(0..bytes.len() / BLOCK)).collect();
    blocks.sort_unstable();
    blocks.dedup();
    for block in &blocks {
        random.fill_bytes(&mut bytes[block * BLOCK..][..BLOCK]);
    }
    blocks.len()
}

/// A repository in a temporary folder.
pub struct Machine {
    folder: TempDir,
    pub repository: Repository,
}

impl Machine {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repository = Repository::create(folder.path().join("repository")).unwrap();
        Self { folder, repository }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    pub fn save(&self, bytes: &[u8], parent: Option<&Saved>, name: &str) -> Saved {
        let snapshot = match parent {
            Some(parent) => changed(parent.snapshot(), bytes),
            None => Snapshot::from_slice(bytes).unwrap(),
        };
        let mut save = self.repository.save(&snapshot).name(name);
        if let Some(parent) = parent {
            save = save.parent(parent);
        }
        save.run().unwrap()
    }

    pub fn bytes(&self, id: Id) -> Vec<u8> {
        content(self.repository.load(id).run().unwrap().snapshot())
    }

    /// Checks that the repository is intact.
    pub fn check(&self) {
        assert_eq!(self.repository.verify(Depth::Data).unwrap().problems, [""; 0]);
    }
}

/// Returns a snapshot of these bytes that shares equal pages with another one of the same length.
pub fn changed(old: &Snapshot, bytes: &[u8]) -> Snapshot {
    let mut view = old.view().unwrap();
    assert_eq!(view.content().len(), bytes.len());
    for start in (0..bytes.len()).step_by(BLOCK) {
        let end = bytes.len().min(start + BLOCK);
        if view[start..end] != bytes[start..end] {
            view[start..end].copy_from_slice(&bytes[start..end]);
        }
    }
    view.take_snapshot().unwrap()
}

pub fn content(snapshot: &Snapshot) -> Vec<u8> {
    snapshot.view().unwrap().content().to_vec()
}
