//! `RemoteOptions`: credentials, time limits and repetitions of a remote.

use std::fmt;
use std::time::Duration;

use crate::error::{Error, Result};

/// Settings of a [`Remote`](crate::Remote): credentials, time limits and repetitions.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use memsnap_store::RemoteOptions;
///
/// let options = RemoteOptions::new()
///     .set("endpoint", "http://127.0.0.1:3900")
///     .set("region", "garage")
///     .set("allow_http", "true")
///     .timeout(Duration::from_secs(20));
/// # let _ = options;
/// ```
#[derive(Clone)]
pub struct RemoteOptions {
    pub(super) timeout: Duration,
    pub(super) retries: usize,
    pub(super) retry_for: Duration,
    pub(super) lease_term: Duration,
    pub(super) settings: Vec<(String, String)>,
}

/// The longest term of a lease.
///
/// A lease with a longer term counts as damaged, because it would block collections.
pub(super) const MAX_LEASE_TERM: Duration = Duration::from_secs(24 * 60 * 60);

/// The shortest term of a lease: stores round the time of an object to seconds.
const MIN_LEASE_TERM: Duration = Duration::from_secs(10);

impl RemoteOptions {
    /// Returns the defaults: 60 s per request, up to 10 repetitions within 120 s, leases of 10 minutes.
    #[must_use]
    pub fn new() -> Self {
        Self {
            timeout: Duration::from_secs(60),
            retries: 10,
            retry_for: Duration::from_secs(120),
            lease_term: Duration::from_secs(600),
            settings: Vec::new(),
        }
    }

    /// Sets the longest time of one request, including its body. The default is 60 s.
    ///
    /// The longest requests transfer about 34 MiB. An attempt to connect ends after 5 s, or after this time if it is
    /// less.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how often a request is repeated after a temporary failure. The default is 10; 0 means never.
    ///
    /// The time between two attempts grows from 0.1 s to 15 s.
    #[must_use]
    pub fn retries(mut self, retries: usize) -> Self {
        self.retries = retries;
        self
    }

    /// Sets the time after the first attempt in which a request is repeated. The default is 120 s.
    ///
    /// A request fails at the latest after this time plus [`timeout`](Self::timeout).
    #[must_use]
    pub fn retry_for(mut self, time: Duration) -> Self {
        self.retry_for = time;
        self
    }

    /// Sets the term of the lease of a push. The default is 10 minutes.
    ///
    /// A push renews its lease while it works. If the process dies, the collection of garbage waits for the end of the
    /// lease. The term is at least 10 s and at most 24 h. Values outside of this range are moved into it.
    ///
    /// It has to be at least twice as long as a request may take, which is the sum of [`timeout`](Self::timeout) and
    /// [`retry_for`](Self::retry_for). Otherwise [`Remote::open`](crate::Remote::open) returns
    /// [`Error::Invalid`](crate::Error::Invalid).
    #[must_use]
    pub fn lease_term(mut self, term: Duration) -> Self {
        self.lease_term = term.clamp(MIN_LEASE_TERM, MAX_LEASE_TERM);
        self
    }

    /// Adds a setting of the object store, such as `region`, `endpoint`, `access_key_id` or `allow_http`.
    ///
    /// The keys are those of the crate `object_store`: its `AmazonS3ConfigKey`, `GoogleConfigKey`, `AzureConfigKey` and
    /// `ClientConfigKey`. A setting replaces the environment variable of the same name, and an earlier setting of the
    /// key.
    /// [`Remote::open`](crate::Remote::open) fails if the store does not know a key.
    #[must_use]
    pub fn set(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((key.into(), value.into()));
        self
    }

    /// Fails if a request may take more than half of the term of a lease.
    ///
    /// A lease is renewed before a request if less than two thirds of its term remain. So it is valid until the request
    /// has ended.
    pub(super) fn check(&self) -> Result<()> {
        if self.limit() <= self.lease_term / 2 {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "a request may take {:?} (`timeout` and `retry_for`), and leases end after {:?}: set `lease_term` to at \
             least twice the time of a request",
            self.limit(),
            self.lease_term
        )))
    }

    /// Returns the time after which an operation fails, whatever the store does.
    pub(super) fn limit(&self) -> Duration {
        self.timeout.saturating_add(self.retry_for)
    }
}

impl Default for RemoteOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RemoteOptions {
    /// Omits the values of the settings, because some are secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<&str> = self.settings.iter().map(|(key, _)| key.as_str()).collect();
        f.debug_struct("RemoteOptions")
            .field("timeout", &self.timeout)
            .field("retries", &self.retries)
            .field("retry_for", &self.retry_for)
            .field("lease_term", &self.lease_term)
            .field("settings", &keys)
            .finish()
    }
}
