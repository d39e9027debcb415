//! Scripts of operations on a simulated storage. Each of their file operations crashes or fails once.
//!
//! With `MEMSNAP_STORE_CRASHES=all`, each file operation is tried, which takes minutes. Otherwise, some of them are
//! tried.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use memsnap::Snapshot;
use rand::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;

use super::{BLOCK, content, create, noise, open, text};
use crate::repository::Repository;
use crate::storage::Storage;
use crate::storage::simulated::{Fault, Simulated};
use crate::{Collect, Depth, Result};

/// The contents of a repository: the bytes of all snapshots, and of those that names stand for.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Seen {
    snapshots: Vec<Vec<u8>>,
    names: BTreeMap<String, Vec<u8>>,
}

fn see(repository: &Repository) -> Result<Seen> {
    let load = |id| repository.load(id).run().map(|saved| content(saved.snapshot()));
    let mut snapshots =
        repository.list()?.into_iter().map(|summary| load(summary.id)).collect::<Result<Vec<_>>>()?;
    snapshots.sort();
    let names = repository.names()?.into_iter().map(|(name, id)| Ok((name, load(id)?)));
    Ok(Seen { snapshots, names: names.collect::<Result<_>>()? })
}

type Step = (&'static str, fn(&Repository) -> Result<()>);

fn blocks(parts: &[&[u8]]) -> Snapshot {
    Snapshot::from_slice(&parts.concat()).unwrap()
}

fn collect(repository: &Repository) -> Result<()> {
    repository.collect(&Collect::new().grace(Duration::ZERO)).map(drop)
}

/// The script. Each step needs the steps before it.
const STEPS: &[Step] = &[
    ("save", |repository| {
        let first = blocks(&[&noise(1), &noise(32), &noise(33), &noise(34), &text(5), &text(6)]);
        repository.save(&first).name("first").label("key", "value").run().map(drop)
    }),
    ("save another", |repository| {
        let base = blocks(&[&noise(1), &noise(2), &noise(3), &noise(4), &text(5)]);
        repository.save(&base).name("base").run().map(drop)
    }),
    ("save a child", |repository| {
        let child = blocks(&[&noise(1), &noise(2), &[0; BLOCK], &noise(7)]);
        let parent = repository.load("base").run()?;
        repository.save(&child).parent(&parent).name("child").attach("a", *b"1").run().map(drop)
    }),
    ("move a name", |repository| repository.set_name("other", "child").map(drop)),
    ("save a grandchild that takes over a name", |repository| {
        let child = blocks(&[&noise(1), &noise(2), &noise(8), &noise(7), &text(9)]);
        repository.save(&child).parent_id("child").name("other").run().map(drop)
    }),
    ("remove", |repository| match repository.remove("first") {
        Err(crate::Error::NotFound { .. }) => Ok(()), // It was removed by an earlier attempt.
        removed => removed.map(drop),
    }),
    ("collect and write a pack again", collect),
    ("remove a name", |repository| repository.remove_name("other")),
    ("collect names", collect),
    ("repair", |repository| Repository::repair_in(Arc::clone(&repository.inner.storage)).map(drop)),
    ("remove a child", |repository| repository.remove("child").map(drop)),
    ("collect a child", collect),
];

/// A step of the script: the storage before it, and the contents before and after it.
struct Prepared {
    name: &'static str,
    step: fn(&Repository) -> Result<()>,
    storage: Simulated,
    before: Seen,
    after: Seen,
    operations: u64,
}

fn prepared() -> Vec<Prepared> {
    let storage = Simulated::new();
    create(&storage);
    let mut prepared = Vec::new();
    for (name, step) in STEPS {
        let before = storage.kill();
        let repository = open(&storage).unwrap();
        let seen = see(&repository).unwrap();
        storage.set_fault(Fault::Never);
        step(&repository).unwrap();
        let operations = storage.operations();
        storage.set_fault(Fault::Never);
        let after = see(&repository).unwrap();
        assert!(operations > 10, "{name}: {operations}");
        prepared.push(Prepared { name, step: *step, storage: before, before: seen, after, operations });
    }
    prepared
}

/// Returns the operations that are tried.
fn operations(count: u64) -> impl Iterator<Item = u64> {
    let all = std::env::var("MEMSNAP_STORE_CRASHES").is_ok_and(|value| value == "all");
    // The last operations show whether a change is visible before it is durable.
    (0..count).filter(move |at| all || at % 7 == 3 || at + 12 > count)
}

/// Checks a repository in which a step may have been completed, and uses it.
fn check(step: &Prepared, storage: &Simulated, must_be_done: bool, context: &str) {
    let context = format!("{}: {context}", step.name);
    let repository = open(storage).unwrap_or_else(|error| panic!("{context}: {error}"));
    let seen = see(&repository).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(seen == step.after || (!must_be_done && seen == step.before), "{context}: {}", describe(&seen));
    let verified = repository.verify(Depth::Data).unwrap();
    assert_eq!(verified.problems, [""; 0], "{context}");
    // Repair finds all snapshots, whatever files were left over.
    let repaired = storage.kill();
    Repository::repair_in(Arc::new(repaired.clone())).unwrap_or_else(|error| panic!("{context}: {error}"));
    let found = see(&open(&repaired).unwrap()).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(seen.snapshots.iter().all(|bytes| found.snapshots.contains(bytes)), "{context}: repair");
    // The next collection deletes the files that were left over, and no others. Saving works.
    collect(&repository).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(see(&repository).is_ok_and(|now| now == seen), "{context}: after a collection");
    assert_eq!(repository.verify(Depth::Data).unwrap().problems, [""; 0], "{context}: after a collection");
    let next = blocks(&[&noise(1), &noise(99), &text(5)]);
    let saved = repository.save(&next).run().unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(content(repository.load(saved.id()).run().unwrap().snapshot()) == content(&next), "{context}");
    assert_eq!(Storage::list(storage, "tmp").unwrap(), [], "{context}");
}

fn describe(seen: &Seen) -> String {
    let lens: Vec<usize> = seen.snapshots.iter().map(Vec::len).collect();
    format!("snapshots of {lens:?} bytes, names {:?}", seen.names.keys())
}

#[test]
fn a_crash_leaves_the_repository_before_or_after() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    for step in prepared() {
        let (mut done, mut undone) = (0, 0);
        for from in operations(step.operations).chain([step.operations]) {
            let storage = step.storage.kill();
            let repository = open(&storage).unwrap();
            storage.set_fault(Fault::From(from));
            let result = (step.step)(&repository);
            for crash in 0..3 {
                let crashed = if crash == 0 { storage.kill() } else { storage.crash(&mut rng) };
                check(&step, &crashed, result.is_ok(), &format!("crash {crash} at operation {from}"));
            }
            *if result.is_ok() { &mut done } else { &mut undone } += 1;
        }
        assert!(done > 0 && undone > 0, "{}: {done} {undone}", step.name);
        println!(
            "{}: {} operations, {done} crashes after it was done, {undone} before",
            step.name, step.operations
        );
    }
}

#[test]
fn a_failure_is_an_error_and_the_next_attempt_works() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(2);
    for step in prepared() {
        let mut failed = 0;
        for at in operations(step.operations) {
            for fault in [Fault::At(at), Fault::From(at)] {
                let storage = step.storage.kill();
                let repository = open(&storage).unwrap();
                storage.set_fault(fault);
                let result = (step.step)(&repository);
                storage.set_fault(Fault::Never);
                let context = format!("{}: {fault:?}: {result:?}", step.name);
                let seen = see(&repository).unwrap_or_else(|error| panic!("{context}: {error}"));
                let done = seen == step.after;
                assert!(done || (result.is_err() && seen == step.before), "{context}: {}", describe(&seen));
                let Err(error) = &result else { continue };
                assert!(!matches!(error, crate::Error::Damaged { .. }), "{context}");
                failed += 1;
                if seen == step.after && step.before != step.after {
                    // The commit is in the file, and its last sync failed. It is durable with the next commit.
                    check(&step, &storage.crash(&mut rng), false, &context);
                    repository.set_name("again", repository.list().unwrap()[0].id).unwrap();
                    repository.remove_name("again").unwrap();
                } else {
                    (step.step)(&repository).unwrap_or_else(|error| panic!("{context}: again: {error}"));
                }
                // The commit is durable, although the failed sync lost its writes.
                check(&step, &storage.crash(&mut rng), true, &context);
            }
        }
        assert!(failed > 0, "{}", step.name);
    }
}

/// A folder with `config` is a repository.
///
/// `config` was once durable before the name of the index, and after a crash, neither `open` nor `create` accepted the
/// folder.
#[test]
fn a_crash_while_a_repository_is_made_leaves_a_whole_one_or_none() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
    let complete = Simulated::new();
    complete.set_fault(Fault::Never);
    create(&complete);
    let (mut whole, mut none) = (0, 0);
    for from in 0..complete.operations() {
        let storage = Simulated::new();
        storage.set_fault(Fault::From(from));
        let created = Repository::create_in(Arc::new(storage.clone())).is_ok();
        for crash in 0..6 {
            let crashed = if crash == 0 { storage.kill() } else { storage.crash(&mut rng) };
            match open(&crashed) {
                Ok(repository) => {
                    repository.save(&blocks(&[&noise(1)])).run().unwrap();
                    whole += 1;
                }
                Err(crate::Error::NoRepository { .. }) if !created => none += 1,
                Err(error) => panic!("crash {crash} at operation {from}: {error}"),
            }
        }
    }
    assert!(whole > 0 && none > 0, "{whole} {none}");
}

/// A pull wrote the manifest of a snapshot before that of its base. After a crash, `repair` found one without the other.
#[cfg(feature = "remote")]
#[test]
fn a_crash_during_a_pull_leaves_no_manifest_without_its_base() {
    use crate::{Remote, RemoteOptions};
    let small = super::small();
    let remote = Remote::create("memory:///", &RemoteOptions::new()).unwrap();
    open(&small.storage).unwrap().push(&remote, small.child).run().unwrap();
    let (mut only_base, mut done) = (0, false);
    for from in 0.. {
        let storage = Simulated::new();
        let repository = create(&storage);
        storage.set_fault(Fault::From(from));
        done |= repository.pull(&remote, small.child).run().is_ok();
        let killed = storage.kill();
        let has = |id| killed.bytes(&crate::chain::manifest_path(&id)).is_some();
        assert!(has(small.base) || !has(small.child), "operation {from}");
        only_base += u32::from(has(small.base) && !has(small.child));
        if done {
            break;
        }
    }
    assert!(only_base > 0);
}
