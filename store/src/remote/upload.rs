//! Writes an object from a reader, in parts if it is large.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::mpsc;

use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt};

use super::objects::{Objects, generic};
use crate::error::{Error, Result};

/// Objects up to this length are written by one request.
const SINGLE: u64 = 16 << 20;

/// The length of a part.
///
/// S3 requires at least 5 MiB, except for the last part, and at most 10,000 parts.
const PART: usize = 8 << 20;

/// The number of parts that are sent at a time.
const PARTS_AT_ONCE: usize = 3;

impl Objects {
    /// Writes an object of `len` bytes from a reader, or replaces it if it exists.
    ///
    /// An object that is longer than 16 MiB is sent in parts of 8 MiB, up to 3 at a time. It appears when the last part
    /// has arrived. If something fails, no object appears, and the parts are deleted as far as the store answers.
    ///
    /// `between` is called before each request that this waits for. An error of it ends the upload.
    pub(crate) fn put_from(
        &self,
        path: &str,
        len: u64,
        reader: &mut dyn Read,
        between: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        between()?;
        let mut source = Source { reader, rest: len };
        if len <= SINGLE {
            let bytes =
                source.next(usize::try_from(SINGLE).unwrap_or(usize::MAX)).map_err(unreadable(path))?;
            return self.put(path, bytes);
        }
        self.count_requests(1);
        let (store, location) = (self.store.clone(), Path::from(path));
        let starting = self.start(async move { store.put_multipart(&location).await });
        let mut upload = self.wait("start to write", path, &starting)?;
        if let Err(error) = self.send_parts(path, &mut source, upload.as_mut(), between) {
            self.count_requests(1);
            let aborting = self.start(async move { upload.abort().await });
            // The first error is reported. A store can be configured to delete parts that are left over.
            let _ = aborting.recv();
            return Err(error);
        }
        self.count_requests(1);
        let ending = self.start(async move { upload.complete().await });
        self.wait("write", path, &ending).map(drop)
    }

    fn send_parts(
        &self,
        path: &str,
        source: &mut Source<'_>,
        upload: &mut dyn MultipartUpload,
        between: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let mut sending = VecDeque::new();
        while source.rest > 0 {
            let bytes = source.next(PART).map_err(unreadable(path))?;
            if sending.len() == PARTS_AT_ONCE {
                between()?;
                self.wait_for_part(path, sending.pop_front())?;
            }
            self.count_requests(1);
            self.count_sent(bytes.len());
            sending.push_back(self.start(upload.put_part(bytes.into())));
        }
        while !sending.is_empty() {
            between()?;
            self.wait_for_part(path, sending.pop_front())?;
        }
        between()
    }

    fn wait_for_part(
        &self,
        path: &str,
        part: Option<mpsc::Receiver<object_store::Result<()>>>,
    ) -> Result<()> {
        let part = part.ok_or_else(|| self.error("write", path, generic("no part was sent")))?;
        self.wait("write a part of", path, &part)
    }
}

/// A reader, and the number of bytes that are left to read.
struct Source<'a> {
    reader: &'a mut dyn Read,
    rest: u64,
}

impl Source<'_> {
    /// Reads the next `max` bytes, or all that are left if these are fewer.
    fn next(&mut self, max: usize) -> io::Result<Vec<u8>> {
        let len = usize::try_from(self.rest).unwrap_or(usize::MAX).min(max);
        let mut bytes = vec![0; len];
        self.reader.read_exact(&mut bytes)?;
        self.rest -= len as u64;
        Ok(bytes)
    }
}

fn unreadable(path: &str) -> impl FnOnce(io::Error) -> Error {
    Error::file("cannot read the source of", path)
}
