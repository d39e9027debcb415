//! The places of repositories: on a disk, and in memory, where a sync costs nothing.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// A folder with the repositories and files of a run.
pub(crate) struct Place {
    /// The name in the record.
    pub(crate) name: &'static str,
    folder: TempDir,
}

/// The name of the place on a disk.
pub(crate) const DISK: &str = "disk";
/// The name of the place in memory.
pub(crate) const MEMORY: &str = "memory";

impl Place {
    /// Makes a temporary folder in `parent`.
    pub(crate) fn new(name: &'static str, parent: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("memsnap-store-bench-").tempdir_in(parent);
        let folder = folder.with_context(|| format!("making a folder in {}", parent.display()))?;
        Ok(Self { name, folder })
    }

    /// Returns the path of the file with the image.
    pub(crate) fn image(&self) -> PathBuf {
        self.path("image")
    }

    /// Returns the path of a file or folder in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the path of a file or folder in the folder. Deletes it if it exists.
    pub(crate) fn fresh(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        remove(&path)?;
        Ok(path)
    }
}

/// Deletes a file or a folder, if it exists.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Err(_) => return Ok(()),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    removed.with_context(|| format!("deleting {}", path.display()))
}

/// Returns the bytes that the files in a folder take on the disk.
pub(crate) fn allocated(path: &Path) -> Result<u64> {
    let metadata =
        path.symlink_metadata().with_context(|| format!("reading the size of {}", path.display()))?;
    let mut bytes = if metadata.is_dir() { 0 } else { metadata.blocks() * 512 };
    if metadata.is_dir() {
        let entries = fs::read_dir(path).with_context(|| format!("listing {}", path.display()))?;
        for entry in entries {
            bytes += allocated(&entry?.path())?;
        }
    }
    Ok(bytes)
}
