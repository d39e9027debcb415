//! `Odd`: a store in memory that ignores conditions, fails, is slow, or returns wrong lengths.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
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
pub(super) enum Odds {
    /// Objects are overwritten, whatever the condition.
    IgnoresConditions,
    /// The client does not support conditional requests.
    LacksConditions,
    /// Each request for each object fails once.
    FailsOnce(Mutex<HashSet<String>>),
    /// The request with this number fails, before or after it had its effect.
    Fails { number: usize, after: bool },
    /// Each answer takes this long.
    Slow(Duration),
    /// Objects claim to have this length, and have no end.
    Endless { claimed: u64 },
    /// Answers end after this many bytes.
    Cut(usize),
    /// Each request panics.
    Panics,
}

#[derive(Debug)]
pub(super) struct Odd {
    pub(super) inner: InMemory,
    odds: Odds,
    requests: AtomicUsize,
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

impl Odd {
    pub(super) fn new(odds: Odds) -> Self {
        Self { inner: InMemory::new(), odds, requests: AtomicUsize::new(0) }
    }

    pub(super) fn with(inner: InMemory, odds: Odds) -> Self {
        Self { inner, odds, requests: AtomicUsize::new(0) }
    }

    pub(super) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Runs a request with the behaviour that all requests have.
    async fn request<T>(&self, mut what: String, request: impl Future<Output = Result<T>>) -> Result<T> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        if let Some((before, _random)) = what.split_once("/probe/") {
            what = before.to_owned();
        }
        let fault = || Error::Generic { store: "odd", source: "injected".into() };
        match &self.odds {
            Odds::FailsOnce(seen) if seen.lock().unwrap().insert(what) => return Err(fault()),
            Odds::Fails { number: failing, after: false } if *failing == number => return Err(fault()),
            Odds::Fails { number: failing, after: true } if *failing == number => {
                let _lost = request.await;
                return Err(fault());
            }
            Odds::Slow(time) => tokio::time::sleep(*time).await,
            Odds::Panics => panic!("injected"),
            _ => {}
        }
        request.await
    }

    fn alter(&self, mut result: GetResult) -> GetResult {
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
            self.request(format!("put {path}"), self.inner.put_opts(path, payload, options)).await
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
        async move { self.request(format!("parts {path}"), self.inner.put_multipart_opts(path, options)).await }.boxed()
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
        async move { self.inner.get_ranges(path, ranges).await }.boxed()
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        if let Odds::Fails { number: failing, .. } = self.odds
            && failing == number
        {
            return stream::iter([Err(Error::Generic { store: "odd", source: "injected".into() })]).boxed();
        }
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        if let Odds::Fails { number: failing, .. } = self.odds
            && failing == number
        {
            return stream::iter([Err(Error::Generic { store: "odd", source: "injected".into() })]).boxed();
        }
        self.inner.list(prefix)
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
