//! `Manifest` and `Summary`: descriptions of a saved snapshot.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::id::Id;

/// The description of a saved snapshot, without its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Manifest {
    /// The id of the snapshot.
    pub id: Id,
    /// The names that stand for the snapshot.
    pub names: Vec<String>,
    /// The parent: the snapshot that this one was made from.
    pub parent: Option<Id>,
    /// The base: the manifest that this one is relative to, or `None` if this is a full manifest.
    pub base: Option<Id>,
    /// The length in bytes, a multiple of 4,096.
    pub len: u64,
    /// The length of the content in bytes.
    pub content_len: u64,
    /// The time when the snapshot was saved.
    pub created: SystemTime,
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// The attachments.
    pub attachments: BTreeMap<String, Vec<u8>>,
    /// The number of listed blocks: all that are not zero, or those that differ from the base.
    pub blocks: u64,
    /// The number of bytes that saving the snapshot added to the repository.
    pub stored: u64,
}

/// A snapshot in the result of [`Repository::list`](crate::Repository::list).
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Summary {
    /// The id of the snapshot.
    pub id: Id,
    /// The names that stand for the snapshot.
    pub names: Vec<String>,
    /// The parent: the snapshot that this one was made from.
    pub parent: Option<Id>,
    /// The length in bytes.
    pub len: u64,
    /// The length of the content in bytes.
    pub content_len: u64,
    /// The time when the snapshot was saved.
    pub created: SystemTime,
    /// The number of bytes that saving the snapshot added to the repository.
    pub stored: u64,
}
