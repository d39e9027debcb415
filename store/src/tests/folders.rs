//! Folders that somebody else made: names and links that lead out of the repository.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use memsnap::Snapshot;

use super::noise;
use crate::{Collect, Error, Id, Repository};

/// A repository with a snapshot, and a folder beside it with a file that is not part of it.
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
        fs::write(setup.outside(), "mine").unwrap();
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
        let names: Vec<_> = fs::read_dir(self.folder.path().join("outside")).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        assert_eq!(fs::read(self.outside()).unwrap(), b"mine");
    }
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
