//! Errors as users meet them, in a real folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use memsnap::Snapshot;
use memsnap_store::{Collect, Depth, Error, Repository};

/// The variable that tells a child process of a test in which folder it works.
const FOLDER: &str = "MEMSNAP_STORE_ERRORS_FOLDER";

fn noise(seed: u64, len: usize) -> Snapshot {
    let mut bytes = vec![0; len];
    let mut state = seed | 1;
    for byte in &mut bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state.to_le_bytes()[0];
    }
    Snapshot::from_slice(&bytes).unwrap()
}

fn content(snapshot: &Snapshot) -> Vec<u8> {
    snapshot.view().unwrap().content().to_vec()
}

struct Folder {
    temporary: tempfile::TempDir,
    path: PathBuf,
    repository: Repository,
}

/// Returns a repository with a snapshot `base`.
fn folder() -> Folder {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("repository");
    let repository = Repository::create(&path).unwrap();
    repository.save(&noise(1, 100_000)).name("base").run().unwrap();
    Folder { temporary, path, repository }
}

/// Checks that a repository has the snapshot `base` and nothing else, and can be written.
fn is_as_before(path: &Path) {
    let repository = Repository::open(path).unwrap();
    assert_eq!(repository.list().unwrap().len(), 1);
    assert_eq!(content(repository.load("base").run().unwrap().snapshot()), content(&noise(1, 100_000)));
    assert_eq!(repository.verify(Depth::Data).unwrap().problems, [""; 0]);
    repository.collect(&Collect::new().grace(Duration::ZERO)).unwrap();
    let id = repository.save(&noise(9, 5000)).run().unwrap().id();
    repository.remove(id).unwrap();
    assert_eq!(fs::read_dir(path.join("tmp")).unwrap().count(), 0);
}

/// Replaces the number at an offset of the only file of a folder, and returns the bytes that it had.
fn set_version(file: &Path, version: u32) -> Vec<u8> {
    let before = fs::read(file).unwrap();
    let mut bytes = before.clone();
    bytes[8..12].copy_from_slice(&version.to_le_bytes());
    fs::write(file, bytes).unwrap();
    before
}

fn only_file(folder: &Path) -> PathBuf {
    let mut files = fs::read_dir(folder).unwrap();
    let file = files.next().unwrap().unwrap().path();
    assert!(files.next().is_none());
    file
}

/// Runs a test of this file in a child process. Returns whether it succeeded, and what it printed.
fn child(test: &str, folder: &Path, shell: &str) -> (bool, String) {
    let program = std::env::current_exe().unwrap();
    let run = format!("{shell} exec '{}' --exact --ignored --nocapture {test}", program.display());
    let output = Command::new("sh").args(["-c", &run]).env(FOLDER, folder).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

#[test]
fn a_newer_format_is_named() {
    let folder = folder();
    let config = fs::read_to_string(folder.path.join("config")).unwrap();
    for newer in [config.replace("\"format\":1", "\"format\":7"), r#"{"format": 7, "id": [1]}"#.to_owned()] {
        fs::write(folder.path.join("config"), newer).unwrap();
        let error = Repository::open(&folder.path).unwrap_err();
        assert!(
            matches!(&error, Error::Newer { object, found: 7, known: 1 } if object == "config"),
            "{error}"
        );
        assert!(error.to_string().contains("use a newer version"), "{error}");
        assert!(matches!(Repository::repair(&folder.path), Err(Error::Newer { .. })));
    }
    fs::write(folder.path.join("config"), config).unwrap();
    for kind in ["manifests", "packs"] {
        let file = only_file(&folder.path.join(kind));
        let before = set_version(&file, 7);
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let problems = folder.repository.verify(Depth::Structure).unwrap().problems;
        assert!(
            problems.iter().any(|problem| problem.contains(&name) && problem.contains('7')),
            "{problems:?}"
        );
        // The index would lose the file, and the next collection would delete it.
        let error = Repository::repair(&folder.path).unwrap_err();
        assert!(matches!(&error, Error::Newer { object, found: 7, .. } if object.contains(&name)), "{error}");
        if kind == "manifests" {
            assert!(matches!(folder.repository.load("base").run(), Err(Error::Newer { .. })));
        }
        fs::write(file, before).unwrap();
    }
    is_as_before(&folder.path);
}

#[test]
fn the_index_of_another_repository_is_not_used() {
    let (a, b) = (folder(), folder());
    let index = fs::read(a.path.join("index.redb")).unwrap();
    fs::copy(b.path.join("index.redb"), a.path.join("index.redb")).unwrap();
    let error = Repository::open(&a.path).unwrap_err();
    assert!(matches!(&error, Error::Mixed { object, .. } if object == "index.redb"), "{error}");
    assert!(matches!(a.repository.load("base").run(), Err(Error::Mixed { .. })));
    assert!(matches!(a.repository.save(&noise(2, 5000)).run(), Err(Error::Mixed { .. })));
    fs::write(a.path.join("index.redb"), index).unwrap();
    is_as_before(&a.path);
}

#[test]
fn what_does_not_exist_is_named() {
    let folder = folder();
    let repository = &folder.repository;
    let named = |error: Error, text: &str| {
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
        assert!(error.to_string().contains(text), "{error}");
    };
    named(repository.load("nothing").run().unwrap_err(), "nothing");
    named(repository.remove("nothing").unwrap_err(), "nothing");
    named(repository.remove_name("nothing").unwrap_err(), "nothing");
    named(repository.diff("base", "nothing").unwrap_err(), "nothing");
    named(repository.save(&noise(2, 5000)).parent_id("nothing").run().unwrap_err(), "nothing");
    named(repository.resolve("abcdef").unwrap_err(), "abcdef");
    let other = self::folder();
    let parent = other.repository.save(&noise(3, 5000)).run().unwrap();
    named(repository.save(&noise(2, 5000)).parent(&parent).run().unwrap_err(), &parent.id().to_string());
    named(repository.load("base").onto(&parent).run().unwrap_err(), &parent.id().to_string());
    for name in ["", ".a", "-a", "a.", "a/b", "ä", &"a".repeat(129), &"0".repeat(64)] {
        let error = repository.set_name(name, "base").unwrap_err();
        assert!(matches!(&error, Error::Invalid { what } if what.contains(name)), "{error}");
    }
    assert!(matches!(Repository::open(folder.path.join("config")), Err(Error::NoRepository { .. })));
    assert!(matches!(Repository::create(&folder.path), Err(Error::NotEmpty { .. })));
    is_as_before(&folder.path);
}

#[test]
fn an_ambiguous_id_lists_candidates() {
    let folder = folder();
    let mut ids = vec![folder.repository.resolve("base").unwrap().to_string()];
    // Two of 600 ids begin with the same four digits, most likely. If not, more are tried.
    let prefix = loop {
        let saved = folder.repository.save(&noise(1, 4096)).label("n", ids.len().to_string()).run().unwrap();
        let id = saved.id().to_string();
        if let Some(other) = ids.iter().find(|other| other[..4] == id[..4]) {
            break other[..4].to_owned();
        }
        ids.push(id);
    };
    let error = folder.repository.resolve(&prefix).unwrap_err();
    assert!(matches!(&error, Error::Ambiguous { candidates, .. } if candidates.len() == 2), "{error}");
    assert!(error.to_string().contains("give more digits"), "{error}");
    let longest = folder.repository.resolve(&*ids[0]).unwrap();
    assert_eq!(longest.to_string(), ids[0]);
    assert_eq!(folder.repository.resolve(ids[0][..40].to_uppercase()).unwrap(), longest);
}

#[test]
fn a_busy_repository_is_an_error_after_the_wait() {
    let mut folder = folder();
    let lock = fs::File::options().write(true).open(folder.path.join("lock")).unwrap();
    lock.lock().unwrap();
    folder.repository.set_wait(Duration::from_millis(50));
    let error = folder.repository.save(&noise(2, 5000)).run().unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("which a save") && message.contains("try again"), "{error}");
    // Readers go on.
    folder.repository.load("base").run().unwrap();
    drop(lock);
    is_as_before(&folder.path);
}

/// `RLIMIT_FSIZE` makes a write fail behind an offset, as a full disk does. The signal for it is ignored.
#[cfg(unix)]
#[test]
fn a_disk_that_is_full_leaves_the_repository_as_it_was() {
    let folder = folder();
    fs::write(folder.temporary.path().join("large"), content(&noise(5, 4 << 20))).unwrap();
    // In blocks of 512 bytes. The index fits, the pack does not.
    let (worked, text) = child("save_a_large_file_in_a_child", &folder.path, "trap '' XFSZ; ulimit -f 4000;");
    assert!(worked, "{text}");
    assert!(text.contains("cannot write"), "{text}");
    is_as_before(&folder.path);
}

#[test]
#[ignore = "it is run by another test"]
fn save_a_large_file_in_a_child() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let repository = Repository::open(folder).unwrap();
    let large = fs::File::open(repository.path().with_file_name("large")).unwrap();
    let error = repository.save_file(&large).name("large").run().unwrap_err();
    assert!(
        matches!(&error, Error::File { source, .. } if source.kind() == std::io::ErrorKind::FileTooLarge),
        "{error}"
    );
    println!("{error}");
    repository.load("base").run().unwrap();
}

#[cfg(unix)]
#[test]
fn a_folder_that_cannot_be_written_can_be_read() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder();
    let set = |writable: bool| {
        for entry in ["", "packs", "manifests", "names", "tmp"].map(|name| folder.path.join(name)) {
            if entry.is_dir() {
                fs::set_permissions(&entry, PermissionsExt::from_mode(if writable { 0o700 } else { 0o555 }))
                    .unwrap();
            }
        }
        for name in ["config", "index.redb", "lock", "lock.turn", "files.lock", "index.lock"] {
            let mode = PermissionsExt::from_mode(if writable { 0o600 } else { 0o444 });
            fs::set_permissions(folder.path.join(name), mode).unwrap();
        }
        for kind in ["packs", "manifests", "names"] {
            let mode = PermissionsExt::from_mode(if writable { 0o600 } else { 0o444 });
            fs::set_permissions(only_file(&folder.path.join(kind)), mode).unwrap();
        }
    };
    set(false);
    if fs::write(folder.path.join("probe"), "").is_ok() {
        // The superuser can write to it anyway.
        fs::remove_file(folder.path.join("probe")).unwrap();
        println!("skipped: this user can write to a folder without the permission");
    } else {
        let repository = Repository::open(&folder.path).unwrap();
        assert_eq!(content(repository.load("base").run().unwrap().snapshot()), content(&noise(1, 100_000)));
        assert_eq!(repository.verify(Depth::Data).unwrap().problems, [""; 0]);
        let error = repository.save(&noise(2, 5000)).run().unwrap_err();
        assert!(
            matches!(&error, Error::File { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied),
            "{error}"
        );
    }
    set(true);
    is_as_before(&folder.path);
}
