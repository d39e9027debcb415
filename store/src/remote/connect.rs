//! Makes the client of an object store from a URL, environment variables and options.

use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path;
use object_store::{BackoffConfig, ObjectStore, ObjectStoreScheme, RetryConfig};
use url::Url;

use super::options::RemoteOptions;
use crate::error::{Error, Result};

/// The longest time of an attempt to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes a client with the builder of a store.
///
/// Ignores unknown environment variables, which may belong to other programs. Unknown settings are errors.
macro_rules! build {
    ($builder:ty, $prefix:literal, $url:expr, $options:expr) => {{
        let mut builder = <$builder>::new().with_url($url.as_str()).with_retry(retry($options));
        for (key, value) in environment($prefix) {
            if let Ok(key) = key.parse() {
                builder = builder.with_config(key, value);
            }
        }
        for (key, value) in time_limits($options).iter().chain(&$options.settings) {
            match key.to_ascii_lowercase().parse() {
                Ok(key) => builder = builder.with_config(key, value),
                Err(_) => return Err(unknown_setting(key, $url)),
            }
        }
        Arc::new(builder.build().map_err(|error| refused($url, &error))?) as Arc<dyn ObjectStore>
    }};
}

/// Returns the store of a URL, and the path of the URL in the store.
pub(super) fn connect(url: &str, options: &RemoteOptions) -> Result<(Arc<dyn ObjectStore>, Path)> {
    let url = &Url::parse(url).map_err(|error| refused_text(url, &error))?;
    if url.password().is_some() {
        // URLs are printed in messages and logs.
        return Err(Error::invalid(
            "the URL of a remote must not contain a password: use `RemoteOptions::set` or the environment",
        ));
    }
    let (scheme, path) = ObjectStoreScheme::parse(url).map_err(|error| refused(url, &error))?;
    let local = matches!(scheme, ObjectStoreScheme::Local | ObjectStoreScheme::Memory);
    if let (true, Some((key, _))) = (local, options.settings.first()) {
        return Err(unknown_setting(key, url));
    }
    let store = match scheme {
        // With `fsync`, a push is durable when it returns.
        ObjectStoreScheme::Local => {
            Arc::new(object_store::local::LocalFileSystem::new().with_fsync(true)) as Arc<dyn ObjectStore>
        }
        ObjectStoreScheme::Memory => Arc::new(object_store::memory::InMemory::new()),
        ObjectStoreScheme::AmazonS3 => build!(object_store::aws::AmazonS3Builder, "AWS_", url, options),
        ObjectStoreScheme::GoogleCloudStorage => {
            build!(object_store::gcp::GoogleCloudStorageBuilder, "GOOGLE_", url, options)
        }
        ObjectStoreScheme::MicrosoftAzure => {
            build!(object_store::azure::MicrosoftAzureBuilder, "AZURE_", url, options)
        }
        _ => return Err(refused(url, &"stores with this scheme are not supported")),
    };
    Ok((store, path))
}

/// Returns the environment variables that begin with `prefix`, with their names in lower case.
fn environment(prefix: &'static str) -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(move |(key, value)| {
        let key = key.into_string().ok().filter(|key| key.starts_with(prefix))?;
        Some((key.to_ascii_lowercase(), value.into_string().ok()?))
    })
}

/// Returns the time limits of the options as settings.
fn time_limits(options: &RemoteOptions) -> [(String, String); 2] {
    let text = |time: Duration| format!("{}ms", time.as_millis());
    [
        ("timeout".to_owned(), text(options.timeout)),
        ("connect_timeout".to_owned(), text(CONNECT_TIMEOUT.min(options.timeout))),
    ]
}

fn retry(options: &RemoteOptions) -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: options.retries,
        retry_timeout: options.retry_for,
    }
}

fn unknown_setting(key: &str, url: &Url) -> Error {
    Error::invalid(format!(
        "the store of {url} has no setting {key:?}; see the documentation of `RemoteOptions::set`"
    ))
}

fn refused(url: &Url, why: &dyn std::fmt::Display) -> Error {
    refused_text(url.as_str(), why)
}

fn refused_text(url: &str, why: &dyn std::fmt::Display) -> Error {
    Error::invalid(format!(
        "cannot use {url} as a remote: {why}; use a URL such as s3://bucket/prefix, gs://bucket/prefix, \
         az://container/prefix or file:///folder"
    ))
}
