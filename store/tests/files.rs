//! Files that are saved: what their holes mean, and what happens to the open file.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;

use memsnap::Snapshot;
use memsnap_store::{Error, Id, Repository, Save, Saved};
use rand::{Rng, SeedableRng};

const BLOCK: usize = 4096;

/// No file system that tests run on has larger holes.
const STEP: usize = 256 * BLOCK;

/// Returns bytes that cannot be compressed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rand_xoshiro::Xoshiro256PlusPlus::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// A repository with a base of four steps, and a folder for files.
struct Setup {
    folder: tempfile::TempDir,
    repository: Repository,
    base: Saved,
    bytes: Vec<u8>,
}

impl Setup {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repository = Repository::create(folder.path().join("repository")).unwrap();
        let bytes = noise(1, 4 * STEP);
        let base = repository.save(&Snapshot::from_slice(&bytes).unwrap()).name("base").run().unwrap();
        Self { folder, repository, base, bytes }
    }

    /// Writes a file of the length of the base that is a hole outside of these bytes.
    fn sparse(&self, at: usize, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join("sparse");
        let mut file = File::create(&path).unwrap();
        file.set_len(self.bytes.len() as u64).unwrap();
        file.seek(SeekFrom::Start(at as u64)).unwrap();
        file.write_all(bytes).unwrap();
        path
    }

    fn save<'a>(&'a self, file: &'a File, parent: Kind) -> Save<'a, &'a File> {
        let save = self.repository.save_file(file);
        match parent {
            Kind::Loaded => save.parent(&self.base),
            Kind::Named => save.parent_id("base"),
        }
    }

    fn content(&self, id: Id) -> Vec<u8> {
        self.repository.load(id).run().unwrap().snapshot().view().unwrap().content().to_vec()
    }
}

/// How the parent is given.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Loaded,
    Named,
}

/// With a parent in memory, `holes_are_parent` read the holes of the file and saved them as zeroes.
#[cfg(unix)]
#[test]
fn holes_have_the_bytes_of_any_kind_of_parent() {
    let setup = Setup::new();
    let new = noise(2, 3 * BLOCK);
    let path = setup.sparse(STEP, &new);
    let mut expected = setup.bytes.clone();
    expected[STEP..STEP + new.len()].copy_from_slice(&new);
    for kind in [Kind::Loaded, Kind::Named] {
        let file = File::open(&path).unwrap();
        let written = setup.save(&file, kind).holes_are_parent().run().unwrap();
        assert!(setup.content(written.id) == expected, "{kind:?}");
        let manifest = setup.repository.manifest(written.id).unwrap();
        assert!(manifest.blocks < 64, "{kind:?}: {} blocks are listed", manifest.blocks);
    }
}

/// With a parent in memory, the manifest of a file listed every block.
#[test]
fn a_file_lists_what_differs_from_any_kind_of_parent() {
    let setup = Setup::new();
    let path = setup.folder.path().join("whole");
    let mut bytes = setup.bytes.clone();
    bytes[BLOCK..2 * BLOCK].fill(7);
    bytes[5 * BLOCK..6 * BLOCK].fill(0);
    fs::write(&path, &bytes).unwrap();
    for kind in [Kind::Loaded, Kind::Named] {
        let file = File::open(&path).unwrap();
        let written = setup.save(&file, kind).run().unwrap();
        assert!(setup.content(written.id) == bytes, "{kind:?}");
        assert_eq!(setup.repository.manifest(written.id).unwrap().blocks, 2, "{kind:?}");
    }
}

/// A copy fills the holes of a file, and some systems do not tell of holes. The zeroes were saved without an error.
#[test]
fn a_file_without_holes_is_refused_if_holes_are_those_of_the_parent() {
    let setup = Setup::new();
    let path = setup.folder.path().join("copy");
    let mut bytes = vec![0; setup.bytes.len()];
    bytes[STEP..2 * STEP].copy_from_slice(&setup.bytes[..STEP]);
    fs::write(&path, &bytes).unwrap();
    let file = File::open(&path).unwrap();
    for kind in [Kind::Loaded, Kind::Named] {
        let error = setup.save(&file, kind).holes_are_parent().run().unwrap_err();
        assert!(matches!(&error, Error::Invalid { .. }), "{error}");
        assert!(error.to_string().contains("--allow-no-holes"), "{error}");
        assert_eq!(setup.repository.list().unwrap().len(), 1);
    }
    let written = setup.save(&file, Kind::Named).holes_are_parent().allow_no_holes().run().unwrap();
    assert!(setup.content(written.id) == bytes);
    // Nothing can be lost in a file without bytes.
    File::create(&path).unwrap();
    setup.save(&File::open(&path).unwrap(), Kind::Named).holes_are_parent().run().unwrap();
}

/// Finding the holes of a file moves its offset, which all handles of the open file share.
#[test]
fn the_offset_of_the_file_is_restored() {
    let setup = Setup::new();
    let mut file = File::open(setup.sparse(STEP, &[1; BLOCK])).unwrap();
    file.seek(SeekFrom::Start(123)).unwrap();
    setup.save(&file, Kind::Named).run().unwrap();
    assert_eq!(file.stream_position().unwrap(), 123);
}
