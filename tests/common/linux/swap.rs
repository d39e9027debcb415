//! Swap space that a test adds to the system.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use memsnap::page_size;
use rustix::fs::FsWord;

use super::{CAP_SYS_ADMIN, is_capable_of};

const SWAP_BYTES: usize = 128 << 20;

/// A swap file that is in use until the value is dropped.
pub(crate) struct SwapFile(PathBuf);

impl SwapFile {
    /// Adds a swap file. `Err` names what the machine lacks for it.
    pub(crate) fn add() -> Result<Self, String> {
        if !is_capable_of(CAP_SYS_ADMIN) {
            return Err("adding swap needs root (CAP_SYS_ADMIN, outside of a user namespace)".into());
        }
        if !Path::new("/proc/swaps").exists() {
            return Err("the kernel has no swap".into());
        }
        let mut refusals = String::new();
        // A file system in memory cannot hold swap. If temporary files are in one, the build directory is
        // tried.
        let build = option_env!("CARGO_TARGET_TMPDIR").map(PathBuf::from);
        for directory in [Some(std::env::temp_dir()), build].into_iter().flatten() {
            match Self::add_in(&directory) {
                Ok(added) => return Ok(added),
                Err(error) => {
                    assert!(!can_hold_swap(&directory), "no swap file in {directory:?}: {error}");
                    refusals += &format!("; the file system of {directory:?}: {error}");
                }
            }
        }
        Err(format!("no file system at hand can hold a swap file{refusals}"))
    }

    fn add_in(directory: &Path) -> io::Result<Self> {
        let path = directory.join(format!("memsnap-swap-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        let file = File::create_new(&path)?;
        let result = Self::format(&file).and_then(|()| Self::on(&path));
        if result.is_err() {
            let _ = fs::remove_file(&path);
        }
        result.map(|()| Self(path))
    }

    /// Writes all pages of the file, so that it has no holes, and the header of `linux/swap.h`.
    fn format(file: &File) -> io::Result<()> {
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        let zeroes = vec![0; 1 << 20];
        for offset in (0..SWAP_BYTES).step_by(zeroes.len()) {
            file.write_all_at(&zeroes, offset as u64)?;
        }
        let last_page = u32::try_from(SWAP_BYTES / page_size() - 1).unwrap();
        let mut header = vec![0; page_size()];
        header[1024..1028].copy_from_slice(&1_u32.to_ne_bytes());
        header[1028..1032].copy_from_slice(&last_page.to_ne_bytes());
        header[page_size() - 10..].copy_from_slice(b"SWAPSPACE2");
        file.write_all_at(&header, 0)?;
        file.sync_all()
    }

    fn on(path: &Path) -> io::Result<()> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: the path is a string that outlives the call.
        let result = unsafe { libc::swapon(path.as_ptr(), 0) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Returns whether the file system of a folder is known to support swap files without preparation.
fn can_hold_swap(directory: &Path) -> bool {
    const EXT: FsWord = 0xEF53;
    const XFS: FsWord = 0x5846_5342;
    [EXT, XFS].contains(&rustix::fs::statfs(directory).unwrap().f_type)
}

impl Drop for SwapFile {
    fn drop(&mut self) {
        if let Ok(path) = CString::new(self.0.as_os_str().as_bytes()) {
            // SAFETY: the path is a string that outlives the call.
            let _ = unsafe { libc::swapoff(path.as_ptr()) };
        }
        let _ = fs::remove_file(&self.0);
    }
}
