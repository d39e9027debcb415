//! A store in memory that loses the connection after a number of requests.
//!
//! It records the objects that were written.

use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use memsnap_store::{Remote, RemoteOptions};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

#[derive(Debug)]
pub(crate) struct Failing {
    inner: Arc<InMemory>,
    /// The number of requests that are still answered.
    left: AtomicUsize,
    /// The objects that were written, in this order.
    written: Mutex<Vec<String>>,
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

impl Failing {
    /// Returns a store that answers a number of requests, and no others.
    pub(crate) fn new(inner: Arc<InMemory>, requests: usize) -> Arc<Self> {
        Arc::new(Self { inner, left: requests.into(), written: Mutex::default() })
    }

    pub(crate) fn remote(self: &Arc<Self>) -> memsnap_store::Result<Remote> {
        Remote::with_store(self.clone(), "", &RemoteOptions::new())
    }

    pub(crate) fn written(&self) -> Vec<String> {
        self.written.lock().unwrap().clone()
    }

    fn take(&self) -> Result<()> {
        match self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Generic { store: "failing", source: "the connection was lost".into() }),
        }
    }
}

impl fmt::Display for Failing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failing")
    }
}

// The form that the macro `async_trait` gives the functions of the trait.
impl ObjectStore for Failing {
    fn put_opts<'a, 'b, 'c>(
        &'a self,
        path: &'b Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Answer<'c, PutResult>
    where
        'a: 'c,
        'b: 'c,
    {
        async move {
            self.take()?;
            self.written.lock().unwrap().push(path.to_string());
            self.inner.put_opts(path, payload, options).await
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
            self.take()?;
            self.written.lock().unwrap().push(path.to_string());
            self.inner.put_multipart_opts(path, options).await
        }
        .boxed()
    }

    fn get_opts<'a, 'b, 'c>(&'a self, path: &'b Path, options: GetOptions) -> Answer<'c, GetResult>
    where
        'a: 'c,
        'b: 'c,
    {
        async move {
            self.take()?;
            self.inner.get_opts(path, options).await
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
        async move {
            self.take()?;
            self.inner.get_ranges(path, ranges).await
        }
        .boxed()
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.take() {
            Ok(()) => self.inner.delete_stream(paths),
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.take() {
            Ok(()) => self.inner.list(prefix),
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
