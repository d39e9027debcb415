//! Names that some systems cannot keep as files, and repositories of older versions that have them.

use std::time::Duration;

use memsnap::Snapshot;

use super::{Small, content, create, noise, open, small};
use crate::save::write_name;
use crate::storage::Storage;
use crate::storage::simulated::Simulated;
use crate::{Collect, Error, Repository, check_name};

#[track_caller]
fn refused(error: Error, expected: &[&str]) {
    let message = error.to_string();
    assert!(matches!(error, Error::Invalid { .. }), "{message}");
    assert!(expected.iter().all(|part| message.contains(part)), "{message}");
}

#[test]
fn names_of_devices_are_refused() {
    for name in ["con", "NUL", "aux.img", "Prn.", "com0", "com9", "LPT1.tar.gz"] {
        let error = check_name(name).unwrap_err();
        if !name.ends_with('.') {
            refused(error, &[name, "Windows reserves", &format!("vm-{name}")]);
        }
    }
    for name in ["con-1", "vm.con", "conx", "com", "com10", "lpt", "comx", "nul_", "console"] {
        check_name(name).unwrap();
    }
    for name in ["base.", "base ", "base. "] {
        refused(check_name(name).unwrap_err(), &["does not end with a dot"]);
    }
    let repository = create(&Simulated::new());
    let snapshot = Snapshot::from_slice(&noise(1)).unwrap();
    refused(repository.save(&snapshot).name("con.img").run().unwrap_err(), &["con.img"]);
    let id = repository.save(&snapshot).run().unwrap().id();
    refused(repository.set_name("nul", id).unwrap_err(), &["nul"]);
    assert_eq!(repository.names().unwrap(), []);
}

/// On Windows and macOS, the file of the second name replaced that of the first one, and a repair lost a name.
#[test]
fn a_new_name_differs_in_more_than_case() {
    let Small { storage, base, child, .. } = small();
    let repository = open(&storage).unwrap();
    let before = storage.list("names").unwrap().len();
    let snapshot = Snapshot::from_slice(&noise(1)).unwrap();
    refused(repository.save(&snapshot).name("Base").run().unwrap_err(), &["\"Base\"", "\"base\"", "macOS"]);
    refused(repository.set_name("BASE", child).unwrap_err(), &["\"BASE\"", "\"base\""]);
    assert_eq!(storage.list("names").unwrap().len(), before);
    assert_eq!((repository.list().unwrap().len(), repository.resolve("base").unwrap()), (2, base));
    repository.set_name("base", child).unwrap();
    repository.remove_name("base").unwrap();
    repository.set_name("Base", base).unwrap();
    assert_eq!(repository.resolve("Base").unwrap(), base);
}

#[test]
fn repositories_with_such_names_stay_readable() {
    let Small { storage, base, child, bytes } = small();
    let repository = open(&storage).unwrap();
    // An older version made these names.
    let old = [("con", base), ("lpt1.img", child), ("Base", child)];
    for (name, id) in old {
        write_name(&repository.inner, name, id).unwrap();
        repository.inner.change(|index| index.set_name(name, Some(&id))).unwrap();
    }
    let check = |repository: &Repository| {
        for (name, id) in old.into_iter().chain([("base", base)]) {
            let saved = repository.load(name).run().unwrap();
            assert_eq!(saved.id(), id, "{name}");
            assert!(content(saved.snapshot()) == bytes[&id], "{name}");
        }
        assert_eq!(repository.names().unwrap().len(), 5);
    };
    check(&repository);
    repository.collect(&Collect::new().grace(Duration::ZERO)).unwrap();
    check(&repository);
    // Two names that differ only in case can still be moved.
    repository.set_name("Base", base).unwrap();
    repository.set_name("Base", child).unwrap();
    if !cfg!(windows) {
        storage.remove("index.redb").unwrap();
        assert_eq!(Repository::repair_in(std::sync::Arc::new(storage.clone())).unwrap().names, 5);
        check(&open(&storage).unwrap());
    }
    for (name, _) in old {
        repository.remove_name(name).unwrap();
    }
    assert_eq!(repository.names().unwrap().len(), 2);
    // On Windows, these files cannot exist, and so are not deleted.
    assert_eq!(storage.list("names").unwrap().len(), if cfg!(windows) { 4 } else { 2 });
}

#[cfg(feature = "remote")]
mod remote {
    use super::*;
    use crate::{Remote, RemoteOptions};

    #[test]
    fn a_pull_gives_no_name_that_differs_only_in_case() {
        let repository = open(&small().storage).unwrap();
        let remote = Remote::create("memory:///", &RemoteOptions::new()).unwrap();
        repository.push(&remote, "base").name("Base").run().unwrap();
        // An object store tells both apart.
        repository.push(&remote, "child").name("base").run().unwrap();
        let other = create(&Simulated::new());
        other.pull(&remote, "Base").name("Base").run().unwrap();
        refused(other.pull(&remote, "base").name("base").run().unwrap_err(), &["\"base\"", "\"Base\""]);
        assert_eq!(other.list().unwrap().len(), 1);
        other.pull(&remote, "base").run().unwrap();
    }

    /// The name of a device was no name any more, and so a pull found no snapshot.
    #[test]
    fn a_remote_with_the_name_of_a_device_stays_readable() {
        let Small { storage, base, .. } = small();
        let repository = open(&storage).unwrap();
        let remote = Remote::create("memory:///", &RemoteOptions::new()).unwrap();
        repository.push(&remote, base).run().unwrap();
        remote.move_name("con", None, base).unwrap();
        assert_eq!(remote.resolve("con").unwrap(), base);
        refused(repository.push(&remote, base).name("con").run().unwrap_err(), &["Windows"]);
        create(&Simulated::new()).pull(&remote, "con").name("vm-con").run().unwrap();
    }

    /// On Windows and macOS, a push moved the name that differs only in case.
    #[cfg(unix)]
    #[test]
    fn a_folder_as_a_remote_has_no_names_that_differ_only_in_case() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        let repository = open(&small().storage).unwrap();
        let remote = Remote::create(&url, &RemoteOptions::new()).unwrap();
        let base = repository.push(&remote, "base").name("vm").run().unwrap().id;
        // A push sent everything before it was refused.
        let sent = || std::fs::read_dir(folder.path().join("packs")).unwrap().count();
        let before = sent();
        refused(
            repository.push(&remote, "child").name("VM").run().unwrap_err(),
            &["\"VM\"", "\"vm\" exists"],
        );
        assert_eq!((remote.names().unwrap().len(), sent()), (1, before));
        // The error said that a name exists which `list` does not show.
        assert!(remote.remove_name_of("vm", base).unwrap());
        refused(repository.push(&remote, "child").name("VM").run().unwrap_err(), &["\"vm\" was removed"]);
        assert_eq!((remote.names().unwrap().len(), sent()), (0, before));
        repository.push(&remote, "child").name("vm").run().unwrap();
    }
}
