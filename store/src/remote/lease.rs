//! Leases of pushes and collections, and the clock of the store.
//!
//! A saver writes `leases/<32 hex>` before it looks which packs exist, and rewrites it while it works. A collector finds
//! the leases, and takes care of packs on which their savers may rely. The clocks of machines differ, so a collector
//! compares times of the store only.
//!
//! A saver measures on its own clocks how long its lease is valid, from before it wrote it. This needs no requests. But a
//! virtual machine that is restored from a snapshot goes on with the clocks that it had. So a saver also compares the
//! times of the store: each time it renews its lease, and after it wrote what makes a snapshot visible.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::objects::Objects;
use super::options::MAX_LEASE_TERM;
use super::{Remote, random_hex};
use crate::error::{Error, Result};

/// The longest lease that is read. Valid ones are shorter.
const MAX_CONTENT: u64 = 1024;

/// A holder gives up this long before its lease ends, because stores round times down to seconds.
const MARGIN: Duration = Duration::from_secs(2);

/// The content of a lease.
#[derive(Serialize, Deserialize)]
struct Content {
    term_seconds: u64,
}

/// A lease: until it ends, no collection deletes the objects on which a push relies.
///
/// The object is deleted when this is dropped. The announcement of a collection is a lease, too.
#[derive(Debug)]
pub(crate) struct Lease {
    objects: Arc<Objects>,
    path: String,
    term: Duration,
    began: Began,
    /// When the lease was written, by the clock of the store.
    written: SystemTime,
}

/// A point in time on this machine, by two clocks.
#[derive(Clone, Copy, Debug)]
struct Began {
    steady: Instant,
    wall: SystemTime,
}

impl Began {
    fn now() -> Self {
        Self { steady: Instant::now(), wall: SystemTime::now() }
    }

    /// Returns the time since then: the longer one of the times by the two clocks.
    ///
    /// The steady clock can stop while a machine is suspended. The other clock can be set.
    fn elapsed(&self) -> Duration {
        self.steady.elapsed().max(self.wall.elapsed().unwrap_or_default())
    }
}

impl Lease {
    /// Returns the rest of the term.
    pub(crate) fn remaining(&self) -> Duration {
        self.term.saturating_sub(MARGIN).saturating_sub(self.began.elapsed())
    }

    /// Starts the term again. Fails if the lease has ended, because objects may have been deleted since.
    pub(crate) fn renew(&mut self) -> Result<()> {
        self.check()?;
        self.check_object()?;
        let began = Began::now();
        let written = write(&self.objects, &self.path, self.term)?.ok_or_else(|| self.expired())?;
        // The answer may have come after the end.
        self.check()?;
        self.check_time(written)?;
        (self.began, self.written) = (began, written);
        Ok(())
    }

    /// Renews the lease if less than two thirds of its term remain. Savers call this between their requests.
    ///
    /// At least half of the term remains when this returns. A request takes no longer, see
    /// [`RemoteOptions::lease_term`](super::RemoteOptions::lease_term).
    pub(crate) fn keep(&mut self) -> Result<()> {
        if self.remaining() < self.term * 2 / 3 {
            self.renew()?;
        }
        if self.remaining() < self.term / 2 { Err(self.expired()) } else { Ok(()) }
    }

    /// Fails if the lease has ended, by the clocks of this machine.
    pub(crate) fn check(&self) -> Result<()> {
        if self.remaining().is_zero() { Err(self.expired()) } else { Ok(()) }
    }

    /// Fails unless the lease was valid at a time of the store.
    pub(crate) fn check_at(&self, time: SystemTime) -> Result<()> {
        self.check()?;
        self.check_object()?;
        self.check_time(time)
    }

    /// Fails if the object is gone. A copy of this process, in a copy of its virtual machine, may have deleted it.
    fn check_object(&self) -> Result<()> {
        let found = self.objects.head(&self.path)?;
        if found.is_some_and(|object| object.modified >= self.written) { Ok(()) } else { Err(self.expired()) }
    }

    /// Fails unless a time of the store is within the term.
    fn check_time(&self, time: SystemTime) -> Result<()> {
        let end = self.written.checked_add(self.term.saturating_sub(MARGIN));
        if end.is_some_and(|end| time < end) { Ok(()) } else { Err(self.expired()) }
    }

    fn expired(&self) -> Error {
        Error::Expired { lease: self.objects.full(&self.path), seconds: self.term.as_secs() }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // If this fails, the lease ends after its term.
        self.objects.delete_on_drop(&self.path);
    }
}

/// Writes a lease. Returns the time of the store at which it was written, or `None` if it is gone already.
fn write(objects: &Objects, path: &str, term: Duration) -> Result<Option<SystemTime>> {
    // A collector sees whole seconds, and must not see fewer than the saver relies on.
    let term_seconds = term.as_secs() + u64::from(term.subsec_nanos() > 0);
    let content = serde_json::to_vec(&Content { term_seconds })
        .map_err(|error| Error::invalid(format!("cannot write the lease {path}: {error}")))?;
    objects.put(path, content)?;
    Ok(objects.head(path)?.map(|object| object.modified))
}

/// A lease of another process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FoundLease {
    /// The path. A collection deletes leases that ended long ago.
    pub(crate) path: String,
    /// The time when the lease was last written, by the clock of the store.
    pub(crate) renewed: SystemTime,
    /// The time when it ends, by the clock of the store.
    pub(crate) ends: SystemTime,
}

impl Remote {
    /// Takes a lease for a push.
    pub(crate) fn lease(&self) -> Result<Lease> {
        self.lease_in("leases")
    }

    /// Announces that a collection is about to delete objects.
    ///
    /// The announcement ends when the result is dropped.
    pub(crate) fn announce_collection(&self) -> Result<Lease> {
        self.lease_in("collectors")
    }

    /// Returns whether a collection has announced that it is about to delete objects.
    pub(crate) fn is_collected(&self) -> Result<bool> {
        let found = self.leases_in("collectors")?;
        if found.is_empty() {
            return Ok(false);
        }
        let now = self.now()?;
        Ok(found.iter().any(|collector| collector.ends > now))
    }

    fn lease_in(&self, folder: &str) -> Result<Lease> {
        let path = format!("{folder}/{}", random_hex());
        let began = Began::now();
        let (objects, term) = (self.objects.clone(), self.lease_term);
        let mut lease = Lease { objects, path, term, began, written: SystemTime::UNIX_EPOCH };
        lease.written = write(&self.objects, &lease.path, term)?.ok_or_else(|| lease.expired())?;
        lease.check()?;
        Ok(lease)
    }

    /// Returns all leases of pushes, including those that have ended.
    pub(crate) fn leases(&self) -> Result<Vec<FoundLease>> {
        self.leases_in("leases")
    }

    fn leases_in(&self, folder: &str) -> Result<Vec<FoundLease>> {
        let mut listed = Vec::new();
        self.objects.list(folder, |object| {
            listed.push(object);
            Ok(())
        })?;
        let paths: Vec<&str> = listed.iter().map(|object| object.path.as_str()).collect();
        let contents = self.objects.get_many(&paths, MAX_CONTENT)?;
        let mut leases = Vec::new();
        for (object, content) in listed.into_iter().zip(contents) {
            // The lease was given back after the listing.
            let Some(content) = content else { continue };
            let term = serde_json::from_slice(&content)
                .ok()
                .map(|content: Content| Duration::from_secs(content.term_seconds));
            let ends = term
                .filter(|term| *term <= MAX_LEASE_TERM)
                .and_then(|term| object.modified.checked_add(term));
            let Some(ends) = ends else {
                let what = "it is not a lease of at most 24 hours; delete it if no push is running";
                return Err(Error::damaged(self.objects.full(&object.path), what));
            };
            leases.push(FoundLease { path: object.path, renewed: object.modified, ends });
        }
        Ok(leases)
    }

    /// Returns the time of the store. To find it, writes an object, reads its time, and deletes it.
    ///
    /// Many stores round the time down to seconds.
    pub(crate) fn now(&self) -> Result<SystemTime> {
        let path = format!("probe/{}", random_hex());
        self.objects.put(&path, Vec::new())?;
        let object = self.objects.head(&path)?;
        self.objects.delete(&path)?;
        match object {
            Some(object) => Ok(object.modified),
            None => Err(Error::NotFound {
                kind: "object that was just written",
                reference: self.objects.full(&path),
            }),
        }
    }
}
