//! Rebuilding the index.

/// What [`Repository::repair`](crate::Repository::repair) has found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Repaired {
    /// The number of manifests that are in the new index.
    pub manifests: u64,
    /// The number of packs that are in the new index.
    pub packs: u64,
    /// The number of names that are in the new index.
    pub names: u64,
    /// What could not be used: one sentence each, which names the object.
    pub problems: Vec<String>,
}
