//! `Error`: what can go wrong, and with which object.

use std::io;
use std::path::PathBuf;

use crate::id::Id;

/// The result of an operation of the store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the store. It names the object that is concerned, and what to do.
///
/// It converts to [`io::Error`], so that functions that return `io::Result` can use `?`.
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
        "{place} is not a repository: it has no {missing}; `memsnap init` or `Repository::create` makes one"
    )]
    NoRepository {
        /// The folder or URL.
        place: String,
        /// The object that is missing.
        missing: &'static str,
    },
    /// The folder is in use already.
    #[error("cannot make a repository in {place}: it is not empty")]
    NotEmpty {
        /// The folder or URL.
        place: String,
    },
    /// No snapshot, name, manifest or pack is known by this reference.
    #[error("there is no {kind} {reference}")]
    NotFound {
        /// What was looked for.
        kind: &'static str,
        /// How it was named.
        reference: String,
    },
    /// More than one snapshot has an id that begins with these digits.
    #[error("{prefix} is ambiguous: {} snapshots have ids that begin with it, such as {} and {}; give more digits",
        .candidates.len(), .candidates[0].short(), .candidates[1].short())]
    Ambiguous {
        /// The digits.
        prefix: String,
        /// The snapshots, at least two.
        candidates: Vec<Id>,
    },
    /// An argument is not valid.
    #[error("{what}")]
    Invalid {
        /// Which argument, and why.
        what: String,
    },
    /// An object is damaged: its bytes are not what its name or its checksum promises.
    #[error(
        "{object} is damaged: {what}; `memsnap verify` lists all damage, `memsnap repair` rebuilds the index"
    )]
    Damaged {
        /// The object: its kind and its path or id.
        object: String,
        /// What is wrong.
        what: String,
    },
    /// The repository was made by a newer version.
    #[error(
        "{object} has format {found}, and this version knows formats up to {known}: use a newer version of memsnap"
    )]
    Newer {
        /// The object with the version.
        object: String,
        /// The format of the repository.
        found: u32,
        /// The newest format that this version knows.
        known: u32,
    },
    /// Two objects belong to different repositories.
    #[error(
        "{object} belongs to the repository {found}, not to {expected}: files of two repositories were mixed up"
    )]
    Mixed {
        /// The object.
        object: String,
        /// The repository that it belongs to.
        found: String,
        /// The repository that was opened.
        expected: String,
    },
    /// Another process or thread uses the repository, and did not finish in time.
    #[error("{place} is in use: waited {seconds} s for {lock}; try again later")]
    Busy {
        /// The folder or URL.
        place: String,
        /// What was waited for.
        lock: &'static str,
        /// How long, in seconds.
        seconds: u64,
    },
    /// Another machine moved the same name at the same time, or a name is not what the caller expected.
    #[error("the name {name} was moved by another process at the same time: try again")]
    Conflict {
        /// The name.
        name: String,
    },
    /// The lease of a saver ended before it was renewed, so that packs it relied on may have been deleted.
    #[error(
        "{lease} was not renewed for {seconds} s and has ended: start again, and what was sent already is used"
    )]
    Expired {
        /// The object.
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
    /// An operation on memory failed.
    #[error("{action}: {source}")]
    Memory {
        /// What was tried.
        action: &'static str,
        /// The error of the system.
        source: io::Error,
    },
    /// An operation on the index failed.
    #[error("{action} index.redb: {source}")]
    Index {
        /// What was tried.
        action: &'static str,
        /// The error of the database.
        source: Box<redb::Error>,
    },
    /// A request to an object store failed, after it was repeated.
    #[cfg(feature = "remote")]
    #[error("{action} {object}: {source}; {}", what_to_do(.source))]
    Remote {
        /// What was tried.
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

/// Returns what to do after a request to an object store failed.
#[cfg(feature = "remote")]
fn what_to_do(source: &object_store::Error) -> &'static str {
    match source {
        object_store::Error::NotFound { .. } => "check that the bucket exists",
        object_store::Error::PermissionDenied { .. } => "check what the credentials allow",
        object_store::Error::Unauthenticated { .. } => "check the credentials",
        _ => "check the connection and the settings, then try again",
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error)
    }
}
