//! `Error`: the errors of the store.

use std::io;
use std::path::PathBuf;

use crate::id::Id;

/// The result of an operation of the store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the store.
///
/// Its message names the operation or the object, and says what to do. It converts to [`io::Error`], so that functions
/// that return `io::Result` can use `?`.
///
/// # Examples
///
/// ```
/// use memsnap_store::{Error, Repository};
///
/// let error = Repository::open("/no/such/folder").unwrap_err();
/// assert!(matches!(error, Error::NoRepository { .. }));
/// assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::NotFound);
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The folder or the object store contains no repository.
    #[error(
        "{place} is not a repository: it has no {missing}; make one with `memsnap init` or `Repository::create`"
    )]
    NoRepository {
        /// The folder or URL.
        place: String,
        /// The object that is missing.
        missing: &'static str,
    },
    /// The folder or the object store is not empty, so no repository can be made there.
    #[error("cannot make a repository in {place}: it is not empty; use an empty or a new folder or prefix")]
    NotEmpty {
        /// The folder or URL.
        place: String,
    },
    /// There is no snapshot, name or object with this reference.
    #[error("there is no {kind} {reference}")]
    NotFound {
        /// The kind of object that was looked for.
        kind: &'static str,
        /// The name, id or path that was looked for.
        reference: String,
    },
    /// More than one snapshot has an id that begins with these digits.
    #[error("{prefix} is ambiguous: {} snapshots have ids that begin with it, such as {} and {}; give more digits",
        .candidates.len(), .candidates[0].short(), .candidates[1].short())]
    Ambiguous {
        /// The digits that were given.
        prefix: String,
        /// The snapshots whose ids begin with the digits, at least two.
        candidates: Vec<Id>,
    },
    /// An argument is not valid.
    #[error("{what}")]
    Invalid {
        /// The message: which argument, and why it is not valid.
        what: String,
    },
    /// An object is damaged or missing: its bytes do not agree with its hash, its checksum or the format.
    #[error(
        "{object} is damaged: {what}; list all damage with `memsnap verify`, rebuild the index with `memsnap repair`"
    )]
    Damaged {
        /// The object: its kind and its path or id.
        object: String,
        /// What is wrong.
        what: String,
    },
    /// An object was written by a newer version of this crate.
    #[error(
        "{object} has format {found}, and this version reads formats up to {known}: use a newer version of memsnap"
    )]
    Newer {
        /// The object: its path, its URL or its id.
        object: String,
        /// The format of the object.
        found: u32,
        /// The newest format that this version reads.
        known: u32,
    },
    /// An object belongs to another repository.
    #[error(
        "{object} belongs to the repository {found}, not to {expected}: put back its own file, or rebuild the index with `memsnap repair`"
    )]
    Mixed {
        /// The object.
        object: String,
        /// The repository that it belongs to.
        found: String,
        /// The repository that was opened.
        expected: String,
    },
    /// Another thread, process or machine uses the repository, and did not finish in time.
    #[error("{place} is in use: waited {seconds} s for {lock}; try again later")]
    Busy {
        /// The folder or URL.
        place: String,
        /// What was waited for: a lock and the operations that may hold it, or the end of an operation.
        lock: &'static str,
        /// How long, in seconds.
        seconds: u64,
    },
    /// Another process or machine moved the same name in a remote at the same time.
    #[error("cannot move the name {name}: another process moved it at the same time; try again")]
    Conflict {
        /// The name.
        name: String,
    },
    /// The lease of a push or a collection ended before it was renewed.
    ///
    /// Objects may have been deleted since.
    #[error(
        "the lease {lease} was not renewed within {seconds} s and has ended: start again; a push uses what was already sent"
    )]
    Expired {
        /// The URL of the object with the lease.
        lease: String,
        /// The term of the lease, in seconds.
        seconds: u64,
    },
    /// A file operation failed.
    #[error("{action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// An operation on memory, or on the bytes to save, failed.
    #[error("{action}: {source}")]
    Memory {
        /// What was tried.
        action: &'static str,
        /// The error of the system.
        source: io::Error,
    },
    /// An operation on the index failed.
    #[error("cannot {action} index.redb: {source}")]
    Index {
        /// What was tried, as a verb.
        action: &'static str,
        /// The error of the database.
        source: Box<redb::Error>,
    },
    /// A request to an object store failed, also when it was repeated.
    #[cfg(feature = "remote")]
    #[error("cannot {action} {object}: {source}; {}", what_to_do(.source))]
    Remote {
        /// What was tried, as a verb.
        action: &'static str,
        /// The object or URL.
        object: String,
        /// The error of the object store.
        source: Box<object_store::Error>,
    },
}

impl Error {
    /// Returns an error for a damaged object.
    pub(crate) fn damaged(object: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Damaged { object: object.into(), what: what.into() }
    }

    /// Returns an error for an argument that is not valid.
    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid { what: what.into() }
    }

    /// Returns a function that adds the action and the path to the error of a file operation.
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { action, path: path.into(), source }
    }

    /// Returns a function that adds the action to the error of an operation on memory.
    pub(crate) fn memory(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Memory { action, source }
    }

    /// Returns the kind of [`io::Error`] that this error converts to.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::NoRepository { .. } | Self::NotFound { .. } => io::ErrorKind::NotFound,
            Self::NotEmpty { .. } => io::ErrorKind::AlreadyExists,
            Self::Ambiguous { .. } | Self::Invalid { .. } => io::ErrorKind::InvalidInput,
            Self::Damaged { .. } | Self::Mixed { .. } => io::ErrorKind::InvalidData,
            Self::Newer { .. } => io::ErrorKind::Unsupported,
            Self::Busy { .. } | Self::Conflict { .. } | Self::Expired { .. } => io::ErrorKind::ResourceBusy,
            Self::File { source, .. } | Self::Memory { source, .. } => source.kind(),
            Self::Index { source, .. } => match &**source {
                redb::Error::Io(source) => source.kind(),
                _ => io::ErrorKind::Other,
            },
            #[cfg(feature = "remote")]
            Self::Remote { source, .. } => match &**source {
                object_store::Error::NotFound { .. } => io::ErrorKind::NotFound,
                object_store::Error::PermissionDenied { .. }
                | object_store::Error::Unauthenticated { .. } => io::ErrorKind::PermissionDenied,
                _ => io::ErrorKind::Other,
            },
        }
    }
}

/// Returns advice for a failed request to an object store.
#[cfg(feature = "remote")]
fn what_to_do(source: &object_store::Error) -> &'static str {
    match source {
        object_store::Error::NotFound { .. } => "check that the bucket exists",
        object_store::Error::PermissionDenied { .. } => "check the permissions of the credentials",
        object_store::Error::Unauthenticated { .. } => "check the credentials",
        _ => "check the connection and the settings, then try again",
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error)
    }
}
