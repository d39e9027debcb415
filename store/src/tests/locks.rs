//! Operations that run at the same time: which of them wait for others, and what they leave.
//!
//! The tests call an operation in the middle of another one. The repositories do not wait for locks, so an operation that
//! would wait is an error.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use memsnap::Snapshot;

use super::{noise, open, small, text};
use crate::format::pack::Encoder;
use crate::id::Id;
use crate::repair::repair;
use crate::repository::Repository;
use crate::sink::Sink;
use crate::storage::simulated::{Fault, Simulated};
use crate::storage::{DatabaseMode, Listed, Lock, Locked, ReadFile, Storage, WriteFile};
use crate::{Collect, Depth, Error, Result};

type Hook = Box<dyn FnMut() + Send>;

/// A storage that calls a function before a file of some folders is opened.
struct Hooked {
    inner: Simulated,
    folders: &'static [&'static str],
    /// Whether locks whose files do not exist cannot be made.
    read_only: bool,
    hook: Mutex<Hook>,
}

impl fmt::Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooked")
    }
}

impl Storage for Hooked {
    fn open(&self, path: &str) -> io::Result<Box<dyn ReadFile>> {
        if self.folders.iter().any(|folder| path.starts_with(folder)) {
            (self.hook.lock().unwrap())();
        }
        self.inner.open(path)
    }

    fn create(&self, path: &str) -> io::Result<Box<dyn WriteFile>> {
        self.inner.create(path)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn list(&self, folder: &str) -> io::Result<Vec<Listed>> {
        self.inner.list(folder)
    }

    fn create_folder(&self, folder: &str) -> io::Result<()> {
        self.inner.create_folder(folder)
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        self.inner.sync_folder(folder)
    }

    fn database(&self, path: &str, mode: DatabaseMode) -> io::Result<Box<dyn redb::StorageBackend>> {
        self.inner.database(path, mode)
    }

    fn lock(&self, path: &str, kind: Lock, wait: Duration) -> io::Result<Option<Box<dyn Locked>>> {
        if self.read_only && self.inner.bytes(path).is_none() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.inner.lock(path, kind, wait)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.inner.path(path)
    }
}

/// Opens a repository that calls `hook` before it opens a manifest.
fn hooked(storage: &Simulated, hook: impl FnMut() + Send + 'static) -> Repository {
    hooked_at(storage, &["manifests/"], hook)
}

fn hooked_at(
    storage: &Simulated,
    folders: &'static [&'static str],
    hook: impl FnMut() + Send + 'static,
) -> Repository {
    let hooked =
        Hooked { inner: storage.clone(), folders, read_only: false, hook: Mutex::new(Box::new(hook)) };
    open_hooked(hooked)
}

fn open_hooked(hooked: Hooked) -> Repository {
    let mut repository = Repository::open_in(Arc::new(hooked)).unwrap();
    repository.set_wait(Duration::ZERO);
    repository
}

fn at_once() -> Collect {
    Collect::new().grace(Duration::ZERO)
}

/// Checks that an operation did not begin, and that its error names those that may hold the lock.
fn is_busy<T: fmt::Debug>(result: Result<T>, holders: &str) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    assert!(error.to_string().contains(holders), "{error}");
}

fn image(blocks: &[Vec<u8>]) -> Snapshot {
    Snapshot::from_slice(&blocks.concat()).unwrap()
}

/// Saves a snapshot with a block that is new and one that is not.
fn save_another(repository: &Repository, seed: u64) -> Id {
    repository.save(&image(&[noise(seed), text(1)])).run().unwrap().id()
}

/// Stores a block again, in a new pack, as a pull does if a save stores the block meanwhile.
fn store_again(repository: &Repository, block: &[u8], seed: u64) {
    let _writer = repository.inner.lock_writer().unwrap();
    let bytes = [block, &noise(seed)].concat();
    let hashes = vec![Id::of(block), Id::of(&noise(seed))];
    let mut sink = Sink::new(&repository.inner);
    sink.push(&Encoder::new().unwrap().encode(&bytes, hashes).unwrap()).unwrap();
    let pending = sink.sync().unwrap();
    repository.inner.change(|index| pending.add_to(index)).unwrap();
}

/// Checks that a repository is intact, that it has each pack once, and that a collection leaves it intact.
fn check(repository: &Repository) {
    for _ in 0..2 {
        assert_eq!(repository.verify(Depth::Data).unwrap().problems, [""; 0]);
        let packs = repository.inner.read(|index| index.packs()).unwrap();
        let mut ids: Vec<Id> = packs.iter().map(|(_, row)| row.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), packs.len());
        for summary in repository.list().unwrap() {
            repository.load(summary.id).run().unwrap();
        }
        repository.collect(&at_once()).unwrap();
    }
}

/// A save waited for the end of a verification, which can take an hour.
#[test]
fn a_save_does_not_wait_for_a_verification() {
    let small = small();
    let (storage, count) = (small.storage.clone(), Arc::new(AtomicU64::new(0)));
    let counter = Arc::clone(&count);
    let repository = hooked(&small.storage, move || {
        let number = counter.fetch_add(1, Ordering::Relaxed);
        let other = open(&storage).unwrap();
        let id = save_another(&other, 100 + number);
        other.set_name(&format!("name-{number}"), id).unwrap();
        store_again(&other, &text(1), 200 + number);
        is_busy(other.collect(&at_once()), "a verification");
        is_busy(repair(&other.inner), "a verification");
        assert_eq!(other.verify(Depth::Structure).unwrap().problems, [""; 0]);
    });
    let verified = repository.verify(Depth::Data).unwrap();
    assert_eq!((verified.problems, verified.manifests), (vec![], 2));
    assert_eq!(count.load(Ordering::Relaxed), 2);
    check(&open(&small.storage).unwrap());
}

/// `verify` reported as damage that `index.lock` was not free in time. A program that believes it repairs an intact
/// repository.
#[test]
fn a_lock_that_is_not_free_is_no_damage() {
    let small = small();
    let mut busy = 0;
    for at in 0.. {
        // Another process begins to write the index when the file with this number is opened.
        let (mut other, mut number, mut held) = (open(&small.storage).unwrap(), 0, Vec::new());
        // Another thread of the verification may read the index.
        other.set_wait(Duration::from_secs(60));
        let opened = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&opened);
        let repository = hooked_at(&small.storage, &["manifests/", "packs/"], move || {
            if number == at {
                held.push(other.inner.lock_index().unwrap());
            }
            number += 1;
            count.store(number, Ordering::Relaxed);
        });
        match repository.verify(Depth::Data) {
            Ok(verified) => assert_eq!(verified.problems, [""; 0], "{at}"),
            Err(error) => {
                assert!(matches!(error, Error::Busy { .. }), "{at}: {error}");
                busy += 1;
            }
        }
        if opened.load(Ordering::Relaxed) <= at {
            break;
        }
    }
    assert!(busy > 3, "{busy}");
}

/// The same with threads and a folder.
#[test]
fn a_verification_during_saves_finds_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let saver = Repository::create(folder.path()).unwrap();
    let mut repository = Repository::open(folder.path()).unwrap();
    repository.set_wait(Duration::from_millis(1));
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for seed in 0..10_000 {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                save_another(&saver, seed);
            }
        });
        for _ in 0..30 {
            match repository.verify(Depth::Structure) {
                Ok(verified) => assert_eq!(verified.problems, [""; 0]),
                Err(error) => assert!(matches!(error, Error::Busy { .. }), "{error}"),
            }
        }
        ended.store(true, Ordering::Relaxed);
    });
}

/// An operation that failed once, for example because too many files were open, was reported as damage.
#[test]
fn an_operation_that_fails_is_no_damage() {
    let small = small();
    let repository = open(&small.storage).unwrap();
    small.storage.set_fault(Fault::Never);
    repository.verify(Depth::Data).unwrap();
    let operations = small.storage.operations();
    assert!(operations > 20, "{operations}");
    for at in 0..operations {
        small.storage.set_fault(Fault::At(at));
        if let Ok(verified) = repository.verify(Depth::Data) {
            assert_eq!(verified.problems, [""; 0], "operation {at}");
        }
    }
}

/// A verification failed if a version before `files.lock` made the repository, and the folder is read-only.
#[test]
fn a_read_only_repository_without_a_lock_of_the_files_is_verified() {
    let small = small();
    small.storage.remove("files.lock").unwrap();
    let other = open(&small.storage).unwrap();
    let called = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&called);
    let hook = move || {
        count.fetch_add(1, Ordering::Relaxed);
        is_busy(other.collect(&at_once()), "`lock`");
        // The collection has made it. A verification that began before keeps the files all the same.
        other.inner.storage.remove("files.lock").unwrap();
    };
    let repository = open_hooked(Hooked {
        inner: small.storage.clone(),
        folders: &["manifests/"],
        read_only: true,
        hook: Mutex::new(Box::new(hook)),
    });
    assert_eq!(repository.verify(Depth::Data).unwrap().problems, [""; 0]);
    assert_eq!(called.load(Ordering::Relaxed), 2);
    check(&open(&small.storage).unwrap());
}

const ROUNDS: usize = 21;

/// Calls `wait` several times while another thread saves again and again in a folder.
///
/// Most calls have to get in before many saves have ended.
fn get_in_between_saves(wait: impl Fn(&Repository) -> Result<()>) {
    let folder = tempfile::tempdir().unwrap();
    let saver = Repository::create(folder.path()).unwrap();
    let mut repository = Repository::open(folder.path()).unwrap();
    repository.set_wait(Duration::from_secs(10));
    let (ended, saves) = (AtomicBool::new(false), AtomicU64::new(0));
    let small = image(&[noise(1)]);
    let counts: Result<Vec<u64>> = thread::scope(|scope| {
        let saving = scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                saver.save(&small).run().unwrap();
                saves.fetch_add(1, Ordering::Relaxed);
            }
        });
        let count = || {
            // Otherwise, this thread could be the one that lets no other in.
            let before = saves.load(Ordering::Relaxed);
            while saves.load(Ordering::Relaxed) < before + 3 {
                assert!(!saving.is_finished(), "a save failed");
                thread::sleep(Duration::from_millis(1));
            }
            let before = saves.load(Ordering::Relaxed);
            wait(&repository)?;
            Ok(saves.load(Ordering::Relaxed) - before)
        };
        let counts = (0..ROUNDS).map(|_| count()).collect();
        ended.store(true, Ordering::Relaxed);
        counts
    });
    let mut counts = counts.unwrap();
    counts.sort_unstable();
    println!("saves while others waited: {counts:?}");
    // On a machine that is busy, a thread may not run for a time.
    assert!(counts[ROUNDS / 2] < 20, "{counts:?}");
}

/// A process that saved again and again locked `lock` between the attempts of a collection, which never got in.
#[test]
fn a_collection_gets_in_between_saves() {
    get_in_between_saves(|repository| repository.collect(&Collect::new()).map(|_| ()));
}

/// An operation that needs that files stay waits for a collection, and its error names it.
#[test]
fn a_verification_waits_for_a_collection() {
    let small = small();
    let repository = open(&small.storage).unwrap();
    let _files = repository.inner.lock_files().unwrap();
    is_busy(repository.verify(Depth::Structure), "a collection or a repair");
    save_another(&repository, 100);
    is_busy(repository.collect(&at_once()), "another collection");
    // The locks of a process that was killed end with it.
    let repository = open(&small.storage.kill()).unwrap();
    check(&repository);
}

#[cfg(feature = "remote")]
mod transfer {
    use object_store::memory::InMemory;

    use super::*;
    use crate::tests::{content, create};
    use crate::{Remote, RemoteOptions};

    fn remote() -> Remote {
        Remote::with_store(Arc::new(InMemory::new()), "", &RemoteOptions::new()).unwrap()
    }

    /// Returns a remote with the snapshots of [`small`].
    fn pushed() -> (super::super::Small, Remote) {
        let (small, remote) = (small(), remote());
        open(&small.storage).unwrap().push(&remote, small.child).run().unwrap();
        open(&small.storage).unwrap().push(&remote, small.base).run().unwrap();
        (small, remote)
    }

    /// A save waited for the end of a push, and failed after a minute.
    #[test]
    fn a_save_does_not_wait_for_a_push() {
        let small = small();
        let (storage, mut number) = (small.storage.clone(), 0);
        let repository = hooked(&small.storage, move || {
            number += 1;
            let other = open(&storage).unwrap();
            save_another(&other, 100 + number);
            store_again(&other, &text(1), 200 + number);
            is_busy(other.collect(&at_once().cache(true)), "a push");
            is_busy(repair(&other.inner), "a push");
        });
        let (first, second) = (remote(), remote());
        let mut told = 0;
        let other = open(&small.storage).unwrap();
        let push = repository.push(&first, small.child).progress(|_| {
            told += 1;
            is_busy(other.push(&first, small.base).run(), "another push");
            other.push(&second, small.base).run().unwrap();
            other.remove(save_another(&other, 300 + told)).unwrap();
        });
        push.run().unwrap();
        assert!(told > 2, "{told}");
        other.push(&first, small.base).run().unwrap();

        let there = create(&Simulated::new());
        for (id, bytes) in &small.bytes {
            there.pull(&first, *id).run().unwrap();
            assert!(content(there.load(*id).run().unwrap().snapshot()) == *bytes);
        }
        check(&there);
        check(&other);
    }

    /// A pull of a child, in the middle of which others pull the same snapshot and its base, and save the same blocks.
    /// The pull that ended last removed the base from the list, and added the pack a second time.
    #[test]
    fn two_pulls_and_a_save_run_at_the_same_time() {
        let (small, remote) = pushed();
        let storage = Simulated::new();
        let (repository, other) = (create(&storage), open(&storage).unwrap());
        let mut told = 0;
        let pull = repository.pull(&remote, small.child).name("child").progress(|_| {
            told += 1;
            is_busy(other.collect(&at_once()), "a pull");
            is_busy(repair(&other.inner), "a pull");
            other.pull(&remote, small.child).name("same").run().unwrap();
            other.pull(&remote, small.base).name("base").run().unwrap();
            other.save(&image(&[noise(4), text(3), noise(told)])).name("saved").run().unwrap();
            assert_eq!(other.verify(Depth::Data).unwrap().problems, [""; 0]);
        });
        pull.run().unwrap();
        assert!(told > 0);
        for (name, id) in [("child", small.child), ("same", small.child), ("base", small.base)] {
            assert_eq!(repository.resolve(name).unwrap(), id);
            assert!(content(repository.load(id).run().unwrap().snapshot()) == small.bytes[&id]);
        }
        repository.resolve("saved").unwrap();
        check(&repository);
    }

    /// As the collection.
    #[test]
    fn a_pull_gets_in_between_saves() {
        let (small, remote) = pushed();
        get_in_between_saves(|repository| repository.pull(&remote, small.child).run().map(|_| ()));
    }

    /// A pull that has received blocks does not lose them because a save runs longer than others wait.
    #[test]
    fn a_pull_waits_for_a_save_as_long_as_it_has_run() {
        pull_during(|other| other.inner.lock_writer().unwrap());
    }

    /// A pull lost what it had received because the index was not free in time.
    #[test]
    fn a_pull_waits_for_the_index_as_long_as_it_has_run() {
        pull_during(|other| other.inner.lock_index().unwrap());
    }

    /// Pulls a snapshot, and holds a lock for a time after the pull has received blocks.
    fn pull_during(lock: fn(&Repository) -> Box<dyn Locked>) {
        let (small, remote) = pushed();
        let storage = Simulated::new();
        let (repository, other) = (create(&storage), open(&storage).unwrap());
        thread::scope(|scope| {
            let mut saver = None;
            let pull = repository.pull(&remote, small.base).progress(|_| {
                saver.get_or_insert_with(|| {
                    thread::sleep(Duration::from_millis(2000));
                    let lock = lock(&other);
                    scope.spawn(move || {
                        thread::sleep(Duration::from_millis(100));
                        drop(lock);
                    })
                });
            });
            pull.run().unwrap();
            assert!(saver.is_some());
        });
        check(&repository);
    }

    /// A manifest that the pull relies on is there at its end, or the pull fails.
    #[test]
    fn a_pull_whose_base_is_gone_lists_nothing() {
        let (small, remote) = pushed();
        let repository = create(&Simulated::new());
        repository.pull(&remote, small.base).run().unwrap();
        let pull = repository.pull(&remote, small.child).progress(|_| {
            // A program that ignores the locks.
            repository.inner.change(|index| index.remove_manifest(&small.base)).unwrap();
        });
        let error = pull.run().unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("was removed during the pull"), "{error}");
        assert!(repository.list().unwrap().is_empty());
    }

    /// A collection waits for a push within its time limit, and then runs.
    #[test]
    fn a_collection_waits_for_a_push() {
        let (small, remote) = (small(), remote());
        let repository = open(&small.storage).unwrap();
        let mut collector = open(&small.storage).unwrap();
        collector.set_wait(Duration::from_secs(60));
        repository.remove(save_another(&repository, 100)).unwrap();
        thread::scope(|scope| {
            let mut waiting = None;
            let push = repository.push(&remote, small.child).progress(|_| {
                let waiting = waiting.get_or_insert_with(|| {
                    let waiting = scope.spawn(|| collector.collect(&at_once()));
                    thread::sleep(Duration::from_millis(200));
                    waiting
                });
                assert!(!waiting.is_finished());
            });
            push.run().unwrap();
            let collected = waiting.unwrap().join().unwrap().unwrap();
            assert_eq!((collected.manifests, collected.packs), (1, 1));
        });
        check(&repository);
    }
}
