//! Pushing to a remote and pulling from it (feature `remote`).
//!
//! A remote has the same packs and manifests as a folder. Instead of an index, it has an object for each manifest with
//! the places of the blocks that the manifest lists. `DESIGN.md` has the order in which objects are written, and
//! explains why collections and pushes can run at the same time.

mod collect;
mod known;
mod learned;
mod places;
mod pull;
mod push;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::id::{Id, Reference};
use crate::inner::{Inner, time};
use crate::manifest::Summary;
use crate::name::{can_exist, check_name};
use crate::progress::{Observer, Progress};
use crate::remote::{Remote, check_remote_name};
use crate::repository::Repository;

/// The longest object in `snapshots` that is read. Valid ones are shorter.
const MAX_SNAPSHOT: u64 = 4096;

/// Pushing and pulling.
impl Repository {
    /// Pushes a snapshot: copies it to a remote when [`Transfer::run`] is called.
    ///
    /// Only the blocks and manifests that the remote lacks are sent.
    pub fn push<'a>(&'a self, remote: &'a Remote, id: impl Into<Reference>) -> Transfer<'a> {
        Transfer::new(&self.inner, remote, id.into(), Direction::Push)
    }

    /// Pulls a snapshot: copies it from a remote when [`Transfer::run`] is called.
    ///
    /// Only the blocks and manifests that this repository lacks are received.
    pub fn pull<'a>(&'a self, remote: &'a Remote, id: impl Into<Reference>) -> Transfer<'a> {
        Transfer::new(&self.inner, remote, id.into(), Direction::Pull)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Direction {
    Push,
    Pull,
}

/// Options of a push or a pull. Call [`run`](Transfer::run) to copy the snapshot.
///
/// [`Repository::push`] and [`Repository::pull`] return it.
#[must_use = "nothing is copied until `run` is called"]
#[derive(Debug)]
pub struct Transfer<'a> {
    inner: &'a Inner,
    remote: &'a Remote,
    id: Reference,
    direction: Direction,
    name: Option<String>,
    observer: Observer<'a>,
}

impl<'a> Transfer<'a> {
    fn new(inner: &'a Inner, remote: &'a Remote, id: Reference, direction: Direction) -> Self {
        Self { inner, remote, id, direction, name: None, observer: Observer::none() }
    }

    /// Gives the copy a name in its destination, or moves the name if it exists there.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets a function that is called with the progress.
    pub fn progress(mut self, tell: impl FnMut(Progress) + Send + 'a) -> Self {
        self.observer = Observer::new(tell);
        self
    }

    /// Copies the snapshot. When the call returns, the destination has all of it.
    ///
    /// Snapshots can be saved and pulled meanwhile. [`Repository::collect`] waits for the end of the call. A second push
    /// to the same remote also waits.
    ///
    /// The number of requests depends on the number of packs and manifests, not on the number of blocks. A push that was
    /// interrupted can be started again. It then uses the packs that were already sent.
    ///
    /// # Errors
    ///
    /// - [`Error::NotFound`] if there is no such snapshot.
    /// - [`Error::Ambiguous`] if the ids of several snapshots begin with the given digits.
    /// - [`Error::Invalid`] if the name is not valid.
    /// - [`Error::Remote`] if the store does not answer or refuses a request, also when it is repeated.
    /// - [`Error::Conflict`] if another machine moved the name at the same time. The snapshot itself was copied.
    /// - [`Error::Busy`] if a collection of the repository or of the remote does not end in time, or, in a push, another
    ///   push to the remote, or, in a pull, a writer.
    /// - [`Error::Expired`] if the lease of a push ended, because the connection was slow or the machine was stopped. The
    ///   snapshot is then not listed.
    /// - [`Error::Damaged`] if an object is not what its name promises. Nothing of it is used.
    /// - [`Error::File`], [`Error::Index`].
    pub fn run(mut self) -> Result<Transferred> {
        if let Some(name) = &self.name {
            check_name(name)?;
            if self.direction == Direction::Push {
                check_remote_name(name)?;
            }
        }
        let before = self.remote.traffic();
        let (id, blocks) = match self.direction {
            Direction::Push => {
                push::push(self.inner, self.remote, &self.id, self.name.as_deref(), &mut self.observer)?
            }
            Direction::Pull => {
                pull::pull(self.inner, self.remote, &self.id, self.name.as_deref(), &mut self.observer)?
            }
        };
        let after = self.remote.traffic();
        let bytes = (after.sent - before.sent) + (after.received - before.received);
        Ok(Transferred { id, bytes, blocks })
    }
}

/// The result of a push or a pull.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Transferred {
    /// The id of the snapshot.
    pub id: Id,
    /// The bytes of all objects that this [`Remote`] sent or received during the call.
    pub bytes: u64,
    /// The number of blocks that the destination lacked.
    pub blocks: u64,
}

/// The object `snapshots/<id>`, with what `list` returns of a snapshot.
#[derive(Serialize, Deserialize)]
struct Listed {
    parent: Option<String>,
    len: u64,
    content_len: u64,
    created: u64,
    stored: u64,
}

/// Snapshots of a remote.
impl Remote {
    /// Lists the snapshots of the remote, from the oldest to the newest.
    ///
    /// # Errors
    ///
    /// - [`Error::Remote`] if the store does not answer or refuses a request.
    /// - [`Error::Damaged`] if an object is damaged.
    pub fn list(&self) -> Result<Vec<Summary>> {
        let names = self.names()?;
        let ids: Vec<Id> = self.snapshot_ids()?.into_iter().collect();
        let paths: Vec<String> = ids.iter().map(snapshot_path).collect();
        let mut summaries = Vec::with_capacity(ids.len());
        for (id, bytes) in ids.into_iter().zip(self.objects().get_many(&paths, MAX_SNAPSHOT)?) {
            let Some(bytes) = bytes else { continue }; // It was removed after the listing.
            let damaged = |what: String| Error::damaged(self.objects().full(&snapshot_path(&id)), what);
            let listed: Listed =
                serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
            summaries.push(Summary {
                id,
                names: names.iter().filter(|name| name.id == id).map(|name| name.name.clone()).collect(),
                parent: listed.parent.map(|parent| parent.parse()).transpose()?,
                len: listed.len,
                content_len: listed.content_len,
                created: time(listed.created),
                stored: listed.stored,
            });
        }
        summaries.sort_by_key(|summary| (summary.created, summary.id));
        Ok(summaries)
    }

    /// Returns the id of a snapshot, given by a name in the remote or by the first digits of its id.
    ///
    /// # Errors
    ///
    /// - [`Error::NotFound`] if there is no such snapshot.
    /// - [`Error::Ambiguous`] if the ids of several snapshots begin with these digits.
    /// - [`Error::Remote`] if the store does not answer or refuses a request.
    pub fn resolve(&self, id: impl Into<Reference>) -> Result<Id> {
        let id = id.into();
        let unknown = || Error::NotFound { kind: "snapshot", reference: format!("{id} in {}", self.url()) };
        let digits = match &id {
            Reference::Id(id) => id.to_string(),
            Reference::Text(text) if can_exist(text) => match self.name(text)? {
                Some(name) => name.id.to_string(),
                None => text.clone(),
            },
            Reference::Text(text) => text.clone(),
        };
        if let Ok(id) = digits.parse::<Id>() {
            return if self.is_listed(&id)? { Ok(id) } else { Err(unknown()) };
        }
        if digits.len() < 4 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(unknown());
        }
        let found: Vec<Id> =
            self.snapshot_ids()?.into_iter().filter(|id| id.to_string().starts_with(&digits)).collect();
        match found[..] {
            [] => Err(unknown()),
            [id] => Ok(id),
            _ => Err(Error::Ambiguous { prefix: digits, candidates: found }),
        }
    }

    /// Removes a snapshot and its names from the lists of the remote. [`collect`](Self::collect) frees the space.
    ///
    /// A name that other machines moved at the same time, so that it stands for several snapshots
    /// ([`RemoteName::also`](crate::RemoteName::also)), stays.
    ///
    /// # Errors
    ///
    /// Those of [`resolve`](Self::resolve).
    pub fn remove(&self, id: impl Into<Reference>) -> Result<Id> {
        let id = self.resolve(id)?;
        for name in self.names()?.into_iter().filter(|name| name.id == id) {
            self.remove_name_of(&name.name, id)?;
        }
        self.objects().delete(&snapshot_path(&id))?;
        Ok(id)
    }

    fn is_listed(&self, id: &Id) -> Result<bool> {
        Ok(self.objects().head(&snapshot_path(id))?.is_some())
    }

    /// Returns the ids of all listed snapshots.
    fn snapshot_ids(&self) -> Result<BTreeSet<Id>> {
        ids_below(self, "snapshots", |_, _| Ok(()))
    }
}

/// Returns the ids of the objects in a folder. Ignores objects whose name is not an id.
fn ids_below(
    remote: &Remote,
    folder: &str,
    mut visit: impl FnMut(Id, &crate::remote::objects::Object) -> Result<()>,
) -> Result<BTreeSet<Id>> {
    let mut ids = BTreeSet::new();
    remote.objects().list(folder, |object| {
        let id = object.path.rsplit('/').next().and_then(|name| name.parse().ok());
        // An object of a folder below has the same last part.
        if let Some(id) = id.filter(|id| object.path == format!("{folder}/{id}")) {
            visit(id, &object)?;
            ids.insert(id);
        }
        Ok(())
    })?;
    Ok(ids)
}

fn snapshot_path(id: &Id) -> String {
    format!("snapshots/{id}")
}

fn places_path(id: &Id) -> String {
    format!("places/{id}")
}
