//! `Manifest` and `Summary`: what a saved snapshot is.
use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::id::Id;

/// What a saved snapshot is, without its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Manifest {
    /// The id.
    pub id: Id,
    /// The names that stand for it.
    pub names: Vec<String>,
    /// The snapshot that it was made from.
    pub parent: Option<Id>,
    /// The manifest that this one is relative to, or `None` if it is a full one.
    pub base: Option<Id>,
    /// The length in bytes, a multiple of 4,096.
    pub len: u64,
    /// The length of the content in bytes.
    pub content_len: u64,
    /// When it was saved.
    pub created: SystemTime,
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// The attachments.
    pub attachments: BTreeMap<String, Vec<u8>>,
    /// The number of blocks that this manifest lists: all that are not zero, or those that differ from the base.
    pub blocks: u64,
    /// The number of bytes that saving it added to the repository.
    pub stored: u64,
}

/// A line of [`Repository::list`](crate::Repository::list).
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Summary {
    /// The id.
    pub id: Id,
    /// The names that stand for it.
    pub names: Vec<String>,
    /// The snapshot that it was made from.
    pub parent: Option<Id>,
    /// The length in bytes.
    pub len: u64,
    /// The length of the content in bytes.
    pub content_len: u64,
    /// When it was saved.
    pub created: SystemTime,
    /// The number of bytes that saving it added to the repository.
    pub stored: u64,
}
