//! A store in memory with a clock that can be set forward. It loses the connection after a number of requests, calls
//! functions of a test before it writes an object, and remembers what it wrote and deleted.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use memsnap_store::{Remote, RemoteOptions};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

pub(crate) struct Failing {
    inner: Arc<InMemory>,
    /// The number of requests that are still answered.
    left: AtomicUsize,
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
    ignores_conditions: bool,
}

type Hook = Box<dyn FnOnce() + Send>;

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

impl Failing {
    /// Returns a store that answers a number of requests, and no others.
    pub(crate) fn new(inner: Arc<InMemory>, requests: usize) -> Arc<Self> {
        Arc::new(Self::new_at(inner, requests, false))
    }

    /// Returns a store that answers all requests, and ignores conditions.
    pub(crate) fn without_conditions() -> Arc<Self> {
        Arc::new(Self::new_at(Arc::default(), usize::MAX, true))
    }

    fn new_at(inner: Arc<InMemory>, requests: usize, ignores_conditions: bool) -> Self {
        Self {
            inner,
            left: requests.into(),
            written: Mutex::default(),
            ahead: Mutex::default(),
            stamps: Mutex::default(),
            hooks: Mutex::default(),
            delete_time: Mutex::default(),
            ignores_conditions,
        }
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

    /// Notes that an object is about to be written.
    fn write(&self, path: &Path) -> Result<()> {
        self.take()?;
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
        Ok(())
    }

    /// Gives an object the time of the clock of this store.
    fn stamp(&self, mut meta: ObjectMeta) -> ObjectMeta {
        if let Some(ahead) = self.stamps.lock().unwrap().get(meta.location.as_ref()) {
            meta.last_modified += *ahead;
        }
        meta
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

impl fmt::Debug for Failing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Failing")
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
        mut options: PutOptions,
    ) -> Answer<'c, PutResult>
    where
        'a: 'c,
        'b: 'c,
    {
        async move {
            self.write(path)?;
            if self.ignores_conditions {
                options.mode = PutMode::Overwrite;
            }
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
            self.write(path)?;
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
            let mut result = self.inner.get_opts(path, options).await?;
            result.meta = self.stamp(result.meta);
            Ok(result)
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
        if let Err(error) = self.take() {
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
        match self.take() {
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
