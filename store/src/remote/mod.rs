//! A repository in an object store: objects, names, leases and marks.
//!
//! This layer knows how objects are written, read and found. What they contain is up to the layer above, which pushes
//! and pulls. Everything is below a prefix of a bucket:
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

/// The format that this version writes, and the newest that it reads.
const FORMAT: u32 = 1;

/// More than the length of a configuration.
const MAX_CONFIG: u64 = 64 << 10;

/// A repository in an object store: Amazon S3 and what speaks its protocol, Google Cloud Storage, Azure, or a folder.
///
/// It is used through URLs: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, `file:///folder`.
/// Credentials and endpoints come from the environment, as the crate `object_store` knows them: `AWS_ACCESS_KEY_ID`,
/// `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT`, `AWS_ALLOW_HTTP`, `GOOGLE_SERVICE_ACCOUNT`,
/// `AZURE_STORAGE_ACCOUNT_NAME`, `AZURE_STORAGE_ACCOUNT_KEY` and so on, or from [`RemoteOptions::set`].
///
/// All functions block until the store has answered or the time limit of the [`RemoteOptions`] has passed. They can also
/// be called in the threads of an asynchronous runtime, and block these.
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
    /// Whether the store honours conditions, once this is known.
    conditions: OnceLock<bool>,
}

/// How much was transferred to and from a [`Remote`].
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

/// The part of `config` that all formats have.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

impl Remote {
    /// Opens the repository that a URL names. It only reads.
    ///
    /// # Errors
    ///
    /// Returns [`Error::NoRepository`] if there is none, [`Error::Newer`] if a newer version made it, [`Error::Invalid`]
    /// if the URL or a setting cannot be used, and [`Error::Remote`] if the store does not answer or refuses.
    pub fn open(url: &str, options: &RemoteOptions) -> Result<Self> {
        let objects = connect(url, options)?;
        Self::existing(objects, options)?
            .ok_or_else(|| Error::NoRepository { place: url.to_owned(), missing: "config" })
    }

    /// Makes a new repository.
    ///
    /// # Errors
    ///
    /// Returns [`Error::NotEmpty`] if there is one already. Otherwise as [`open`](Self::open).
    pub fn create(url: &str, options: &RemoteOptions) -> Result<Self> {
        let objects = connect(url, options)?;
        match Self::existing(objects.clone(), options)? {
            None => Self::made(objects, options)?.ok_or_else(|| Error::NotEmpty { place: url.to_owned() }),
            Some(_) => Err(Error::NotEmpty { place: url.to_owned() }),
        }
    }

    /// Opens a repository, or makes a new one if there is none.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), except that it is no error if there is no repository.
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
    /// The number of repetitions and the settings of `options` have no effect, since the store is configured already. It
    /// is used on threads of its own, within a Tokio runtime.
    ///
    /// # Errors
    ///
    /// As [`open_or_create`](Self::open_or_create).
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

    /// Returns the URL, or a description of a store that was given to [`with_store`](Self::with_store).
    #[must_use]
    pub fn url(&self) -> &str {
        self.objects.url()
    }

    /// Returns whether the store creates an object only if there is none, when it is asked to.
    ///
    /// Some stores ignore this condition, Garage 2.5 for example. Names are moved in another way there, which loses
    /// nothing: see [`RemoteName::also`]. The first call finds out, and needs the right to write and to delete. Later
    /// calls return the same without a request.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Remote`] if the store does not answer or refuses to write.
    pub fn honours_conditions(&self) -> Result<bool> {
        if let Some(known) = self.conditions.get() {
            return Ok(*known);
        }
        let found = probe(&self.objects)?;
        Ok(*self.conditions.get_or_init(|| found))
    }

    /// Returns how much was transferred since this was opened.
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

    /// Returns the objects.
    pub(crate) fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Returns the 32 hexadecimal digits that name the repository.
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
            return Err(Error::damaged(object(), "it names no format or no repository"));
        }
        Ok(Some(Self {
            objects,
            lease_term: options.lease_term,
            repository: name,
            conditions: OnceLock::new(),
        }))
    }

    /// Makes a repository. Returns `None` if another process made one meanwhile.
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
        // Where conditions are ignored, another process may have replaced it.
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

/// Finds out whether the store creates an object only if there is none, when it is asked to.
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
