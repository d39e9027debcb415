//! Files whose bytes were changed, cut or exchanged.
//!
//! Each result is right, or an error that names the object.
//!
//! With `MEMSNAP_STORE_DAMAGE=all`, each byte of each file is tried, which takes minutes, and hours for the index.
//! Otherwise, some of them are tried.

use std::sync::Arc;
use std::time::Duration;

use memsnap::Snapshot;
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::{Small, content, noise, open, small};
use crate::error::Error;
use crate::id::Id;
use crate::repository::Repository;
use crate::storage::simulated::Simulated;
use crate::{Collect, Depth, Manifest};

/// The results of an intact repository.
struct Truth {
    small: Small,
    manifests: Vec<Manifest>,
    folder: tempfile::TempDir,
}

impl Truth {
    fn new() -> Self {
        let small = small();
        let repository = open(&small.storage).unwrap();
        let manifests = [small.base, small.child].map(|id| repository.manifest(id).unwrap()).to_vec();
        Self { small, manifests, folder: tempfile::tempdir().unwrap() }
    }

    fn is_right(&self, id: Id, bytes: &[u8]) {
        assert!(self.small.bytes[&id] == bytes, "wrong bytes of {id}");
    }

    /// Reads everything. Returns the errors.
    fn read(&self, repository: &Repository) -> Vec<Error> {
        let Small { base, child, .. } = self.small;
        let mut errors = Vec::new();
        let mut note = |result: crate::Result<()>| errors.extend(result.err());
        note(repository.list().map(|list| {
            for found in list {
                let truth = self.manifests.iter().find(|truth| truth.id == found.id).unwrap();
                let same = (found.parent, found.len, found.content_len, found.created)
                    == (truth.parent, truth.len, truth.content_len, truth.created);
                assert!(same, "{found:?}");
            }
        }));
        note(repository.names().map(drop));
        for truth in &self.manifests {
            note(repository.manifest(truth.id).map(|mut found| {
                (found.stored, found.names) = (truth.stored, truth.names.clone());
                assert_eq!(found, *truth);
            }));
        }
        note(repository.diff(base, child).map(|ranges| assert_eq!(ranges, [4096..8192, 12288..20480])));
        let mut loaded = Vec::new();
        for reference in ["base", "child"] {
            note(repository.load(reference).run().map(|saved| {
                self.is_right(saved.id(), &content(saved.snapshot()));
                loaded.push(saved);
            }));
        }
        for onto in &loaded {
            for id in [base, child] {
                note(repository.load(id).onto(onto).run().map(|saved| {
                    self.is_right(id, &content(saved.snapshot()));
                }));
            }
        }
        for id in [base, child] {
            let path = self.folder.path().join("extracted");
            note(repository.extract(id, &path).run().map(|_| {
                self.is_right(id, &std::fs::read(&path).unwrap());
            }));
        }
        errors
    }

    /// Calls all operations on a damaged repository. Returns the errors.
    fn check(&self, damaged: &Simulated) -> Vec<Error> {
        let repaired = damaged.kill();
        let mut errors = match open(damaged) {
            Ok(repository) => {
                let mut errors = self.read(&repository);
                match repository.verify(Depth::Data) {
                    Ok(verified) => {
                        assert!(errors.is_empty() || !verified.problems.is_empty(), "not found: {errors:?}");
                    }
                    Err(error) => errors.push(error),
                }
                errors.extend(repository.collect(&Collect::new().grace(Duration::ZERO).dry_run(true)).err());
                errors.extend(self.save(&repository).err());
                errors
            }
            Err(error) => vec![error],
        };
        match Repository::repair_in(Arc::new(repaired.clone())) {
            Ok(found) => {
                let repository = open(&repaired).unwrap();
                self.read(&repository);
                // Damage within a frame is found only by reading the block.
                let verified = repository.verify(Depth::Structure).unwrap();
                let collect = || repository.collect(&Collect::new().grace(Duration::ZERO));
                if !verified.problems.is_empty() {
                    // What is incomplete protects what is left of it until it is removed.
                    assert!(found.problems.iter().any(|what| what.contains("incomplete")), "{verified:?}");
                    collect().unwrap_err();
                    for summary in repository.list().unwrap() {
                        repository.remove(summary.id).unwrap();
                    }
                }
                collect().unwrap();
                self.read(&repository);
            }
            Err(error) => errors.push(error),
        }
        errors
    }

    fn save(&self, repository: &Repository) -> crate::Result<()> {
        let bytes = [&self.small.bytes[&self.small.child][..], &noise(9)].concat();
        let snapshot = Snapshot::from_slice(&bytes).unwrap();
        let saved = repository.save(&snapshot).parent_id(self.small.child).run()?;
        if let Ok(loaded) = repository.load(saved.id()).run() {
            assert!(content(loaded.snapshot()) == bytes, "wrong bytes of a new snapshot");
        }
        repository.remove(saved.id()).map(drop)
    }
}

/// Returns whether all bytes are tried.
fn all() -> bool {
    std::env::var("MEMSNAP_STORE_DAMAGE").is_ok_and(|value| value == "all")
}

/// Returns the offsets of the bytes that are changed.
fn offsets(len: usize, steps: usize) -> impl Iterator<Item = usize> {
    (0..len).step_by(if all() { 1 } else { steps })
}

/// Changes the bytes of one file, and uses the repository.
///
/// Returns the numbers of changes and of changes with an error.
fn try_all(truth: &Truth, path: &str, changed: impl Iterator<Item = (String, Vec<u8>)>) -> (usize, usize) {
    let (mut tried, mut noticed) = (0, 0);
    for (what, bytes) in changed {
        let damaged = truth.small.storage.kill();
        damaged.set_bytes(path, bytes);
        let errors = truth.check(&damaged);
        tried += 1;
        noticed += usize::from(!errors.is_empty());
        for error in errors {
            let text = error.to_string();
            let names = text.contains(path) || text.contains("index.redb") || path == "index.redb";
            assert!(names, "{path}: {what}: the error does not name the object: {text}");
        }
    }
    (tried, noticed)
}

/// Returns the paths of the files of the repository, and the steps in which their bytes are tried.
fn files(small: &Small) -> Vec<(String, usize)> {
    let mut files = vec![("config".to_owned(), 7)];
    for (folder, steps) in [("packs", 211), ("manifests", 13), ("names", 9)] {
        for file in crate::storage::Storage::list(&small.storage, folder).unwrap() {
            files.push((format!("{folder}/{}", file.name), steps));
        }
    }
    files.push(("index.redb".to_owned(), 1511));
    files
}

/// Changes each file in turn. `change` returns its bytes with a change at an offset, or nothing.
///
/// Each change of a pack or a manifest has to be noticed.
fn damage(mut change: impl FnMut(&[u8], usize) -> Option<(String, Vec<u8>)>) {
    let truth = Truth::new();
    for (path, steps) in files(&truth.small) {
        let bytes = truth.small.storage.bytes(&path).unwrap();
        let is_index = path == "index.redb";
        // Most of the index is empty.
        let used = |at: &usize| !is_index || bytes[*at] != 0;
        let offsets: Vec<usize> =
            offsets(bytes.len(), if is_index { 1 } else { steps }).filter(used).collect();
        let every = if is_index && !all() { steps } else { 1 };
        let changed = offsets.into_iter().step_by(every).filter_map(|at| {
            let (what, changed) = change(&bytes, at)?;
            (changed != bytes).then(|| (format!("{what} at {at}"), changed))
        });
        let (tried, noticed) = try_all(&truth, &path, changed);
        println!("{path}: {noticed} of {tried} changes were noticed");
        let immutable = path.starts_with("packs/") || path.starts_with("manifests/");
        assert!(!immutable || (noticed == tried && tried > 0), "{path}: {noticed} of {tried}");
    }
}

#[test]
fn flipped_bits_never_give_wrong_bytes() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    damage(|bytes, at| {
        let (mut changed, bits) = (bytes.to_vec(), rng.random_range(1..=255_u8));
        changed[at] ^= bits;
        Some((format!("bits {bits:#x}"), changed))
    });
}

#[test]
fn files_that_are_cut_never_give_wrong_bytes() {
    damage(|bytes, at| Some(("cut".to_owned(), bytes[..at].to_vec())));
}

#[test]
fn parts_of_other_files_never_give_wrong_bytes() {
    let small = small();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(2);
    // The file of a name does not contain the name, so an exchange cannot be noticed.
    let others: Vec<Vec<u8>> = files(&small)
        .iter()
        .filter(|(path, _)| !path.starts_with("names/"))
        .map(|(path, _)| small.storage.bytes(path).unwrap())
        .collect();
    damage(|bytes, at| {
        let len = rng.random_range(1..200).min(bytes.len() - at);
        let other = &others[rng.random_range(0..others.len())];
        let from = at.min(other.len().checked_sub(len)?);
        let mut changed = bytes.to_vec();
        changed[at..at + len].copy_from_slice(&other[from..from + len]);
        Some((format!("{len} bytes of another file"), changed))
    });
}

#[test]
fn missing_files_are_errors_that_name_them() {
    let truth = Truth::new();
    for (path, _) in files(&truth.small) {
        let damaged = truth.small.storage.kill();
        crate::storage::Storage::remove(&damaged, &path).unwrap();
        let errors = truth.check(&damaged);
        assert_eq!(errors.is_empty(), path.starts_with("names/"), "{path}");
        for error in errors {
            assert!(error.to_string().contains(&path), "{path}: {error}");
        }
    }
}
