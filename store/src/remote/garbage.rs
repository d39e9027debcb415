//! Marks of packs and manifests that no snapshot needs.
//!
//! A collection marks these objects. A later collection deletes objects that have been marked for the grace time and are
//! still not needed.

use std::time::SystemTime;

use super::Remote;
use crate::error::{Error, Result};
use crate::id::Id;

fn path(pack: Id) -> String {
    format!("garbage/{pack}")
}

impl Remote {
    /// Marks an object. The grace time begins now, also if the object is already marked.
    pub(crate) fn mark_garbage(&self, pack: Id) -> Result<()> {
        self.objects.put(&path(pack), Vec::new())
    }

    /// Removes the mark of an object, if there is one.
    pub(crate) fn unmark_garbage(&self, pack: Id) -> Result<()> {
        self.objects.delete(&path(pack))
    }

    /// Removes the marks of packs.
    pub(crate) fn unmark_all(&self, packs: impl IntoIterator<Item = Id>) -> Result<()> {
        self.objects.delete_many(packs.into_iter().map(path))
    }

    /// Returns since when a pack is marked, by the clock of the store, or `None` if it is not marked.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn garbage_since(&self, pack: Id) -> Result<Option<SystemTime>> {
        Ok(self.objects.head(&path(pack))?.map(|object| object.modified))
    }

    /// Calls `visit` with each marked object and the time when it was marked, by the clock of the store.
    pub(crate) fn garbage(&self, mut visit: impl FnMut(Id, SystemTime) -> Result<()>) -> Result<()> {
        self.objects.list("garbage", |object| {
            let id = object.path.strip_prefix("garbage/").and_then(|text| text.parse().ok());
            let Some(id) = id.filter(|id| path(*id) == object.path) else {
                return Err(Error::damaged(
                    self.objects.full(&object.path),
                    "it is not a mark of a pack or a manifest; delete it if it is yours",
                ));
            };
            visit(id, object.modified)
        })
    }
}
