//! `Simulated`: a storage for tests, which can fail and can lose changes that were not synced.
//!
//! It keeps two states: the state that a running process sees, and the durable state. [`Simulated::crash`] returns the
//! storage after a power failure:
//!
//! - Of each write that was not synced, each sector of 512 bytes is kept or lost. So is each new length.
//! - If a folder was not synced, each new name, rename and removal in it is kept or lost. A rename is kept or lost as a
//!   whole.
//! - Of two changes of one name, the second one is kept only if the first one is.
//! - If the name of a folder is lost, its files are lost too.
//!
//! [`Simulated::kill`] returns the storage after the process was killed. Only locks are lost.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rand::{Rng, RngExt};

use super::overlay::Overlay;
use super::{DatabaseMode, Listed, Lock, Locked, ReadFile, Storage, WriteFile};

/// The length of a sector, which a disk writes as a whole.
const SECTOR: usize = 512;

/// Which operations fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// None.
    Never,
    /// The operation with this number, from 0 on.
    /// A write that fails may write a part. A sync that fails loses the writes.
    At(u64),
    /// All operations from this number on. They have no effect, as if the process had been killed before.
    From(u64),
}

/// A storage in memory. Clones share their state, as processes do.
#[derive(Clone, Debug)]
pub(crate) struct Simulated(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    unlocked: Condvar,
}

#[derive(Clone, Debug)]
struct State {
    files: BTreeMap<u64, Contents>,
    names: Names,
    durable: Names,
    /// The changes of names that are not durable, in order.
    pending: Vec<Change>,
    locks: BTreeMap<String, Holders>,
    operations: u64,
    fault: Fault,
}

/// The files and folders that have a name.
#[derive(Clone, Default, Debug)]
struct Names {
    files: BTreeMap<String, u64>,
    folders: BTreeSet<String>,
}

/// A change of names.
#[derive(Clone, Debug)]
enum Change {
    Folder(String),
    File(String, u64),
    Rename(String, String, u64),
    Remove(String),
}

/// The bytes of a file.
#[derive(Clone, Debug)]
struct Contents {
    /// The bytes that a process sees.
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// The changes that were not synced, in order.
    pending: Vec<Edit>,
    modified: SystemTime,
}

/// A change of a file.
#[derive(Clone, Debug)]
enum Edit {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

#[derive(Clone, Default, Debug)]
struct Holders {
    shared: usize,
    exclusive: bool,
}

impl Simulated {
    /// Returns an empty repository folder.
    pub(crate) fn new() -> Self {
        let names = Names { files: BTreeMap::new(), folders: BTreeSet::from([String::new()]) };
        Self::with(State {
            files: BTreeMap::new(),
            durable: names.clone(),
            names,
            pending: Vec::new(),
            locks: BTreeMap::new(),
            operations: 0,
            fault: Fault::Never,
        })
    }

    fn with(state: State) -> Self {
        Self(Arc::new(Shared { state: Mutex::new(state), unlocked: Condvar::new() }))
    }

    /// Sets which operations fail, and counts operations from 0 again.
    pub(crate) fn set_fault(&self, fault: Fault) {
        let mut state = self.state();
        state.fault = fault;
        state.operations = 0;
    }

    /// Returns the number of operations since [`Simulated::set_fault`].
    pub(crate) fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Returns a storage with the same files, none of which is locked.
    ///
    /// Operations on the old one do not change it.
    pub(crate) fn kill(&self) -> Self {
        let mut state = self.state().clone();
        state.locks.clear();
        (state.fault, state.operations) = (Fault::Never, 0);
        Self::with(state)
    }

    /// Returns the storage after a power failure.
    pub(crate) fn crash(&self, rng: &mut impl Rng) -> Self {
        let mut state = self.kill().state().clone();
        let mut lost = BTreeSet::new();
        for change in std::mem::take(&mut state.pending) {
            if change.paths().iter().any(|path| lost.contains(*path)) || rng.random() {
                lost.extend(change.paths().iter().map(|path| (*path).to_owned()));
            } else {
                state.durable.apply(&change);
            }
        }
        let folders = state.durable.folders.clone();
        state.durable.folders.retain(|folder| folder.is_empty() || folders.contains(folder_of(folder)));
        let folders = &state.durable.folders;
        state.durable.files.retain(|path, _| folders.contains(folder_of(path)));
        state.names = state.durable.clone();
        let used: BTreeSet<u64> = state.names.files.values().copied().collect();
        state.files.retain(|file, _| used.contains(file));
        for contents in state.files.values_mut() {
            for edit in std::mem::take(&mut contents.pending) {
                edit.tear(&mut contents.durable, rng);
            }
            contents.bytes = contents.durable.clone();
        }
        Self::with(state)
    }

    /// Returns the bytes of a file.
    pub(crate) fn bytes(&self, path: &str) -> Option<Vec<u8>> {
        let state = self.state();
        Some(state.files[state.names.files.get(path)?].bytes.clone())
    }

    /// Makes a file have these bytes, and makes them durable.
    pub(crate) fn set_bytes(&self, path: &str, bytes: Vec<u8>) {
        let mut state = self.state();
        let file = state.files.len() as u64;
        let file = state.files.last_key_value().map_or(file, |(last, _)| last + 1);
        let durable = bytes.clone();
        state
            .files
            .insert(file, Contents { bytes, durable, pending: Vec::new(), modified: SystemTime::now() });
        for names in [0, 1] {
            let names = if names == 0 { &mut state.names } else { &mut state.durable };
            names.files.insert(path.to_owned(), file);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the state for an operation, or fails.
    fn begin(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        match state.begin() {
            Outcome::Works => Ok(state),
            Outcome::Fails | Outcome::Dead => Err(injected()),
        }
    }

    /// Returns a handle on a file.
    fn handle(&self, file: u64) -> Handle {
        Handle { storage: self.clone(), file }
    }
}

/// What happens to an operation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Works,
    Fails,
    Dead,
}

/// Returns the error of an operation that was made to fail.
fn injected() -> io::Error {
    io::Error::other("the simulated storage fails")
}

/// Returns the folder of a file.
fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

impl State {
    fn begin(&mut self) -> Outcome {
        let number = self.operations;
        self.operations += 1;
        match self.fault {
            Fault::At(at) if at == number => Outcome::Fails,
            Fault::From(from) if from <= number => Outcome::Dead,
            _ => Outcome::Works,
        }
    }

    fn find(&self, path: &str) -> io::Result<u64> {
        self.names.files.get(path).copied().ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn change(&mut self, change: Change) {
        self.names.apply(&change);
        self.pending.push(change);
    }

    fn create(&mut self, path: &str) -> io::Result<u64> {
        if self.names.files.contains_key(path) || self.names.folders.contains(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        if !self.names.folders.contains(folder_of(path)) {
            return Err(ErrorKind::NotFound.into());
        }
        let file = self.files.last_key_value().map_or(0, |(last, _)| last + 1);
        let (bytes, durable) = (Vec::new(), Vec::new());
        self.files
            .insert(file, Contents { bytes, durable, pending: Vec::new(), modified: SystemTime::now() });
        self.change(Change::File(path.to_owned(), file));
        Ok(file)
    }

    fn edit(&mut self, file: u64, edit: Edit) {
        if let Some(contents) = self.files.get_mut(&file) {
            edit.apply(&mut contents.bytes);
            contents.pending.push(edit);
            contents.modified = SystemTime::now();
        }
    }
}

impl Names {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Folder(path) => {
                self.folders.insert(path.clone());
            }
            Change::File(path, file) => {
                self.files.insert(path.clone(), *file);
            }
            Change::Rename(from, to, file) => {
                self.files.remove(from);
                self.files.insert(to.clone(), *file);
            }
            Change::Remove(path) => {
                self.files.remove(path);
            }
        }
    }
}

impl Change {
    /// Returns the names of the change. A sync of the folder of the last one makes it durable.
    fn paths(&self) -> Vec<&String> {
        match self {
            Self::Folder(path) | Self::File(path, _) | Self::Remove(path) => vec![path],
            Self::Rename(from, to, _) => vec![from, to],
        }
    }

    fn is_synced_by(&self, folder: &str) -> bool {
        self.paths().last().is_some_and(|path| folder_of(path) == folder)
    }
}

impl Edit {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::SetLen(len) => bytes.resize(*len, 0),
            Self::Write(offset, data) => {
                if bytes.len() < offset + data.len() {
                    bytes.resize(offset + data.len(), 0);
                }
                bytes[*offset..offset + data.len()].copy_from_slice(data);
            }
        }
    }

    /// Makes a random part of the change.
    fn tear(&self, bytes: &mut Vec<u8>, rng: &mut impl Rng) {
        // Often, all of the write or nothing is kept, so that several writes are kept or lost together.
        match (rng.random_range(0..3), self) {
            (0, _) => {}
            (1, Self::Write(offset, data)) => {
                let (mut at, end) = (*offset, offset + data.len());
                while at < end {
                    let next = ((at / SECTOR + 1) * SECTOR).min(end);
                    if rng.random() {
                        Self::Write(at, data[at - offset..next - offset].to_vec()).apply(bytes);
                    }
                    at = next;
                }
            }
            _ => self.apply(bytes),
        }
    }
}

impl Storage for Simulated {
    fn open(&self, path: &str) -> io::Result<Box<dyn ReadFile>> {
        let file = self.begin()?.find(path)?;
        Ok(Box::new(self.handle(file)))
    }

    fn create(&self, path: &str) -> io::Result<Box<dyn WriteFile>> {
        let file = self.begin()?.create(path)?;
        Ok(Box::new(Created { handle: self.handle(file), at: 0 }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.begin()?;
        let file = state.find(from)?;
        if !state.names.folders.contains(folder_of(to)) {
            return Err(ErrorKind::NotFound.into());
        }
        if state.names.folders.contains(to) {
            return Err(ErrorKind::IsADirectory.into());
        }
        state.change(Change::Rename(from.to_owned(), to.to_owned(), file));
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut state = self.begin()?;
        state.find(path)?;
        state.change(Change::Remove(path.to_owned()));
        Ok(())
    }

    fn list(&self, folder: &str) -> io::Result<Vec<Listed>> {
        let state = self.begin()?;
        if !state.names.folders.contains(folder) {
            return Err(ErrorKind::NotFound.into());
        }
        let files = state.names.files.iter().filter(|(path, _)| folder_of(path) == folder);
        Ok(files
            .map(|(path, file)| Listed {
                name: path.rsplit('/').next().unwrap_or(path).to_owned(),
                len: state.files[file].bytes.len() as u64,
                modified: state.files[file].modified,
            })
            .collect())
    }

    fn create_folder(&self, folder: &str) -> io::Result<()> {
        let mut state = self.begin()?;
        if state.names.files.contains_key(folder) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        if !state.names.folders.contains(folder_of(folder)) {
            return Err(ErrorKind::NotFound.into());
        }
        if !state.names.folders.contains(folder) {
            state.change(Change::Folder(folder.to_owned()));
        }
        Ok(())
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        let mut state = self.begin()?;
        if !state.names.folders.contains(folder) {
            return Err(ErrorKind::NotFound.into());
        }
        // Backwards, because a change that becomes durable needs the earlier changes of the same names.
        let mut needed = BTreeSet::new();
        let mut durable = Vec::new();
        for change in std::mem::take(&mut state.pending).into_iter().rev() {
            if change.is_synced_by(folder) || change.paths().iter().any(|path| needed.contains(*path)) {
                needed.extend(change.paths().into_iter().cloned());
                durable.push(change);
            } else {
                state.pending.insert(0, change);
            }
        }
        for change in durable.iter().rev() {
            state.durable.apply(change);
        }
        Ok(())
    }

    fn database(&self, path: &str, mode: DatabaseMode) -> io::Result<Box<dyn redb::StorageBackend>> {
        let file = match mode {
            DatabaseMode::Create => self.begin()?.create(path)?,
            DatabaseMode::Write | DatabaseMode::Read => self.begin()?.find(path)?,
        };
        let handle = self.handle(file);
        Ok(match mode {
            DatabaseMode::Read => Box::new(Overlay::new(Box::new(handle))?),
            DatabaseMode::Create | DatabaseMode::Write => Box::new(handle),
        })
    }

    fn lock(&self, path: &str, kind: Lock, wait: Duration) -> io::Result<Option<Box<dyn Locked>>> {
        let started = Instant::now();
        let mut state = self.begin()?;
        if !state.names.files.contains_key(path) {
            state.create(path)?;
        }
        loop {
            let holders = state.locks.entry(path.to_owned()).or_default();
            let free = !holders.exclusive && (kind == Lock::Shared || holders.shared == 0);
            if free {
                match kind {
                    Lock::Shared => holders.shared += 1,
                    Lock::Exclusive => holders.exclusive = true,
                }
                return Ok(Some(Box::new(Held { storage: self.clone(), path: path.to_owned(), kind })));
            }
            let left = wait.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            state = self.0.unlocked.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        PathBuf::from("simulated").join(path)
    }
}

/// A file that is open. It can be used after its name was removed.
#[derive(Debug)]
struct Handle {
    storage: Simulated,
    file: u64,
}

impl Handle {
    /// Changes the file. If the operation is to fail, makes a part of the change.
    fn edit(&self, edit: Edit) -> io::Result<()> {
        let mut state = self.storage.state();
        match state.begin() {
            Outcome::Works => {
                state.edit(self.file, edit);
                Ok(())
            }
            Outcome::Fails => {
                if let Edit::Write(offset, data) = edit {
                    state.edit(self.file, Edit::Write(offset, data[..data.len() / 2].to_vec()));
                }
                Err(injected())
            }
            Outcome::Dead => Err(injected()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.storage.state();
        let outcome = state.begin();
        if let Some(contents) = state.files.get_mut(&self.file) {
            match outcome {
                Outcome::Works => {
                    for edit in std::mem::take(&mut contents.pending) {
                        edit.apply(&mut contents.durable);
                    }
                }
                // As on Linux: after a failed sync, the system drops what it could not write, and the next sync
                // succeeds.
                Outcome::Fails => contents.pending.clear(),
                Outcome::Dead => {}
            }
        }
        if outcome == Outcome::Works { Ok(()) } else { Err(injected()) }
    }
}

/// Converts an offset or a length. The files of tests fit into memory.
fn size(number: u64) -> io::Result<usize> {
    usize::try_from(number).map_err(|_| ErrorKind::FileTooLarge.into())
}

impl ReadFile for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.storage.begin()?.files[&self.file].bytes.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.storage.begin()?;
        let bytes = &state.files[&self.file].bytes;
        let offset = size(offset)?;
        let range = offset..offset.saturating_add(buffer.len());
        let Some(bytes) = bytes.get(range) else { return Err(ErrorKind::UnexpectedEof.into()) };
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

impl redb::StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        ReadFile::len(self)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.edit(Edit::SetLen(size(len)?))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.edit(Edit::Write(size(offset)?, data.to_vec()))
    }
}

/// A new file.
#[derive(Debug)]
struct Created {
    handle: Handle,
    at: usize,
}

impl Write for Created {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.handle.edit(Edit::Write(self.at, bytes.to_vec()))?;
        self.at += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl WriteFile for Created {
    fn sync(&mut self) -> io::Result<()> {
        self.handle.sync()
    }
}

/// A lock.
#[derive(Debug)]
struct Held {
    storage: Simulated,
    path: String,
    kind: Lock,
}

impl Locked for Held {}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(holders) = self.storage.state().locks.get_mut(&self.path) {
            match self.kind {
                Lock::Shared => holders.shared -= 1,
                Lock::Exclusive => holders.exclusive = false,
            }
        }
        self.storage.0.unlocked.notify_all();
    }
}

#[cfg(test)]
mod tests;
