//! Tests of folders.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::thread;
use std::time::{Duration, Instant};

use super::{Folder, Held};
use crate::storage::{DatabaseMode, Lock, Storage};

fn write(storage: &Folder, path: &str, bytes: &[u8]) {
    let mut file = storage.create(path).unwrap();
    file.write_all(bytes).unwrap();
    file.sync().unwrap();
}

fn read(storage: &Folder, path: &str) -> Vec<u8> {
    let file = storage.open(path).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn files_are_made_renamed_listed_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let storage = Folder::new(folder.path().join("repository"));
    assert_eq!(storage.create("a").unwrap_err().kind(), ErrorKind::NotFound);
    for folder in ["", "tmp", "packs", "packs"] {
        storage.create_folder(folder).unwrap();
    }
    write(&storage, "tmp/one", b"first");
    assert_eq!(storage.create("tmp/one").unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(storage.create_folder("tmp/one").unwrap_err().kind(), ErrorKind::AlreadyExists);
    write(&storage, "packs/two", b"second!");
    storage.rename("tmp/one", "packs/two").unwrap();
    storage.sync_folder("packs").unwrap();
    storage.sync_folder("").unwrap();
    assert_eq!(read(&storage, "packs/two"), b"first");
    assert_eq!(storage.open("tmp/one").unwrap_err().kind(), ErrorKind::NotFound);
    let listed = storage.list("packs").unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].name.as_str(), listed[0].len), ("two", 5));
    assert!(storage.list("").unwrap().is_empty(), "folders are not listed");
    let file = storage.open("packs/two").unwrap();
    let mut bytes = [0; 3];
    file.read_exact_at(&mut bytes, 2).unwrap();
    assert_eq!(&bytes, b"rst");
    assert_eq!(file.read_exact_at(&mut bytes, 3).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    // Windows removes a file when no process has it open any more.
    drop(file);
    storage.remove("packs/two").unwrap();
    assert_eq!(storage.remove("packs/two").unwrap_err().kind(), ErrorKind::NotFound);
    assert!(storage.open("packs").is_err(), "a folder is not a file");
}

#[cfg(unix)]
#[test]
fn others_cannot_read_what_is_made() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let storage = Folder::new(folder.path());
    storage.create_folder("packs").unwrap();
    write(&storage, "packs/a", b"");
    drop(storage.lock("lock", Lock::Shared, Duration::ZERO).unwrap());
    drop(storage.database("index.redb", DatabaseMode::Create).unwrap());
    for path in ["packs", "packs/a", "lock", "index.redb"] {
        let mode = storage.path(path).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{path}: {mode:o}");
    }
}

// Apple systems have no `mknodat`.
#[cfg(all(unix, not(target_vendor = "apple")))]
#[test]
fn a_pipe_is_refused_without_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let storage = Folder::new(folder.path());
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, storage.path("pipe"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert_eq!(storage.open("pipe").unwrap_err().kind(), ErrorKind::InvalidInput);
    assert!(storage.list("").unwrap().is_empty());
}

#[test]
fn paths_that_lead_out_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let storage = Folder::new(folder.path().join("repository"));
    storage.create_folder("").unwrap();
    storage.create_folder("names").unwrap();
    let outside = folder.path().join("file");
    std::fs::write(&outside, "mine").unwrap();
    write(&storage, "names/a", b"");
    for path in [
        "../file",
        "names/../../file",
        "/file",
        "names//a",
        "names/./a",
        "names/",
        "names\\a",
        "c:file",
        "a\0",
    ] {
        let wrong = ErrorKind::InvalidInput;
        assert_eq!(storage.open(path).unwrap_err().kind(), wrong, "{path}");
        assert_eq!(storage.create(path).unwrap_err().kind(), wrong, "{path}");
        assert_eq!(storage.remove(path).unwrap_err().kind(), wrong, "{path}");
        assert_eq!(storage.rename("names/a", path).unwrap_err().kind(), wrong, "{path}");
        assert_eq!(storage.list(path).unwrap_err().kind(), wrong, "{path}");
        assert_eq!(storage.create_folder(path).unwrap_err().kind(), wrong, "{path}");
        assert_eq!(storage.lock(path, Lock::Shared, Duration::ZERO).unwrap_err().kind(), wrong, "{path}");
    }
    assert_eq!(std::fs::read(&outside).unwrap(), b"mine");
}

#[test]
fn locks_exclude_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let storage = Folder::new(folder.path());
    let lock = |kind, wait| storage.lock("lock", kind, Duration::from_millis(wait)).unwrap();
    let shared = [lock(Lock::Shared, 0).unwrap(), lock(Lock::Shared, 0).unwrap()];
    let started = Instant::now();
    assert!(lock(Lock::Exclusive, 60).is_none());
    assert!(started.elapsed() >= Duration::from_millis(60));
    drop(shared);
    let exclusive = lock(Lock::Exclusive, 0).unwrap();
    assert!(lock(Lock::Shared, 0).is_none() && lock(Lock::Exclusive, 5).is_none());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| lock(Lock::Exclusive, 60_000).is_some());
        thread::sleep(Duration::from_millis(20));
        drop(exclusive);
        assert!(waiting.join().unwrap());
    });
}

/// A process that was forked while a lock was held kept the lock until its end. It has a copy of the descriptor.
#[test]
fn a_lock_ends_when_another_process_has_the_file_open() {
    let folder = tempfile::tempdir().unwrap();
    let storage = Folder::new(folder.path());
    for kind in [Lock::Shared, Lock::Exclusive] {
        drop(storage.lock("lock", kind, Duration::ZERO).unwrap().unwrap());
        let file = File::open(storage.path("lock")).unwrap();
        file.try_lock().unwrap();
        let held = Held(file);
        let copy = held.0.try_clone().unwrap();
        assert!(storage.lock("lock", kind, Duration::ZERO).unwrap().is_none());
        drop(held);
        assert!(storage.lock("lock", kind, Duration::ZERO).unwrap().is_some());
        drop(copy);
    }
}

/// A database that is open for reading behaves as one that is written, and its file does not change.
#[test]
fn what_a_reader_of_a_database_writes_stays_in_memory() {
    use rand::{RngExt, SeedableRng};
    let folder = tempfile::tempdir().unwrap();
    let storage = Folder::new(folder.path());
    assert_eq!(storage.database("d", DatabaseMode::Write).unwrap_err().kind(), ErrorKind::NotFound);
    let file = storage.database("d", DatabaseMode::Create).unwrap();
    assert_eq!(storage.database("d", DatabaseMode::Create).unwrap_err().kind(), ErrorKind::AlreadyExists);
    let mut rng = rand_xoshiro::Xoshiro256PlusPlus::seed_from_u64(1);
    let mut model: Vec<u8> = (0..30_000).map(|_| rng.random()).collect();
    file.set_len(30_000).unwrap();
    file.write(0, &model).unwrap();
    file.sync_data().unwrap();
    let before = read(&storage, "d");
    assert_eq!(before, model);
    let database = storage.database("d", DatabaseMode::Read).unwrap();
    for _ in 0..2000 {
        let at = rng.random_range(0..=model.len());
        let len = rng.random_range(0..=(model.len() - at).min(10_000));
        match rng.random_range(0..8) {
            0 => {
                let len = rng.random_range(0..60_000);
                model.resize(len, 0);
                database.set_len(len as u64).unwrap();
            }
            1..=3 => {
                let data: Vec<u8> = (0..len).map(|_| rng.random()).collect();
                model[at..at + len].copy_from_slice(&data);
                database.write(at as u64, &data).unwrap();
            }
            _ => {
                let mut data = vec![1; len];
                database.read(at as u64, &mut data).unwrap();
                assert!(data == model[at..at + len]);
            }
        }
        assert_eq!(database.len().unwrap(), model.len() as u64);
        assert_eq!(database.read(model.len() as u64, &mut [0]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert!(database.write(u64::MAX, &[0]).is_err());
    }
    assert_eq!(read(&storage, "d"), before);
}
