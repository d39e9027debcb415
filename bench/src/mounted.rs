//! `Mounted`: a file system in a file, mounted for a measurement.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// A mounted file system. It is unmounted when this value is dropped.
pub(crate) struct Mounted {
    folder: TempDir,
}

impl Mounted {
    /// Makes a file system of `bytes` bytes with the command `mkfs`, and mounts it.
    ///
    /// Fails if a program for this is missing, or if this process may not mount file systems.
    pub(crate) fn new(mkfs: &[&str], bytes: usize) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (image, point) = (folder.path().join("image"), folder.path().join("mounted"));
        File::create(&image)?.set_len(bytes as u64)?;
        fs::create_dir(&point)?;
        run(Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).args([&image, &point]))?;
        Ok(Self { folder })
    }

    /// Returns the folder that the file system is mounted on.
    pub(crate) fn point(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg("-l").arg(self.point())) {
            eprintln!("{error:#}");
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {}", message.trim());
    Ok(())
}
