//! A repository in an object store: objects, names, leases and marks.
//!
//! This layer writes, reads and lists objects. The layer above, which pushes and pulls, defines what packs, manifests,
//! places and snapshots contain. All objects are below a prefix of a bucket:
//!
//! ```text
//! config                               JSON: {"format": 1, "repository": "<32 hex digits>"}
//! packs/<64 hex>                       the same bytes as a local pack
//! manifests/<64 hex>                   the same bytes as a local manifest
//! places/<64 hex of a manifest>        where the blocks are that the manifest lists
//! names/<name>/<20 digits>             moves of a name, where the store honours conditions
//! names/<name>/<20 digits>-<16 hex>    moves of a name, where it ignores them
//! snapshots/<64 hex of a manifest>     the snapshot is listed
//! leases/<32 hex>                      a saver is at work
//! collectors/<32 hex>                  a collector is about to delete objects
//! garbage/<64 hex>                     the pack or manifest may be deleted after the grace time
//! probe/<32 hex>                       exists for a moment, to find out what the store does
//! ```

mod connect;
mod garbage;
#[cfg(any(test, feature = "testing"))]
#[allow(unreachable_pub, reason = "reachable with the feature `testing` only")]
pub mod kit;
pub(crate) mod lease;
mod names;
pub(crate) mod objects;
mod options;
#[cfg(test)]
mod tests;
mod upload;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use object_store::ObjectStore;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

pub use names::RemoteName;
pub(crate) use names::check as check_remote_name;
use objects::Objects;
pub use options::RemoteOptions;

use crate::error::{Error, Result};

/// The newest format that this version reads. It writes this format.
const FORMAT: u32 = 1;

/// The longest configuration that is read. Valid ones are shorter.
const MAX_CONFIG: u64 = 64 << 10;

/// A remote: a repository in Amazon S3, Google Cloud Storage, Azure, or another object store.
///
/// Stores with the protocol of S3 can be used too, and folders. A remote is given by a URL: `s3://bucket/prefix`,
/// `gs://bucket/prefix`, `az://container/prefix`, or `file:///folder`. Credentials and endpoints are set by the
/// environment variables of the crate `object_store`: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`,
/// `AWS_ENDPOINT`, `AWS_ALLOW_HTTP`, `GOOGLE_SERVICE_ACCOUNT`, `AZURE_STORAGE_ACCOUNT_NAME`,
/// `AZURE_STORAGE_ACCOUNT_KEY` and others, or by [`RemoteOptions::set`].
///
/// All functions block until the store has answered, or until the time limit of the [`RemoteOptions`] has passed. They
/// can be called in the threads of an asynchronous runtime, which they block.
///
/// The requests run on threads of their own. A child that was made by `fork` lacks these threads, so a call there would
/// wait for ever: open the remote in the child.
///
/// # Examples
///
/// ```
/// use memsnap_store::{Remote, RemoteOptions};
///
/// let folder = tempfile::tempdir()?;
/// let url = format!("file://{}/remote", folder.path().display());
/// # #[cfg(unix)] {
/// Remote::create(&url, &RemoteOptions::new())?;
///
/// let remote = Remote::open(&url, &RemoteOptions::new())?;
/// assert_eq!(remote.url(), url);
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Remote {
    objects: Arc<Objects>,
    lease_term: Duration,
    repository: String,
    /// Whether the store honours conditions. Empty until this is known.
    conditions: OnceLock<bool>,
}

/// The bytes and requests that were transferred to and from a [`Remote`].
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct Traffic {
    /// The bytes of objects that were sent, without headers and repetitions.
    pub sent: u64,
    /// The bytes of objects that were received, without headers, listings and repetitions.
    pub received: u64,
    /// The number of requests, without repetitions.
    pub requests: u64,
}

/// The object `config`.
#[derive(Serialize, Deserialize)]
struct Config {
    format: u32,
    repository: String,
}

/// The field of `config` that all formats have.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

impl Remote {
    /// Opens the repository at a URL. This only reads.
    ///
    /// # Errors
    ///
    /// - [`Error::NoRepository`] if there is no repository at the URL.
    /// - [`Error::Newer`] if a newer version made it; [`Error::Damaged`] if its configuration is damaged.
    /// - [`Error::Invalid`] if the URL or a setting cannot be used.
    /// - [`Error::Remote`] if the store does not answer or refuses the request.
    pub fn open(url: &str, options: &RemoteOptions) -> Result<Self> {
        let objects = connect(url, options)?;
        Self::existing(objects, options)?
            .ok_or_else(|| Error::NoRepository { place: url.to_owned(), missing: "config" })
    }

    /// Makes a new repository at a URL.
    ///
    /// # Errors
    ///
    /// [`Error::NotEmpty`] if there is a repository. Otherwise, those of [`open`](Self::open).
    pub fn create(url: &str, options: &RemoteOptions) -> Result<Self> {
        let objects = connect(url, options)?;
        match Self::existing(objects.clone(), options)? {
            None => Self::made(objects, options)?.ok_or_else(|| Error::NotEmpty { place: url.to_owned() }),
            Some(_) => Err(Error::NotEmpty { place: url.to_owned() }),
        }
    }

    /// Opens the repository at a URL, or makes a new one if there is none.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open), except that a missing repository is no error.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap_store::{Remote, RemoteOptions};
    ///
    /// // A store in memory, which is empty each time.
    /// let remote = Remote::open_or_create("memory:///", &RemoteOptions::new())?;
    /// assert!(remote.honours_conditions()?);
    /// # Ok::<(), memsnap_store::Error>(())
    /// ```
    pub fn open_or_create(url: &str, options: &RemoteOptions) -> Result<Self> {
        Self::existing_or_made(connect(url, options)?, options)
    }

    /// Opens a repository below `prefix` in any object store, or makes a new one if there is none.
    ///
    /// The number of repetitions and the settings in `options` have no effect, because the store is already configured.
    /// The requests run in a Tokio runtime with its own threads.
    ///
    /// # Errors
    ///
    /// Those of [`open_or_create`](Self::open_or_create).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::Arc;
    /// use memsnap_store::{Remote, RemoteOptions};
    /// use object_store::memory::InMemory;
    ///
    /// let store = Arc::new(InMemory::new());
    /// Remote::with_store(store.clone(), "snapshots", &RemoteOptions::new())?;
    /// let again = Remote::with_store(store, "snapshots", &RemoteOptions::new())?;
    /// assert_eq!(again.names()?, []);
    /// # Ok::<(), memsnap_store::Error>(())
    /// ```
    pub fn with_store(store: Arc<dyn ObjectStore>, prefix: &str, options: &RemoteOptions) -> Result<Self> {
        options.check()?;
        let prefix = Path::parse(prefix).map_err(|error| {
            Error::invalid(format!("{prefix:?} cannot be the prefix of a remote: {error}"))
        })?;
        let url = format!("{store}/{prefix}");
        let objects = Arc::new(Objects::new(store, prefix, url, options.limit())?);
        Self::existing_or_made(objects, options)
    }

    /// Returns the URL, or a description of the store that was passed to [`with_store`](Self::with_store).
    #[must_use]
    pub fn url(&self) -> &str {
        self.objects.url()
    }

    /// Returns whether the store honours the condition to create an object only if it does not exist.
    ///
    /// Some stores ignore this condition, for example Garage 2.5. In these, names are moved in another way that loses no
    /// snapshot; see [`RemoteName::also`]. The first call tests the store, and needs the permission to write and delete
    /// objects. Later calls return the same result without a request.
    ///
    /// # Errors
    ///
    /// [`Error::Remote`] if the store does not answer or refuses a request.
    pub fn honours_conditions(&self) -> Result<bool> {
        if let Some(known) = self.conditions.get() {
            return Ok(*known);
        }
        let found = probe(&self.objects)?;
        Ok(*self.conditions.get_or_init(|| found))
    }

    /// Returns the bytes and requests that were transferred since this remote was opened.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap_store::{Remote, RemoteOptions};
    ///
    /// let remote = Remote::create("memory:///", &RemoteOptions::new())?;
    /// let before = remote.traffic();
    /// remote.names()?;
    /// assert_eq!(remote.traffic().requests, before.requests + 1);
    /// # Ok::<(), memsnap_store::Error>(())
    /// ```
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.objects.traffic()
    }

    /// Returns the objects of the remote.
    pub(crate) fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Returns the id of the repository, 32 hexadecimal digits.
    pub(crate) fn repository(&self) -> &str {
        &self.repository
    }

    fn existing(objects: Arc<Objects>, options: &RemoteOptions) -> Result<Option<Self>> {
        let Some(bytes) = objects.get("config", MAX_CONFIG)? else { return Ok(None) };
        let object = || objects.full("config");
        let damaged = |error: serde_json::Error| Error::damaged(object(), error.to_string());
        let format: Format = serde_json::from_slice(&bytes).map_err(damaged)?;
        if format.format > FORMAT {
            return Err(Error::Newer { object: object(), found: format.format, known: FORMAT });
        }
        let config: Config = serde_json::from_slice(&bytes).map_err(damaged)?;
        let name = config.repository;
        if config.format != FORMAT || name.len() != 32 || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Error::damaged(object(), "its format or the id of its repository is not valid"));
        }
        Ok(Some(Self {
            objects,
            lease_term: options.lease_term,
            repository: name,
            conditions: OnceLock::new(),
        }))
    }

    /// Makes a repository. Returns `None` if another process made one at the same time.
    fn made(objects: Arc<Objects>, options: &RemoteOptions) -> Result<Option<Self>> {
        let conditional = probe(&objects)?;
        let config = Config { format: FORMAT, repository: random_hex() };
        let bytes = serde_json::to_vec(&config)
            .map_err(|error| Error::invalid(format!("cannot write {}: {error}", objects.full("config"))))?;
        if !conditional {
            objects.put("config", bytes)?;
        } else if !objects.create("config", bytes)? {
            return Ok(None);
        }
        // If the store ignores conditions, another process may have replaced the object.
        let remote = Self::existing(objects, options)?;
        if let Some(remote) = &remote {
            remote.conditions.get_or_init(|| conditional);
        }
        Ok(remote)
    }

    fn existing_or_made(objects: Arc<Objects>, options: &RemoteOptions) -> Result<Self> {
        if let Some(remote) = Self::existing(objects.clone(), options)? {
            return Ok(remote);
        }
        let made = match Self::made(objects.clone(), options)? {
            Some(remote) => Some(remote),
            None => Self::existing(objects.clone(), options)?,
        };
        made.ok_or_else(|| Error::NoRepository { place: objects.url().to_owned(), missing: "config" })
    }
}

fn connect(url: &str, options: &RemoteOptions) -> Result<Arc<Objects>> {
    options.check()?;
    let (store, prefix) = connect::connect(url, options)?;
    Ok(Arc::new(Objects::new(store, prefix, url.to_owned(), options.limit())?))
}

/// Tests whether the store honours the condition to create an object only if it does not exist.
fn probe(objects: &Objects) -> Result<bool> {
    let path = format!("probe/{}", random_hex());
    if objects.try_create(&path, &b"first"[..])?.is_none() {
        return Ok(false);
    }
    let second = objects.try_create(&path, &b"second"[..]);
    objects.delete(&path)?;
    Ok(second? == Some(false))
}

/// Returns 32 random hexadecimal digits.
fn random_hex() -> String {
    format!("{:032x}", rand::random::<u128>())
}
