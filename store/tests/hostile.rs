//! Damaged and hostile remotes.
//!
//! A pull fails and names the object, and the repository gets no wrong bytes.
#![cfg(feature = "remote")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{BLOCK, Machine, change, noise};
use memsnap_store::{Error, Id, Remote, RemoteOptions};
use object_store::local::LocalFileSystem;

/// A remote in a folder, with a base and a child.
struct Setup {
    folder: tempfile::TempDir,
    here: Machine,
    base: Id,
    child: Id,
    bytes: Vec<u8>,
}

impl Setup {
    fn new() -> Self {
        let (folder, here) = (tempfile::tempdir().unwrap(), Machine::new());
        let mut bytes = noise(1, 20);
        bytes[5 * BLOCK..9 * BLOCK].fill(3);
        let base = here.save(&bytes, None, "base");
        change(&mut bytes, 2, 3);
        let child = here.save(&bytes, Some(&base), "child").id();
        let setup = Self { folder, here, base: base.id(), child, bytes };
        setup.here.repository.push(&setup.remote(), child).name("child").run().unwrap();
        setup
    }

    fn remote(&self) -> Remote {
        let store = LocalFileSystem::new_with_prefix(self.folder.path()).unwrap();
        Remote::with_store(Arc::new(store), "", &RemoteOptions::new()).unwrap()
    }

    /// Returns the files of a folder of the remote.
    fn objects(&self, folder: &str) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> =
            fs::read_dir(self.folder.path().join(folder)).unwrap().map(|file| file.unwrap().path()).collect();
        found.sort();
        found
    }

    /// Pulls the child.
    ///
    /// Checks that all bytes are right after success, and that nothing of it is listed after an error.
    fn pull(&self) -> Result<(), Error> {
        let there = Machine::new();
        let result = there.repository.pull(&self.remote(), self.child).run();
        there.check();
        match result {
            Ok(pulled) => {
                assert_eq!(pulled.id, self.child);
                assert!(there.bytes(self.child) == self.bytes);
                Ok(())
            }
            Err(error) => {
                assert!(there.repository.list().unwrap().is_empty());
                let left_over = fs::read_dir(there.path().join("tmp")).unwrap().count();
                assert_eq!(left_over, 0, "a temporary file is left after: {error}");
                Err(error)
            }
        }
    }

    fn pull_fails(&self, object: &Path, what: &str) {
        let error = self.pull().expect_err(what);
        let name = object.file_name().unwrap().to_str().unwrap();
        assert!(matches!(error, Error::Damaged { .. } | Error::Newer { .. }), "{what}: {error:?}");
        assert!(error.to_string().contains(name), "{what}, {name}: {error}");
    }
}

const FOLDERS: [&str; 3] = ["packs", "manifests", "places"];

#[test]
fn a_missing_object_is_named() {
    let setup = Setup::new();
    setup.pull().unwrap();
    for object in FOLDERS.iter().flat_map(|folder| setup.objects(folder)) {
        let bytes = fs::read(&object).unwrap();
        fs::remove_file(&object).unwrap();
        setup.pull_fails(&object, "missing");
        fs::write(&object, bytes).unwrap();
    }
    setup.pull().unwrap();
}

#[test]
fn an_object_with_other_bytes_is_named() {
    let setup = Setup::new();
    for object in FOLDERS.iter().flat_map(|folder| setup.objects(folder)) {
        let bytes = fs::read(&object).unwrap();
        let is_pack = object.parent().unwrap().ends_with("packs");
        let mut changes: Vec<(String, Vec<u8>)> =
            vec![("empty".to_owned(), Vec::new()), ("short".to_owned(), bytes[..bytes.len() / 2].to_vec())];
        if !is_pack {
            changes.push(("one byte short".to_owned(), bytes[..bytes.len() - 1].to_vec()));
            changes.push(("longer".to_owned(), [&bytes[..], b"x"].concat()));
        }
        // All bytes of the header and the end, and some between them. A pull does not read the table of a pack.
        let end = if is_pack { 0 } else { 60 };
        let between = (140..bytes.len() - 60).step_by(701);
        let start = if is_pack { 32..40 } else { 0..140.min(bytes.len()) };
        for at in start.chain(between.filter(|_| !is_pack)).chain(bytes.len() - end..bytes.len()) {
            let mut changed = bytes.clone();
            changed[at] ^= 0x41;
            changes.push((format!("byte {at}"), changed));
        }
        for (what, changed) in changes {
            fs::write(&object, changed).unwrap();
            setup.pull_fails(&object, &what);
        }
        fs::write(&object, bytes).unwrap();
    }
    setup.pull().unwrap();
}

/// Changes each byte of a pack: the pull fails, or the byte was not needed and the result is right.
#[test]
fn no_byte_of_a_pack_is_trusted() {
    let setup = Setup::new();
    for object in setup.objects("packs") {
        let bytes = fs::read(&object).unwrap();
        let mut failures = 0;
        for at in (0..bytes.len()).step_by(53) {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            fs::write(&object, changed).unwrap();
            failures += usize::from(setup.pull().is_err());
        }
        assert!(failures > 100, "{failures}");
        fs::write(&object, bytes).unwrap();
    }
}

#[test]
fn objects_that_were_swapped_are_named() {
    let setup = Setup::new();
    for folder in FOLDERS {
        let objects = setup.objects(folder);
        let [one, other] = &objects[..] else { panic!("{objects:?}") };
        let bytes = [fs::read(one).unwrap(), fs::read(other).unwrap()];
        fs::write(one, &bytes[1]).unwrap();
        fs::write(other, &bytes[0]).unwrap();
        let error = setup.pull().unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{folder}: {error:?}");
        assert!(error.to_string().contains(folder), "{folder}: {error}");
        fs::write(one, &bytes[0]).unwrap();
        fs::write(other, &bytes[1]).unwrap();
    }
    setup.pull().unwrap();
}

/// Returns an object with places and a right checksum.
fn sealed(mut places: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let hashed = places.len() - 32;
    change(&mut places[..hashed]);
    let checksum = blake3::hash(&places[..hashed]);
    places[hashed..].copy_from_slice(checksum.as_bytes());
    places
}

/// The checksum of places does not protect against hostile writers. So all values in them are checked.
#[test]
fn places_that_lie_are_found() {
    let setup = Setup::new();
    let object = setup.folder.path().join(format!("places/{}", setup.base));
    let bytes = fs::read(&object).unwrap();
    let entries = 16..bytes.len() - 44 - 40;
    let claims: [(&str, usize, Vec<u8>); 9] = [
        ("version", 8, 2_u32.to_le_bytes().into()),
        ("pack", 16, 9_u32.to_le_bytes().into()),
        ("offset", 20, u32::MAX.to_le_bytes().into()),
        ("stored", 24, u32::MAX.to_le_bytes().into()),
        ("number", 28, vec![200]),
        ("blocks", 29, vec![255]),
        ("encoding", 30, vec![9]),
        ("count of packs", bytes.len() - 44, u32::MAX.to_le_bytes().into()),
        ("no packs", bytes.len() - 44, 0_u32.to_le_bytes().into()),
    ];
    for (what, at, value) in claims {
        fs::write(
            &object,
            sealed(bytes.clone(), |bytes| bytes[at..at + value.len()].copy_from_slice(&value)),
        )
        .unwrap();
        setup.pull_fails(&object, what);
    }
    // The place of another block: its bytes have another hash.
    let swapped = sealed(bytes.clone(), |bytes| {
        let last: Vec<u8> = bytes[entries.end - 16..entries.end].into();
        bytes[16..32].copy_from_slice(&last);
    });
    fs::write(&object, swapped).unwrap();
    let error = setup.pull().unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }) && error.to_string().contains("packs/"), "{error}");
    // Frames that overlap: a part of a pack of 16 MiB could become gibibytes in memory.
    let overlapping = sealed(bytes.clone(), |bytes| {
        let last = entries.end - 16 + 4;
        bytes[last..last + 4].copy_from_slice(&33_u32.to_le_bytes());
    });
    fs::write(&object, overlapping).unwrap();
    let error = setup.pull().unwrap_err();
    assert!(error.to_string().contains("overlap"), "{error}");
    assert!(error.to_string().contains(&format!("places/{}", setup.base)), "{error}");
    // A pack that claims to be longer than it is.
    let longer = sealed(bytes.clone(), |bytes| {
        let len = bytes.len();
        bytes[len - 12 - 8..len - 12].copy_from_slice(&u64::MAX.to_le_bytes());
        bytes[20..24].copy_from_slice(&(u32::MAX - 5000).to_le_bytes());
    });
    fs::write(&object, longer).unwrap();
    let error = setup.pull().unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }) && error.to_string().contains("packs/"), "{error}");
    fs::write(&object, bytes).unwrap();
    setup.pull().unwrap();
}

/// A machine believed the places that another one had pushed. It sent nothing, and published a snapshot that nobody could
/// pull.
#[test]
fn a_push_does_not_rely_on_places_that_lie() {
    let setup = Setup::new();
    let object = setup.folder.path().join(format!("places/{}", setup.base));
    let places = fs::read(&object).unwrap();
    let end = places.len() - 44 - 40;
    type Lie<'a> = (&'a str, &'a dyn Fn(&mut [u8]));
    let lies: [Lie<'_>; 3] = [
        ("the place of another block", &|bytes| bytes.copy_within(end - 16..end, 16)),
        ("another length of the pack", &|bytes| bytes[end + 32] ^= 1),
        ("no place", &|bytes| bytes[16..32].rotate_left(4)),
    ];
    for (what, lie) in lies {
        let lying = sealed(places.clone(), lie);
        fs::write(&object, lying).unwrap();
        let other = Machine::new();
        let base = setup.here.bytes(setup.base);
        let snapshot = memsnap::Snapshot::from_slice(&base).unwrap();
        let id = other.repository.save(&snapshot).label("lie", what).run().unwrap().id();
        other.repository.push(&setup.remote(), id).run().unwrap();
        let there = Machine::new();
        there.repository.pull(&setup.remote(), id).run().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(there.bytes(id) == base, "{what}");
    }
    // If they do not lie, the blocks are not sent again.
    fs::write(&object, places).unwrap();
    let other = Machine::new();
    let snapshot = memsnap::Snapshot::from_slice(&setup.here.bytes(setup.base)).unwrap();
    let id = other.repository.save(&snapshot).label("lie", "none").run().unwrap().id();
    assert_eq!(other.repository.push(&setup.remote(), id).run().unwrap().blocks, 0);
}

/// Manifests with valid hashes that do not fit together.
#[test]
fn manifests_that_do_not_fit_are_refused() {
    let setup = Setup::new();
    let manifest = fs::read(setup.folder.path().join(format!("manifests/{}", setup.child))).unwrap();
    let places = fs::read(setup.folder.path().join(format!("places/{}", setup.child))).unwrap();
    let listed = fs::read(setup.folder.path().join(format!("snapshots/{}", setup.child))).unwrap();
    // Wrong depths, and a base that is missing.
    for (at, value) in [(104, vec![2]), (104, vec![64]), (48, vec![0; 32])] {
        let mut changed = manifest.clone();
        changed[at..at + value.len()].copy_from_slice(&value);
        let id = Id::from(blake3::hash(&changed));
        let write = |folder: &str, bytes: &[u8]| {
            fs::write(setup.folder.path().join(folder).join(id.to_string()), bytes).unwrap();
        };
        write("manifests", &changed);
        write("places", &places);
        write("snapshots", &listed);
        for has_base in [false, true] {
            let there = Machine::new();
            if has_base {
                setup.here.repository.push(&setup.remote(), setup.base).run().unwrap();
                there.repository.pull(&setup.remote(), setup.base).run().unwrap();
            }
            let count = there.repository.list().unwrap().len();
            let error = there.repository.pull(&setup.remote(), id).run().unwrap_err();
            assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
            there.check();
            assert_eq!(there.repository.list().unwrap().len(), count);
            assert!(matches!(there.repository.resolve(id), Err(Error::NotFound { .. })));
        }
    }
}

/// A listed snapshot whose pack was lost was not noticed by a collection, and a push of it sent nothing.
#[test]
fn a_lost_pack_is_found_by_a_collection_and_sent_again_by_a_push() {
    let setup = Setup::new();
    for pack in setup.objects("packs") {
        // An object of the same name in a folder below is another one.
        let below = setup.folder.path().join("packs/below");
        fs::create_dir_all(&below).unwrap();
        fs::rename(&pack, below.join(pack.file_name().unwrap())).unwrap();
        let error = setup.remote().collect(&common::transfer::at_once()).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
        assert!(error.to_string().contains(pack.file_name().unwrap().to_str().unwrap()), "{error}");
        for id in [setup.base, setup.child] {
            setup.here.repository.push(&setup.remote(), id).run().unwrap();
        }
        setup.pull().unwrap();
        setup.remote().collect(&common::transfer::at_once()).unwrap();
        setup.pull().unwrap();
        fs::remove_dir_all(&below).unwrap();
    }
}

/// What is damaged is not deleted, and a collection with a damaged manifest deletes nothing.
#[test]
fn a_collection_of_a_damaged_remote_deletes_nothing() {
    let setup = Setup::new();
    setup.here.save(&noise(9, 5), None, "removed");
    setup.here.repository.push(&setup.remote(), "removed").run().unwrap();
    let removed = setup.here.repository.resolve("removed").unwrap();
    setup.remote().remove(removed).unwrap();
    let count = setup.objects("packs").len();
    for (folder, bytes) in [("manifests", &b"nonsense"[..]), ("manifests", b""), ("places", b"nonsense")] {
        let object = setup.folder.path().join(format!("{folder}/{}", setup.base));
        let good = fs::read(&object).unwrap();
        fs::write(&object, bytes).unwrap();
        let error = setup.remote().collect(&common::transfer::at_once()).unwrap_err();
        assert!(error.to_string().contains(&setup.base.to_string()), "{error}");
        fs::remove_file(&object).unwrap();
        let error = setup.remote().collect(&common::transfer::at_once()).unwrap_err();
        assert!(error.to_string().contains(&setup.base.to_string()), "{error}");
        assert_eq!(setup.objects("packs").len(), count);
        fs::write(&object, good).unwrap();
    }
    assert_eq!(setup.remote().collect(&common::transfer::at_once()).unwrap().packs, 1);
    setup.pull().unwrap();
}
