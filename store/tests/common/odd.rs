//! `Odd`: a store in memory that loses the connection, ignores conditions, fails, is slow, or returns wrong lengths.
//!
//! Its clock can be set forward. It calls functions of a test before it writes an object, and remembers what it wrote and
//! deleted. The unit tests of remotes include this file too.
#![allow(dead_code, reason = "each test uses a part")]

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// The behaviour of the store.
#[derive(Debug)]
pub(crate) enum Odds {
    /// It is an ordinary store.
    None,
    /// Objects are overwritten, whatever the condition.
    IgnoresConditions,
    /// The client does not support conditional requests.
    LacksConditions,
    /// Each request for each object fails once.
    FailsOnce(Mutex<HashSet<String>>),
    /// The request with this number fails, before or after it had its effect.
    Fails { number: usize, after: bool },
    /// The connection is lost after this many requests.
    LosesConnection { after: usize },
    /// Each answer takes this long.
    Slow(Duration),
    /// Objects claim to have this length, and have no end.
    Endless { claimed: u64 },
    /// Answers end after this many bytes.
    Cut(usize),
    /// Each request panics.
    Panics,
}

pub(crate) struct Odd {
    pub(crate) inner: Arc<InMemory>,
    odds: Odds,
    requests: AtomicUsize,
    /// The objects that were written, in this order. Those that were deleted begin with `delete `.
    written: Mutex<Vec<String>>,
    /// By how much the clock is ahead of that of this machine.
    ahead: Mutex<Duration>,
    /// By how much it was ahead when an object was written.
    stamps: Mutex<HashMap<String, Duration>>,
    /// What is called before the next object is written whose path begins so.
    hooks: Mutex<Vec<(String, Hook)>>,
    /// How long the deletion of a page of packs takes.
    delete_time: Mutex<Duration>,
}

type Hook = Box<dyn FnOnce() + Send>;
type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

impl Odd {
    pub(crate) fn new(odds: Odds) -> Arc<Self> {
        Self::with(Arc::default(), odds)
    }

    /// Returns a store with the objects of `inner`.
    pub(crate) fn with(inner: Arc<InMemory>, odds: Odds) -> Arc<Self> {
        Arc::new(Self {
            inner,
            odds,
            requests: AtomicUsize::new(0),
            written: Mutex::default(),
            ahead: Mutex::default(),
            stamps: Mutex::default(),
            hooks: Mutex::default(),
            delete_time: Mutex::default(),
        })
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn written(&self) -> Vec<String> {
        self.written.lock().unwrap().clone()
    }

    /// Sets the clock of the store forward.
    pub(crate) fn advance(&self, time: Duration) {
        *self.ahead.lock().unwrap() += time;
    }

    /// Makes each deletion of a page of packs take this long.
    pub(crate) fn delete_slowly(&self, time: Duration) {
        *self.delete_time.lock().unwrap() = time;
    }

    /// Calls a function once, before the next object is written whose path begins with `path`.
    pub(crate) fn before(&self, path: impl Into<String>, hook: impl FnOnce() + Send + 'static) {
        self.hooks.lock().unwrap().push((path.into(), Box::new(hook)));
    }

    /// Counts a request. Fails if it does not arrive.
    fn count(&self) -> Result<usize> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        match self.odds {
            Odds::LosesConnection { after } if number >= after => Err(fault("the connection was lost")),
            Odds::Fails { number: failing, after: false } if failing == number => Err(fault("injected")),
            _ => Ok(number),
        }
    }

    /// Counts a listing or a deletion. These have no effect before they fail.
    fn count_stream(&self) -> Result<()> {
        let number = self.count()?;
        match self.odds {
            Odds::Fails { number: failing, .. } if failing == number => Err(fault("injected")),
            _ => Ok(()),
        }
    }

    /// Runs a request with the behaviour that all requests have.
    async fn request<T>(&self, mut what: String, request: impl Future<Output = Result<T>>) -> Result<T> {
        let number = self.count()?;
        if let Some((before, _random)) = what.split_once("/probe/") {
            what = before.to_owned();
        }
        match &self.odds {
            Odds::FailsOnce(seen) if seen.lock().unwrap().insert(what) => return Err(fault("injected")),
            Odds::Fails { number: failing, .. } if *failing == number => {
                let _lost = request.await;
                return Err(fault("injected"));
            }
            Odds::Slow(time) => tokio::time::sleep(*time).await,
            Odds::Panics => panic!("injected"),
            _ => {}
        }
        request.await
    }

    /// Notes that an object is about to be written.
    fn write(&self, path: &Path) {
        let mut hooks = self.hooks.lock().unwrap();
        let hook = hooks.iter().position(|(start, _)| path.as_ref().starts_with(start));
        let hook = hook.map(|number| hooks.remove(number).1);
        // The function may use the store.
        drop(hooks);
        if let Some(hook) = hook {
            hook();
        }
        self.written.lock().unwrap().push(path.to_string());
        self.stamps.lock().unwrap().insert(path.to_string(), *self.ahead.lock().unwrap());
    }

    /// Gives an object the time of the clock of this store.
    fn stamp(&self, mut meta: ObjectMeta) -> ObjectMeta {
        if let Some(ahead) = self.stamps.lock().unwrap().get(meta.location.as_ref()) {
            meta.last_modified += *ahead;
        }
        meta
    }

    fn alter(&self, mut result: GetResult) -> GetResult {
        result.meta = self.stamp(result.meta);
        match &self.odds {
            Odds::Endless { claimed } => {
                result.meta.size = *claimed;
                let chunks = stream::repeat_with(|| Ok(Bytes::from(vec![7; 1000])));
                result.payload = GetResultPayload::Stream(chunks.boxed());
            }
            Odds::Cut(len) => {
                let len = *len;
                let meta = result.meta.clone();
                let (range, attributes) = (result.range.clone(), result.attributes.clone());
                let cut = result.into_stream().map_ok(move |chunk| chunk.slice(..len.min(chunk.len())));
                return GetResult {
                    payload: GetResultPayload::Stream(cut.boxed()),
                    meta,
                    range,
                    attributes,
                    extensions: Default::default(),
                };
            }
            _ => {}
        }
        result
    }
}

fn fault(what: &str) -> Error {
    Error::Generic { store: "odd", source: what.into() }
}

impl fmt::Debug for Odd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Odd")
    }
}

impl fmt::Display for Odd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("odd")
    }
}

// The form that the macro `async_trait` gives the functions of the trait.
impl ObjectStore for Odd {
    fn put_opts<'a, 'b, 'c>(
        &'a self,
        path: &'b Path,
        payload: PutPayload,
        mut options: PutOptions,
    ) -> Answer<'c, PutResult>
    where
        'a: 'c,
        'b: 'c,
    {
        async move {
            if matches!(options.mode, PutMode::Create) {
                match self.odds {
                    Odds::IgnoresConditions => options.mode = PutMode::Overwrite,
                    Odds::LacksConditions => {
                        return Err(Error::NotImplemented {
                            operation: "create".into(),
                            implementer: "odd".into(),
                        });
                    }
                    _ => {}
                }
            }
            let put = async {
                self.write(path);
                self.inner.put_opts(path, payload, options).await
            };
            self.request(format!("put {path}"), put).await
        }
        .boxed()
    }

    fn put_multipart_opts<'a, 'b, 'c>(
        &'a self,
        path: &'b Path,
        options: PutMultipartOptions,
    ) -> Answer<'c, Box<dyn MultipartUpload>>
    where
        'a: 'c,
        'b: 'c,
    {
        async move {
            let put = async {
                self.write(path);
                self.inner.put_multipart_opts(path, options).await
            };
            self.request(format!("parts {path}"), put).await
        }
        .boxed()
    }

    fn get_opts<'a, 'b, 'c>(&'a self, path: &'b Path, options: GetOptions) -> Answer<'c, GetResult>
    where
        'a: 'c,
        'b: 'c,
    {
        async move {
            let what = format!("get {path} {}", options.head);
            self.request(what, self.inner.get_opts(path, options)).await.map(|result| self.alter(result))
        }
        .boxed()
    }

    fn get_ranges<'a, 'b, 'c, 'd>(
        &'a self,
        path: &'b Path,
        ranges: &'c [Range<u64>],
    ) -> Answer<'d, Vec<Bytes>>
    where
        'a: 'd,
        'b: 'd,
        'c: 'd,
    {
        async move { self.request(format!("ranges {path}"), self.inner.get_ranges(path, ranges)).await }
            .boxed()
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        if let Err(error) = self.count_stream() {
            return stream::iter([Err(error)]).boxed();
        }
        // The requests of this crate name all objects at once.
        let paths: Vec<_> = paths.collect().now_or_never().unwrap_or_default();
        if paths.iter().flatten().any(|path| path.as_ref().starts_with("packs/")) {
            std::thread::sleep(*self.delete_time.lock().unwrap());
        }
        let named = paths.iter().flatten().map(|path| format!("delete {path}"));
        self.written.lock().unwrap().extend(named);
        self.inner.delete_stream(stream::iter(paths).boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.count_stream() {
            Ok(()) => {
                // The store is in memory, so the listing is there at once.
                let listed: Vec<_> = self.inner.list(prefix).collect().now_or_never().unwrap_or_default();
                let stamped: Vec<_> = listed.into_iter().map(|meta| Ok(self.stamp(meta?))).collect();
                stream::iter(stamped).boxed()
            }
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    }

    fn list_with_delimiter<'a, 'b, 'c>(&'a self, prefix: Option<&'b Path>) -> Answer<'c, ListResult>
    where
        'a: 'c,
        'b: 'c,
    {
        self.inner.list_with_delimiter(prefix)
    }

    fn copy_opts<'a, 'b, 'c, 'd>(
        &'a self,
        from: &'b Path,
        to: &'c Path,
        options: CopyOptions,
    ) -> Answer<'d, ()>
    where
        'a: 'd,
        'b: 'd,
        'c: 'd,
    {
        self.inner.copy_opts(from, to, options)
    }
}
