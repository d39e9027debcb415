//! Blocking requests for objects, with a time limit and a limit of the length.
//!
//! The requests are counted.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{GetOptions, GetRange, GetResult, ObjectStore, ObjectStoreExt, PutMode};
use tokio::runtime::Runtime;

use super::Traffic;
use crate::error::{Error, Result};

/// Ranges of one object are fetched by one request if the gap between them is at most this long.
const NEAR: u64 = 256 << 10;

/// The greatest number of objects in a page of a listing.
const PAGE: usize = 1000;

/// How many objects one request deletes at most. Stores take up to 1,000, but some delete them one after the other, and
/// a request that reaches its time limit is not repeated.
pub(crate) const DELETED_AT_ONCE: usize = 100;

/// The number of small objects that are fetched at a time.
const AT_ONCE: usize = 16;

/// The time that a drop waits for a request.
const DROP_WAIT: Duration = Duration::from_secs(5);

/// An object of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Object {
    /// The path below the prefix of the remote.
    pub(crate) path: String,
    /// The length in bytes.
    pub(crate) len: u64,
    /// The time when the object was written, by the clock of the store.
    ///
    /// In answers about one object, stores round it down to seconds. In listings, they often do not.
    pub(crate) modified: SystemTime,
}

/// The objects below a prefix of a store.
///
/// The requests run on a separate runtime, and the callers wait for channels. So the functions also work in worker
/// threads of another runtime, in which `block_on` panics.
pub(crate) struct Objects {
    pub(super) store: Arc<dyn ObjectStore>,
    url: String,
    /// `None` only during the drop.
    runtime: Option<Runtime>,
    limit: Duration,
    sent: AtomicU64,
    received: AtomicU64,
    requests: AtomicU64,
}

/// The result of a read.
enum Got {
    Bytes(Vec<u8>),
    Missing,
    /// The object is longer than the caller allows, or shorter than the range.
    OtherLength(u64),
}

impl Objects {
    /// Makes the objects below `prefix`. An operation fails if a request takes longer than `limit`.
    pub(super) fn new(
        store: Arc<dyn ObjectStore>,
        prefix: Path,
        url: String,
        limit: Duration,
    ) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("memsnap-remote")
            .enable_all()
            .build()
            .map_err(Error::file("cannot start the threads for", url.clone()))?;
        Ok(Self {
            store: Arc::new(PrefixStore::new(store, prefix)),
            url,
            runtime: Some(runtime),
            limit,
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Returns the URL of an object, for messages.
    pub(crate) fn full(&self, path: &str) -> String {
        format!("{}/{path}", self.url.trim_end_matches('/'))
    }

    pub(super) fn traffic(&self) -> Traffic {
        Traffic {
            sent: self.sent.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
        }
    }

    pub(super) fn count_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn count_requests(&self, requests: u64) {
        self.requests.fetch_add(requests, Ordering::Relaxed);
    }

    /// Starts a future on the runtime, with the time limit. The result is sent to the channel.
    pub(super) fn start<T: Send + 'static>(
        &self,
        future: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> mpsc::Receiver<object_store::Result<T>> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let limit = self.limit;
        let task = async move {
            let result = match tokio::time::timeout(limit, future).await {
                Ok(result) => result,
                Err(_) => Err(generic(format!("no answer within {limit:?}"))),
            };
            // This fails if the caller does not wait any more.
            let _ = sender.send(result);
        };
        if let Some(runtime) = &self.runtime {
            runtime.spawn(task);
        }
        receiver
    }

    /// Waits for the result of [`start`](Self::start).
    pub(super) fn wait<T>(
        &self,
        action: &'static str,
        path: &str,
        receiver: &mpsc::Receiver<object_store::Result<T>>,
    ) -> Result<T> {
        match receiver.recv() {
            Ok(result) => result.map_err(|error| self.error(action, path, error)),
            Err(_) => Err(self.error(action, path, generic("the request was abandoned"))),
        }
    }

    fn run<T: Send + 'static>(
        &self,
        action: &'static str,
        path: &str,
        future: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.wait(action, path, &self.start(future))
    }

    pub(super) fn error(&self, action: &'static str, path: &str, source: object_store::Error) -> Error {
        Error::Remote { action, object: self.full(path), source: Box::new(source) }
    }

    /// Returns the bytes of an object, or `None` if there is no such object.
    ///
    /// Fails if it has more than `max` bytes.
    pub(crate) fn get(&self, path: &str, max: u64) -> Result<Option<Vec<u8>>> {
        let objects = self.get_many(std::slice::from_ref(&path), max)?;
        Ok(objects.into_iter().next().flatten())
    }

    /// Returns the bytes of small objects, as [`get`](Self::get) does. Fetches several at a time.
    pub(crate) fn get_many<P: AsRef<str>>(&self, paths: &[P], max: u64) -> Result<Vec<Option<Vec<u8>>>> {
        let mut objects = Vec::new();
        for paths in paths.chunks(AT_ONCE) {
            self.count_requests(paths.len() as u64);
            let receivers: Vec<_> = paths
                .iter()
                .map(|path| self.start(read_whole(self.store.clone(), Path::from(path.as_ref()), max)))
                .collect();
            for (path, receiver) in paths.iter().zip(receivers) {
                let path = path.as_ref();
                objects.push(match self.wait("read", path, &receiver)? {
                    Got::Missing => None,
                    Got::Bytes(bytes) => {
                        self.received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                        Some(bytes)
                    }
                    Got::OtherLength(len) => {
                        let what = format!(
                            "it has at least {len} bytes, and an object of this kind has at most {max}"
                        );
                        return Err(Error::damaged(self.full(path), what));
                    }
                });
            }
        }
        Ok(objects)
    }

    /// Returns a range of the bytes of an object, or `None` if there is no such object.
    ///
    /// Fails if the object ends before the range does.
    pub(crate) fn get_range(&self, path: &str, range: Range<u64>) -> Result<Option<Vec<u8>>> {
        let ranges = self.get_ranges(path, std::slice::from_ref(&range))?;
        Ok(ranges.and_then(|ranges| ranges.into_iter().next()).map(Vec::from))
    }

    /// Returns ranges of the bytes of an object in the given order, or `None` if there is no such object.
    ///
    /// Ranges that are close to each other are fetched by one request. Fails if the object ends before a range does.
    pub(crate) fn get_ranges(&self, path: &str, ranges: &[Range<u64>]) -> Result<Option<Vec<Bytes>>> {
        let wanted: Vec<Range<u64>> = ranges.iter().filter(|range| !range.is_empty()).cloned().collect();
        let end = wanted.iter().map(|range| range.end).max().unwrap_or(0);
        if wanted.is_empty() {
            return Ok(self.head(path)?.map(|_| vec![Bytes::new(); ranges.len()]));
        }
        let (store, location) = (self.store.clone(), Path::from(path));
        let counts = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
        let fetched = {
            let counts = counts.clone();
            self.run("read", path, async move {
                let fetch = |range: Range<u64>| {
                    counts.0.fetch_add(1, Ordering::Relaxed);
                    counts.1.fetch_add(range.end - range.start, Ordering::Relaxed);
                    read_range(store.clone(), location.clone(), range)
                };
                match object_store::coalesce_ranges(&wanted, fetch, NEAR).await {
                    Err(object_store::Error::NotFound { .. }) => Ok(None),
                    result => result.map(Some),
                }
            })
        };
        self.count_requests(counts.0.load(Ordering::Relaxed));
        let parts = match fetched {
            Ok(None) => return Ok(None),
            Ok(Some(parts)) => parts,
            // Stores report a range after the end of an object in different ways.
            Err(error) => {
                return Err(match self.head(path) {
                    Ok(Some(object)) if object.len < end => Error::damaged(
                        self.full(path),
                        format!("it has {} bytes, and bytes up to {end} are needed", object.len),
                    ),
                    _ => error,
                });
            }
        };
        self.received.fetch_add(counts.1.load(Ordering::Relaxed), Ordering::Relaxed);
        let mut parts = parts.into_iter();
        let mut part = |range: &Range<u64>| if range.is_empty() { Some(Bytes::new()) } else { parts.next() };
        Ok(ranges.iter().map(&mut part).collect())
    }

    /// Tries to read one range of each of many objects, several at a time.
    ///
    /// `None` stands for an object that is missing or shorter, and for a request that failed. [`get_range`] says which.
    ///
    /// [`get_range`]: Self::get_range
    pub(crate) fn try_ranges(&self, wanted: &[(String, Range<u64>)]) -> Vec<Option<Vec<u8>>> {
        let mut found = Vec::with_capacity(wanted.len());
        for wanted in wanted.chunks(AT_ONCE) {
            self.count_requests(wanted.len() as u64);
            let start = |(path, range): &(String, Range<u64>)| {
                self.start(read_range(self.store.clone(), Path::from(path.as_str()), range.clone()))
            };
            let receivers: Vec<_> = wanted.iter().map(start).collect();
            for receiver in receivers {
                let bytes = receiver.recv().ok().and_then(Result::ok);
                self.received
                    .fetch_add(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64), Ordering::Relaxed);
                found.push(bytes.map(Vec::from));
            }
        }
        found
    }

    /// Returns the length and the time of an object, or `None` if there is no such object.
    pub(crate) fn head(&self, path: &str) -> Result<Option<Object>> {
        self.count_requests(1);
        let (store, location) = (self.store.clone(), Path::from(path));
        let found = self.run("look for", path, async move { found(store.head(&location).await) })?;
        found.map(|meta| self.object(&meta)).transpose()
    }

    /// Writes an object, or replaces it if it exists.
    pub(crate) fn put(&self, path: &str, bytes: impl Into<Bytes>) -> Result<()> {
        let bytes = bytes.into();
        self.count_requests(1);
        self.count_sent(bytes.len());
        let (store, location) = (self.store.clone(), Path::from(path));
        self.run("write", path, async move { store.put(&location, bytes.into()).await.map(drop) })
    }

    /// Writes an object unless it exists. Returns whether it was written.
    ///
    /// Some stores ignore the condition: see [`Remote::honours_conditions`](super::Remote::honours_conditions).
    pub(crate) fn create(&self, path: &str, bytes: impl Into<Bytes>) -> Result<bool> {
        self.try_create(path, bytes)?.ok_or_else(|| {
            self.error("create", path, generic("the store does not support conditional requests"))
        })
    }

    /// As [`create`](Self::create), but returns `None` if the client does not support conditions.
    pub(super) fn try_create(&self, path: &str, bytes: impl Into<Bytes>) -> Result<Option<bool>> {
        let bytes = bytes.into();
        self.count_requests(1);
        self.count_sent(bytes.len());
        let (store, location) = (self.store.clone(), Path::from(path));
        self.run("create", path, async move {
            match store.put_opts(&location, bytes.into(), PutMode::Create.into()).await {
                Ok(_) => Ok(Some(true)),
                Err(object_store::Error::AlreadyExists { .. }) => Ok(Some(false)),
                Err(
                    object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. },
                ) => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    /// Deletes an object. It is no error if there is no such object.
    pub(crate) fn delete(&self, path: &str) -> Result<()> {
        self.delete_many([path.to_owned()])
    }

    /// Deletes objects, up to 100 by one request where the store can.
    ///
    /// Objects that do not exist are no error.
    pub(crate) fn delete_many(&self, paths: impl IntoIterator<Item = String>) -> Result<()> {
        let mut paths = paths.into_iter();
        loop {
            let page: Vec<String> = paths.by_ref().take(DELETED_AT_ONCE).collect();
            let Some(first) = page.first().cloned() else { return Ok(()) };
            self.count_requests(1);
            self.run("delete", &first, delete_page(self.store.clone(), page))?;
        }
    }

    /// Deletes an object during a drop. Waits a few seconds at most, and ignores errors.
    pub(super) fn delete_on_drop(&self, path: &str) {
        self.count_requests(1);
        let receiver = self.start(delete_page(self.store.clone(), vec![path.to_owned()]));
        let _ = receiver.recv_timeout(DROP_WAIT);
    }

    /// Calls `visit` with each object below the folder `prefix`, in no order.
    ///
    /// The memory that this needs depends on the length of a page, not on the number of objects.
    pub(crate) fn list(&self, prefix: &str, mut visit: impl FnMut(Object) -> Result<()>) -> Result<()> {
        let mut rest: BoxStream<'static, _> = self.store.list(Some(&Path::from(prefix)));
        loop {
            self.count_requests(1);
            let (page, end, stream) = self.run("list", prefix, async move {
                let mut page = Vec::new();
                while page.len() < PAGE {
                    match rest.try_next().await? {
                        Some(meta) => page.push(meta),
                        None => return Ok((page, true, rest)),
                    }
                }
                Ok((page, false, rest))
            })?;
            rest = stream;
            for meta in &page {
                visit(self.object(meta)?)?;
            }
            if end {
                return Ok(());
            }
        }
    }

    fn object(&self, meta: &object_store::ObjectMeta) -> Result<Object> {
        let path = meta.location.to_string();
        let modified = u64::try_from(meta.last_modified.timestamp_millis())
            .ok()
            .and_then(|millis| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis)))
            .ok_or_else(|| Error::damaged(self.full(&path), format!("its time is {}", meta.last_modified)))?;
        Ok(Object { path, len: meta.size, modified })
    }
}

impl fmt::Debug for Objects {
    /// Omits the store, which may contain credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Objects").field("url", &self.url).field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        // Dropping a runtime waits for its threads, which panics in worker threads of another runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Returns an error of `object_store` for a problem that this layer found.
pub(super) fn generic(what: impl Into<String>) -> object_store::Error {
    object_store::Error::Generic { store: "remote", source: what.into().into() }
}

/// Maps a missing object to `None`.
fn found<T>(result: object_store::Result<T>) -> object_store::Result<Option<T>> {
    match result {
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        result => result.map(Some),
    }
}

async fn read_whole(store: Arc<dyn ObjectStore>, location: Path, max: u64) -> object_store::Result<Got> {
    let Some(result) = found(store.get_opts(&location, GetOptions::default()).await)? else {
        return Ok(Got::Missing);
    };
    if result.meta.size > max {
        return Ok(Got::OtherLength(result.meta.size));
    }
    let len = result.meta.size;
    read_body(result, len, max).await
}

/// Reads a range. Fails if the answer has another length.
async fn read_range(
    store: Arc<dyn ObjectStore>,
    location: Path,
    range: Range<u64>,
) -> object_store::Result<Bytes> {
    let len = range.end - range.start;
    let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
    let result = store.get_opts(&location, options).await?;
    if result.range != range {
        return Err(generic(format!("the answer has bytes {:?} instead of {range:?}", result.range)));
    }
    match read_body(result, len, len).await? {
        Got::Bytes(bytes) => Ok(bytes.into()),
        _ => Err(generic(format!("the answer has more than {len} bytes"))),
    }
}

/// Reads a body that should have `len` bytes.
///
/// Stops after `max` bytes. Allocates memory as the bytes arrive.
async fn read_body(result: GetResult, len: u64, max: u64) -> object_store::Result<Got> {
    let mut bytes = Vec::new();
    let mut body = result.into_stream();
    while let Some(chunk) = body.next().await {
        let chunk = chunk?;
        let total = bytes.len() as u64 + chunk.len() as u64;
        if total > max {
            return Ok(Got::OtherLength(total));
        }
        bytes.extend_from_slice(&chunk);
    }
    if bytes.len() as u64 != len {
        return Err(generic(format!("the answer ended after {} of {len} bytes", bytes.len())));
    }
    Ok(Got::Bytes(bytes))
}

async fn delete_page(store: Arc<dyn ObjectStore>, paths: Vec<String>) -> object_store::Result<()> {
    let locations = stream::iter(paths.into_iter().map(|path| Ok(Path::from(path)))).boxed();
    let mut results = store.delete_stream(locations);
    while let Some(result) = results.next().await {
        found(result)?;
    }
    Ok(())
}
