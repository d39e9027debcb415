//! Collecting what no snapshot needs.
use std::time::Duration;

/// Options of [`Repository::collect`](crate::Repository::collect).
#[derive(Clone, PartialEq, Debug)]
pub struct Collect {
    pub(crate) grace: Duration,
    pub(crate) dry_run: bool,
    pub(crate) cache: bool,
}

impl Default for Collect {
    fn default() -> Self {
        Self::new()
    }
}

impl Collect {
    /// Returns the default options: a grace time of 24 hours, and files are deleted.
    #[must_use]
    pub fn new() -> Self {
        Self { grace: Duration::from_secs(24 * 60 * 60), dry_run: false, cache: false }
    }

    /// Sets how old a file has to be before it is deleted.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Sets whether the call only says what it would delete.
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Sets whether the files of all mapped snapshots are deleted too. They are made again when they are needed.
    #[must_use]
    pub fn cache(mut self, cache: bool) -> Self {
        self.cache = cache;
        self
    }
}

/// What was deleted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Collected {
    /// The number of packs that were deleted.
    pub packs: u64,
    /// The number of packs that were deleted after their needed blocks had been written to new packs.
    pub repacked: u64,
    /// The number of manifests that were deleted.
    pub manifests: u64,
    /// The bytes that were freed, less those that were written.
    pub bytes: u64,
}
