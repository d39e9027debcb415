//! The cache: files that somebody else made, and ancestors that are damaged.

use std::fs;
use std::path::PathBuf;

use memsnap::Snapshot;

use super::{BLOCK, content, noise};
use crate::cache::cache_path;
use crate::{Id, Repository};

/// A repository with a snapshot in the cache.
struct Setup {
    folder: tempfile::TempDir,
    repository: Repository,
    id: Id,
    bytes: Vec<u8>,
}

impl Setup {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repository = Repository::create(folder.path().join("repository")).unwrap();
        let bytes = [noise(1), vec![0; BLOCK], noise(2)].concat();
        let id = repository.save(&Snapshot::from_slice(&bytes).unwrap()).name("base").run().unwrap().id();
        let setup = Self { folder, repository, id, bytes };
        assert!(setup.map() == setup.bytes);
        setup
    }

    fn cached(&self) -> PathBuf {
        cache_path(&self.repository.inner, &self.id)
    }

    fn note(&self) -> PathBuf {
        self.cached().with_extension("checked")
    }

    #[expect(unsafe_code)]
    fn map(&self) -> Vec<u8> {
        // SAFETY: no test writes to a file of the cache while it is mapped.
        let saved = unsafe { self.repository.map(self.id) }.unwrap();
        content(saved.snapshot())
    }

    /// Extracts a snapshot. Returns its bytes, and whether a file of the cache was used.
    fn extract(&self, id: Id) -> (Vec<u8>, bool) {
        let path = self.folder.path().join("extracted");
        let extracted = self.repository.extract(id, &path).run().unwrap();
        (fs::read(path).unwrap(), extracted.shared)
    }
}

#[test]
fn a_file_of_the_cache_is_used() {
    let setup = Setup::new();
    assert_eq!(setup.extract(setup.id), (setup.bytes.clone(), true));
}

/// The note was written through a link, over the file that the link leads to.
#[cfg(unix)]
#[test]
fn links_in_the_cache_are_replaced_and_not_followed() {
    let setup = Setup::new();
    let outside = setup.folder.path().join("outside");
    for path in [setup.note(), setup.cached()] {
        fs::write(&outside, "mine").unwrap();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&outside, &path).unwrap();
        assert_eq!(setup.extract(setup.id), (setup.bytes.clone(), false));
        assert!(setup.map() == setup.bytes);
        assert_eq!(fs::read(&outside).unwrap(), b"mine");
        assert!(!path.is_symlink());
        assert_eq!(setup.extract(setup.id), (setup.bytes.clone(), true));
    }
}

/// A pipe in the cache made `map` and `extract` wait for ever.
#[cfg(all(unix, not(target_vendor = "apple")))]
#[test]
fn pipes_in_the_cache_are_not_waited_for() {
    let setup = Setup::new();
    for path in [setup.note(), setup.cached()] {
        fs::remove_file(&path).unwrap();
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert_eq!(setup.extract(setup.id), (setup.bytes.clone(), false));
        assert!(setup.map() == setup.bytes);
    }
}
