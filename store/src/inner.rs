//! `Inner`: the files, the locks and the index of a repository, which all operations use.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::id::{Id, Reference};
use crate::index::{self, Index, ManifestRow, Reader, Writer};
use crate::storage::folder::is_read_only;
use crate::storage::{DatabaseMode, Lock, Locked, Storage};

/// The lock of a writer: of a save, a removal, a change of a name, a collection, and of each transaction of a pull.
pub(crate) const WRITER: &str = "lock";

/// The lock of the next writer. It is held while waiting for [`WRITER`].
///
/// Without it, a process that writes again and again would unlock and lock [`WRITER`] between two attempts of a process
/// that waits.
pub(crate) const WRITER_TURN: &str = "lock.turn";

/// The lock of the files. A push, a pull and a verification hold it shared, so that no file that they read or have
/// written is deleted. A collection and a repair hold it exclusively.
///
/// An operation that holds this lock and that of the writer has locked this one first.
pub(crate) const FILES: &str = "files.lock";

/// What the error of a process says that waited for [`WRITER`].
const WRITER_HOLDERS: &str = "`lock`, which a save, a collection or another writer holds";

/// What the error of a process says that waited for [`INDEX`].
const INDEX_HOLDERS: &str = "`index.lock`, which another reader or writer of the index holds";

/// The lock of the index. It is held while the index is open.
pub(crate) const INDEX: &str = "index.lock";

/// The lock of the next process to use the index.
///
/// It is held while waiting for [`INDEX`], so that readers that begin later wait behind a writer. Without it, readers
/// that overlap could make a writer wait for ever.
pub(crate) const TURN: &str = "index.turn";

/// The default time that an operation waits for a lock.
pub(crate) const WAIT: Duration = Duration::from_secs(60);

/// The smallest number of digits of an id that is accepted.
const SHORTEST: usize = 4;

/// An open repository.
#[derive(Clone, Debug)]
pub(crate) struct Inner {
    pub(crate) storage: Arc<dyn Storage>,
    /// The id of the repository.
    pub(crate) id: String,
    pub(crate) wait: Duration,
    /// When a long operation began, or `None`. See [`patient`](Self::patient).
    pub(crate) began: Option<Instant>,
}

impl Inner {
    /// Returns the path of a file, for messages and for direct access.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.storage.path(path)
    }

    /// Returns this for an operation that begins now and may run for a long time.
    ///
    /// It waits for a lock for as long as it has run, if that is longer than the time that the user has set. Otherwise,
    /// a long save would make a pull lose what it has received.
    pub(crate) fn patient(&self) -> Self {
        Self { began: Some(Instant::now()), ..self.clone() }
    }

    /// Returns how long the operation waits for a lock now.
    fn patience(&self) -> Duration {
        self.began.map_or(self.wait, |began| self.wait.max(began.elapsed()))
    }

    /// Locks the repository against other writers, in this process and in others.
    pub(crate) fn lock_writer(&self) -> Result<Box<dyn Locked>> {
        self.lock_in_turn(WRITER_TURN, WRITER, Lock::Exclusive, WRITER_HOLDERS)
    }

    /// Makes collections and repairs wait, so that the packs and manifests in the index stay there.
    ///
    /// Others may add packs and manifests meanwhile, and new places of blocks may replace those in the index. The numbers
    /// of packs stay the same.
    pub(crate) fn keep_files(&self) -> Result<Box<dyn Locked>> {
        match self.lock(FILES, Lock::Shared, "`files.lock`, which a collection or a repair holds") {
            // A version before this lock made the repository, and this process cannot make the file. Collections and
            // repairs of all versions also hold the lock of the writer. The cost is that saves wait, too.
            Err(Error::File { source, .. }) if is_read_only(&source) && !self.exists(FILES) => {
                self.lock(WRITER, Lock::Shared, WRITER_HOLDERS)
            }
            locked => locked,
        }
    }

    fn exists(&self, path: &str) -> bool {
        !self.storage.open(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
    }

    /// Locks the files against pushes, pulls, verifications, and other collections and repairs.
    pub(crate) fn lock_files(&self) -> Result<Box<dyn Locked>> {
        let what = "`files.lock`, which a push, a pull, a verification, another collection or a repair holds";
        self.lock(FILES, Lock::Exclusive, what)
    }

    /// Calls `read` with the index, which is open and locked against writers meanwhile.
    ///
    /// `read` must not call this function again: if a writer waits for the lock, the inner call would wait for the
    /// writer, and the writer for the outer call.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Reader) -> Result<T>) -> Result<T> {
        let _lock = self.lock_in_turn(TURN, INDEX, Lock::Shared, INDEX_HOLDERS)?;
        let index = Index::open(&*self.storage, index::PATH, DatabaseMode::Read, &self.id)?;
        read(&index.read()?)
    }

    /// Changes the index in one transaction, which is durable when this returns.
    ///
    /// After an error, the index has not changed, with one exception: if the last sync failed, the change may exist,
    /// and the next commit makes it durable.
    ///
    /// The caller holds the lock of the writer.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Writer<'_>) -> Result<T>) -> Result<T> {
        let _lock = self.lock_index()?;
        let index = Index::open(&*self.storage, index::PATH, DatabaseMode::Write, &self.id)?;
        let mut writer = index.write()?;
        let result = change(&mut writer)?;
        writer.commit()?;
        Ok(result)
    }

    /// Locks the index against all readers and writers.
    pub(crate) fn lock_index(&self) -> Result<Box<dyn Locked>> {
        self.lock_in_turn(TURN, INDEX, Lock::Exclusive, INDEX_HOLDERS)
    }

    /// Locks a file, and holds the lock `turn` while waiting for it. So only one process waits for the file at a time, and
    /// those that come later wait for `turn`.
    ///
    /// Whoever holds `turn` waits for nothing but the file, so this adds no deadlock.
    fn lock_in_turn(
        &self,
        turn: &str,
        path: &str,
        kind: Lock,
        what: &'static str,
    ) -> Result<Box<dyn Locked>> {
        let _turn = self.lock(turn, kind, what)?;
        self.lock(path, kind, what)
    }

    /// Locks a file of the repository. `what` is what an error says was waited for.
    pub(crate) fn lock(&self, path: &str, kind: Lock, what: &'static str) -> Result<Box<dyn Locked>> {
        let wait = self.patience();
        let locked = self.storage.lock(path, kind, wait);
        locked.map_err(Error::file("cannot lock", self.path(path)))?.ok_or_else(|| Error::Busy {
            place: self.path("").display().to_string(),
            lock: what,
            seconds: wait.as_secs(),
        })
    }

    /// Returns the id of a listed snapshot, and its row in the index.
    pub(crate) fn resolve(&self, reference: &Reference) -> Result<(Id, ManifestRow)> {
        self.read(|index| resolve(index, reference))
    }

    /// Returns the error to report if reading a snapshot failed with `error`.
    ///
    /// If the snapshot was removed and collected meanwhile, this is that there is no such snapshot.
    pub(crate) fn or_removed(&self, id: Id, error: Error) -> Error {
        let may_be_gone = match &error {
            Error::Damaged { .. } => true,
            Error::File { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            _ => false,
        };
        match self.resolve(&id.into()) {
            Err(gone @ Error::NotFound { .. }) if may_be_gone => gone,
            _ => error,
        }
    }

    /// Returns a new path for a file that is being written.
    pub(crate) fn temporary(&self, end: &str) -> String {
        format!("tmp/{:032x}.{end}", rand::random::<u128>())
    }
}

/// Whether a file of `tmp` has a name that [`Inner::temporary`] makes.
pub(crate) fn is_temporary(name: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    name.split_once('.').is_some_and(|(digits, end)| {
        digits.len() == 32
            && digits.bytes().all(is_digit)
            && !end.is_empty()
            && end.bytes().all(|byte| byte.is_ascii_lowercase())
    })
}

/// Returns the id of a listed snapshot, and its row in the index.
pub(crate) fn resolve(index: &Reader, reference: &Reference) -> Result<(Id, ManifestRow)> {
    let unknown = || Error::NotFound { kind: "snapshot", reference: reference.to_string() };
    let listed = |id: Id| Ok(index.manifest(&id)?.filter(|row| row.listed).map(|row| (id, row)));
    let text = match reference {
        Reference::Id(id) => return listed(*id)?.ok_or_else(unknown),
        Reference::Text(text) => text,
    };
    if let Some(id) = index.name(text)? {
        return listed(id)?
            .ok_or_else(|| Error::damaged("index.redb", format!("the name {text} stands for no snapshot")));
    }
    let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit()) && (SHORTEST..=64).contains(&text.len());
    if !digits {
        return Err(unknown());
    }
    let (first, last) = (format!("{text:0<64}").parse()?, format!("{text:f<64}").parse()?);
    let mut found = Vec::new();
    for id in index.manifests_from(&first, &last)? {
        found.extend(listed(id)?);
    }
    match found.len() {
        0 | 1 => found.pop().ok_or_else(unknown),
        _ => Err(Error::Ambiguous {
            prefix: text.clone(),
            candidates: found.iter().map(|found| found.0).collect(),
        }),
    }
}

/// Returns the current time in milliseconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the time that is `milliseconds` after 1970.
pub(crate) fn time(milliseconds: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(milliseconds)).unwrap_or(UNIX_EPOCH)
}
