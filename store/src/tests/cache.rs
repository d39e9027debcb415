//! The cache: files that somebody else made, and ancestors that are damaged.

use std::fs;

use memsnap::Snapshot;

use super::{BLOCK, content, noise};
use crate::cache::cache_path;
use crate::chain::manifest_path;
use crate::{Collect, Id, Repository};

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

    #[cfg(unix)]
    fn cached(&self) -> std::path::PathBuf {
        cache_path(&self.repository.inner, &self.id)
    }

    #[cfg(unix)]
    fn note(&self) -> std::path::PathBuf {
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

/// Whoever can write to the folder can put a file there and a note that fits it. `extract`, which is safe, believed it.
#[cfg(unix)]
#[test]
fn notes_that_others_can_write_do_not_count() {
    use std::os::unix::fs::PermissionsExt;

    // Which file or folder others can write to.
    for writable in [None, Some("file"), Some("note"), Some("folder")] {
        let setup = Setup::new();
        let (file, note) = (setup.cached(), setup.note());
        let forged = noise(3).repeat(3);
        fs::remove_file(&file).unwrap();
        fs::write(&file, &forged).unwrap();
        let allow = |path: &std::path::Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        allow(&file, if writable == Some("file") { 0o622 } else { 0o600 });
        crate::cache::note_check(&setup.repository.inner, &fs::File::open(&file).unwrap(), &file).unwrap();
        match writable {
            Some("note") => allow(&note, 0o620),
            Some("folder") => allow(file.parent().unwrap(), 0o770),
            _ => {}
        }
        if writable.is_none() {
            // The user can forge a note. This shows that the others are refused for who can write them.
            assert_eq!(setup.extract(setup.id), (forged, true));
            continue;
        }
        assert_eq!(setup.extract(setup.id), (setup.bytes.clone(), false), "{writable:?}");
        assert!(setup.map() == setup.bytes, "{writable:?}");
    }
}

/// A file of another user does not count, even if nobody else can write to it. Only root can run this test.
#[cfg(unix)]
#[test]
fn notes_of_another_user_do_not_count() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let setup = Setup::new();
    for path in [setup.note(), setup.repository.path().join("cache")] {
        std::os::unix::fs::chown(&path, Some(4711), None).unwrap();
        assert_eq!(setup.extract(setup.id), (setup.bytes.clone(), false), "{}", path.display());
        std::os::unix::fs::chown(&path, Some(0), None).unwrap();
        assert_eq!(setup.extract(setup.id), (setup.bytes.clone(), true), "{}", path.display());
    }
}

/// A sound snapshot could not be extracted if one that it descends from was in the cache and its manifest was damaged.
#[test]
fn a_damaged_ancestor_is_not_used() {
    let setup = Setup::new();
    // More blocks than a list of differences may have, so that the manifest does not need that of the parent.
    let bytes: Vec<u8> = (10..1100).flat_map(noise).collect();
    let child = setup.repository.save(&Snapshot::from_slice(&bytes).unwrap()).parent_id(setup.id).run();
    let child = child.unwrap().id();
    assert_eq!(setup.repository.manifest(child).unwrap().base, None);
    assert_eq!(setup.extract(child), (bytes.clone(), true));
    let manifest = setup.repository.path().join(manifest_path(&setup.id));
    let right = fs::read(&manifest).unwrap();
    for wrong in [Some(&b"damaged"[..]), Some(&right[..right.len() - 1]), None] {
        fs::remove_file(&manifest).unwrap();
        if let Some(wrong) = wrong {
            fs::write(&manifest, wrong).unwrap();
        }
        assert_eq!(setup.extract(child), (bytes.clone(), false));
        fs::write(&manifest, &right).unwrap();
    }
}

#[test]
fn a_snapshot_is_put_into_the_cache_to_be_shared() {
    let setup = Setup::new();
    let repository = &setup.repository;
    repository.collect(&Collect::new().cache(true)).unwrap();
    assert_eq!(setup.extract(setup.id), (setup.bytes.clone(), false));
    let path = setup.folder.path().join("shared");
    let extracted = repository.extract(setup.id, &path).share().run().unwrap();
    assert_eq!((extracted.shared, extracted.written), (true, 0));
    assert!(fs::read(&path).unwrap() == setup.bytes);
    // One that descends from it needs no file of its own.
    let mut bytes = setup.bytes.clone();
    bytes[..BLOCK].fill(0);
    let child = Snapshot::from_slice(&bytes).unwrap();
    let child = repository.save(&child).parent_id(setup.id).run().unwrap().id();
    let extracted = repository.extract(child, &path).share().run().unwrap();
    assert_eq!((extracted.shared, extracted.written), (true, BLOCK as u64));
    assert!(fs::read(&path).unwrap() == bytes);
    assert!(!cache_path(&repository.inner, &child).exists());
    let left_over = fs::read_dir(repository.path().join("cache")).unwrap().count();
    assert_eq!(left_over, 2, "the file and its note");
}
