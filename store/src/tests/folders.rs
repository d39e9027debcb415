//! Folders that somebody else made: names and links that lead out of the repository.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use memsnap::Snapshot;

use super::noise;
use crate::storage::simulated::{Fault, Simulated};
use crate::{Collect, Error, Id, Repository};

/// The names of files outside: some are of the forms that a collection deletes.
fn outside_names() -> [String; 5] {
    let id = "12".repeat(32);
    ["file".to_owned(), format!("{}.pack", "12".repeat(16)), format!("{id}.checked"), "other".to_owned(), id]
}

/// A repository with a snapshot, and a folder beside it with files that are not part of it.
struct Setup {
    folder: tempfile::TempDir,
    repository: Repository,
    id: Id,
}

impl Setup {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repository = Repository::create(folder.path().join("repository")).unwrap();
        let id = repository.save(&Snapshot::from_slice(&noise(1)).unwrap()).name("base").run().unwrap().id();
        fs::create_dir(folder.path().join("outside")).unwrap();
        let setup = Self { folder, repository, id };
        for name in outside_names() {
            fs::write(folder_of(&setup.outside()).join(name), "mine").unwrap();
        }
        setup
    }

    fn path(&self) -> &Path {
        self.repository.path()
    }

    /// Returns the file that no call may change.
    fn outside(&self) -> PathBuf {
        self.folder.path().join("outside/file")
    }

    fn collect(&self) -> crate::Result<crate::Collected> {
        self.repository.collect(&Collect::new().grace(Duration::ZERO).cache(true))
    }

    #[track_caller]
    fn check_outside(&self) {
        let files: BTreeMap<OsString, Vec<u8>> = fs::read_dir(self.folder.path().join("outside"))
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name(), fs::read(entry.path()).unwrap()))
            .collect();
        let expected: BTreeMap<OsString, Vec<u8>> =
            outside_names().into_iter().map(|name| (name.into(), b"mine".to_vec())).collect();
        assert_eq!(files, expected);
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap()
}

/// The name `../../outside/file` in an index made `collect` overwrite that file and `remove` delete it.
#[test]
fn a_name_of_the_index_that_leads_out_is_damage() {
    for name in ["../../outside/file", "../config", "a/b", ".", "", "a\\b", "c:d", "-x", "x."] {
        let setup = Setup::new();
        setup.repository.inner.change(|index| index.set_name(name, Some(&setup.id))).unwrap();
        let absolute = setup.outside().to_str().unwrap().to_owned();
        setup.repository.inner.change(|index| index.set_name(&absolute, Some(&setup.id))).unwrap();
        let errors = [
            setup.collect().unwrap_err(),
            setup.repository.remove(setup.id).unwrap_err(),
            setup.repository.remove_name(name).unwrap_err(),
            setup.repository.remove_name(&absolute).unwrap_err(),
            setup.repository.names().unwrap_err(),
            setup.repository.resolve(name).unwrap_err(),
        ];
        for error in errors {
            let message = error.to_string();
            assert!(matches!(error, Error::Damaged { .. }) && message.contains("index.redb"), "{message}");
        }
        setup.check_outside();
        // The other files tell what is right.
        fs::remove_file(setup.path().join("index.redb")).unwrap();
        assert_eq!(Repository::repair(setup.path()).unwrap().problems, [""; 0]);
        assert_eq!(setup.repository.names().unwrap(), [("base".to_owned(), setup.id)]);
    }
}

/// `repair` takes names from files, and a name that the reader of the index refuses would make the index unusable.
#[test]
fn repair_ignores_files_that_are_no_names() {
    let setup = Setup::new();
    fs::write(setup.path().join("names/a b"), format!("{}\n", setup.id)).unwrap();
    let repaired = Repository::repair(setup.path()).unwrap();
    assert_eq!(repaired.names, 1);
    assert!(repaired.problems[0].contains("a b"), "{:?}", repaired.problems);
    assert_eq!(setup.repository.names().unwrap().len(), 1);
    setup.collect().unwrap();
    assert!(setup.path().join("names/a b").exists(), "the store did not make this file");
}

/// A folder of the repository that was a link, from an archive for example, made `collect` delete all files in it.
#[cfg(unix)]
#[test]
fn folders_that_are_links_are_refused() {
    for name in ["tmp", "names", "packs", "manifests", "cache"] {
        let setup = Setup::new();
        let link = setup.path().join(name);
        if link.exists() {
            fs::rename(&link, setup.path().join("moved")).unwrap();
        }
        std::os::unix::fs::symlink(folder_of(&setup.outside()), &link).unwrap();
        let error = setup.collect().unwrap_err().to_string();
        assert!(error.contains(&format!("{} is a symbolic link", link.display())), "{name}: {error}");
        if name == "cache" {
            // SAFETY: nothing writes to the files in the cache.
            #[expect(unsafe_code)]
            let error = unsafe { setup.repository.map(setup.id) }.unwrap_err().to_string();
            assert!(error.contains("is a symbolic link"), "{error}");
        } else {
            let next = Snapshot::from_slice(&noise(2)).unwrap();
            let error = setup.repository.save(&next).name("next").run().unwrap_err().to_string();
            assert!(error.contains("is a symbolic link"), "{name}: {error}");
        }
        let _ = (setup.repository.remove(setup.id), setup.collect(), Repository::repair(setup.path()));
        setup.check_outside();
    }
}

/// A link in the place of a file was followed: a lock made a new file elsewhere, and an index was written elsewhere.
#[cfg(unix)]
#[test]
fn files_that_are_links_are_refused() {
    for name in ["config", "index.redb", "lock", "lock.turn", "files.lock", "index.lock", "index.turn"] {
        let setup = Setup::new();
        let link = setup.path().join(name);
        let moved = folder_of(folder_of(&setup.outside())).join("moved");
        fs::rename(&link, &moved).unwrap();
        std::os::unix::fs::symlink(&moved, &link).unwrap();
        let opened = Repository::open(setup.path()).and_then(|repository| {
            // This locks all files.
            repository.collect(&Collect::new())?;
            repository.remove(setup.id)
        });
        let error = opened.unwrap_err().to_string();
        assert!(error.contains(&format!("{} is a symbolic link", link.display())), "{name}: {error}");
    }
}

/// `collect` deleted every file in the folders of the repository.
#[test]
fn files_with_names_that_the_store_does_not_use_stay() {
    let setup = Setup::new();
    fs::create_dir(setup.path().join("cache")).unwrap();
    let mut foreign = Vec::new();
    for folder in ["tmp", "packs", "manifests", "names", "cache"] {
        for name in [".keep", "my notes.txt"] {
            foreign.push(setup.path().join(folder).join(name));
        }
    }
    let left_over = format!("{}.pack", "0a".repeat(16));
    let id = "0a".repeat(32);
    let ours: Vec<PathBuf> = [
        format!("tmp/{left_over}"),
        format!("packs/{id}"),
        format!("manifests/{id}"),
        "names/old".to_owned(),
        format!("cache/{id}"),
        format!("cache/{id}.checked"),
    ]
    .into_iter()
    .map(|path| setup.path().join(path))
    .collect();
    for path in foreign.iter().chain(&ours) {
        fs::write(path, "bytes").unwrap();
    }
    setup.collect().unwrap();
    for path in foreign {
        assert!(path.exists(), "{}", path.display());
    }
    for path in ours {
        assert!(!path.exists(), "{}", path.display());
    }
}

/// A call that failed midway left a folder that was no repository, and that `create` refused because it was not empty.
#[test]
fn a_folder_that_was_left_half_made_is_completed() {
    let operations = {
        let storage = Simulated::new();
        storage.set_fault(Fault::Never);
        super::create(&storage);
        storage.operations()
    };
    assert!(operations > 20, "{operations}");
    for at in 0..operations {
        for fault in [Fault::At(at), Fault::From(at)] {
            let storage = Simulated::new();
            storage.set_fault(fault);
            let created = Repository::create_in(Arc::new(storage.clone()));
            let storage = storage.kill();
            match created {
                // The last operations open the repository, or remove what is not needed.
                Ok(_) => assert!(super::open(&storage).is_ok(), "{fault:?}"),
                // The sync of the name of `config` failed.
                Err(_) if storage.bytes("config").is_some() => {
                    assert!(super::open(&storage).is_ok(), "{fault:?}")
                }
                Err(_) => {
                    let repository = Repository::create_in(Arc::new(storage.clone())).unwrap();
                    let id = repository.save(&Snapshot::from_slice(&noise(1)).unwrap()).run().unwrap().id();
                    let again = Repository::create_in(Arc::new(storage.clone()));
                    assert!(matches!(again, Err(Error::NotEmpty { .. })), "{fault:?}");
                    super::open(&storage).unwrap().load(id).run().unwrap();
                }
            }
        }
    }
}

#[test]
fn only_what_create_leaves_is_completed() {
    let setup = Setup::new();
    let config = setup.path().join("config");
    let bytes = fs::read(&config).unwrap();
    fs::remove_file(&config).unwrap();
    assert!(matches!(Repository::create(setup.path()), Err(Error::NotEmpty { .. })), "there is a pack");
    fs::write(&config, bytes).unwrap();
    setup.repository.load(setup.id).run().unwrap();

    let folder = setup.folder.path().join("new/er/repository");
    Repository::create(&folder).unwrap();
    assert!(matches!(Repository::create(&folder), Err(Error::NotEmpty { .. })), "it is a repository");
    fs::remove_file(folder.join("config")).unwrap();
    for mine in ["mine", "tmp/mine", "names/mine", "packs/mine"].map(|name| folder.join(name)) {
        fs::write(&mine, "mine").unwrap();
        assert!(matches!(Repository::create(&folder), Err(Error::NotEmpty { .. })), "{}", mine.display());
        assert_eq!(fs::read(&mine).unwrap(), b"mine");
        fs::remove_file(&mine).unwrap();
    }
    // Windows drops a dot at the end of a name. The names of temporary files ended with one, so that what `create` had left
    // there was not taken for its own.
    fs::write(folder.join("tmp").join(format!("{}.config", "0a".repeat(16))), "left over").unwrap();
    Repository::create(&folder).unwrap();
    assert!(Repository::open(&folder).unwrap().list().unwrap().is_empty());
}
