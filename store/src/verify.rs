//! Checking a repository.

/// How thoroughly [`Repository::verify`](crate::Repository::verify) checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// Manifests, the index, and that all packs exist, are complete and have the blocks that the index promises.
    Structure,
    /// Also reads every pack, and compares every block with its hash.
    Data,
}

/// What a check has found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Verified {
    /// The number of manifests that were checked.
    pub manifests: u64,
    /// The number of packs that were checked.
    pub packs: u64,
    /// The number of blocks that were checked.
    pub blocks: u64,
    /// What is wrong: one sentence each, which names the object. Empty if the repository is intact.
    pub problems: Vec<String>,
}
