//! `Folder`: keeps the files of a repository in a folder of the file system.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

#[cfg(unix)]
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};

use super::overlay::Overlay;
use super::{DatabaseMode, Listed, Lock, Locked, ReadFile, Storage, WriteFile};

/// The first and the longest pause between two attempts to lock a file.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(10));

/// A folder of the file system.
#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
}

impl Folder {
    /// Returns the folder at `root`, which need not exist.
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Returns the path of a file or a folder for an operation on it. Fails if it would not be in the repository.
    fn at(&self, path: &str) -> io::Result<PathBuf> {
        // Windows takes `\` for a separator too, and `c:` for a drive.
        let is_part = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', ':', '\0']);
        if !path.is_empty() && !path.split('/').all(is_part) {
            return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a path within a repository"));
        }
        for (end, _) in path.match_indices('/') {
            refuse_link(&self.path(&path[..end]))?;
        }
        Ok(self.path(path))
    }

    /// As [`at`](Self::at), for operations that would follow a link.
    fn at_no_link(&self, path: &str) -> io::Result<PathBuf> {
        let at = self.at(path)?;
        // The user may reach the repository itself by a link.
        if !path.is_empty() {
            refuse_link(&at)?;
        }
        Ok(at)
    }
}

impl Storage for Folder {
    fn open(&self, path: &str) -> io::Result<Box<dyn ReadFile>> {
        Ok(Box::new(Opened(open_regular(&self.at_no_link(path)?)?)))
    }

    fn create(&self, path: &str) -> io::Result<Box<dyn WriteFile>> {
        Ok(Box::new(Created(options().write(true).create_new(true).open(self.at(path)?)?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.at(from)?, self.at(to)?)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.at(path)?)
    }

    fn list(&self, folder: &str) -> io::Result<Vec<Listed>> {
        let mut listed = Vec::new();
        for entry in fs::read_dir(self.at_no_link(folder)?)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                // Another process removed the file after the folder was read.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            // All files of a repository have names in UTF-8.
            if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) {
                listed.push(Listed { name, len: metadata.len(), modified: metadata.modified()? });
            }
        }
        Ok(listed)
    }

    fn create_folder(&self, folder: &str) -> io::Result<()> {
        let path = self.at_no_link(folder)?;
        let mut builder = DirBuilder::new();
        only_for_the_user(&mut builder);
        match builder.create(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            result => result,
        }
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        sync_names(&self.at_no_link(folder)?)
    }

    fn database(&self, path: &str, mode: DatabaseMode) -> io::Result<Box<dyn redb::StorageBackend>> {
        let mut options = options();
        options.read(true);
        match mode {
            DatabaseMode::Create => options.write(true).create_new(true),
            DatabaseMode::Write => options.write(true),
            DatabaseMode::Read => &mut options,
        };
        let file = Opened(regular(options.open(self.at_no_link(path)?)?)?);
        Ok(match mode {
            DatabaseMode::Read => Box::new(Overlay::new(Box::new(file))?),
            DatabaseMode::Create | DatabaseMode::Write => Box::new(Database(file)),
        })
    }

    fn lock(&self, path: &str, kind: Lock, wait: Duration) -> io::Result<Option<Box<dyn Locked>>> {
        let path = self.at_no_link(path)?;
        // `truncate(false)` says that the file is kept as it is. It is empty.
        let file = match options().read(true).write(true).create(true).truncate(false).open(&path) {
            // A reader needs no permission to write, as long as the file exists.
            Err(error) if kind == Lock::Shared && is_read_only(&error) => {
                options().read(true).open(&path).map_err(|_| error)?
            }
            result => result?,
        };
        let file = regular(file)?;
        let started = Instant::now();
        let mut pause = PAUSES.0;
        loop {
            let result = match kind {
                Lock::Shared => file.try_lock_shared(),
                Lock::Exclusive => file.try_lock(),
            };
            match result {
                Ok(()) => return Ok(Some(Box::new(Held(file)))),
                Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Interrupted => {}
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) => {
                    let left = wait.saturating_sub(started.elapsed());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    thread::sleep(pause.min(left));
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        let mut joined = self.root.clone();
        // Joined part by part, because Windows does not accept `/` in a path that begins with `\\?\`.
        joined.extend(path.split('/').filter(|part| !part.is_empty()));
        joined
    }
}

/// Fails if a file or folder is a symbolic link, or what Windows has of that kind.
///
/// An archive can contain a repository whose folder `tmp` is a link to a folder of the user, where nothing may be deleted.
pub(crate) fn refuse_link(path: &Path) -> io::Result<()> {
    // A caller that needs the file finds out that it does not exist.
    if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink()) {
        let link = path.display();
        let what = format!(
            "{link} is a symbolic link, which a repository cannot contain: move the files here, or mount their folder here"
        );
        return Err(io::Error::new(ErrorKind::InvalidInput, what));
    }
    Ok(())
}

/// Makes the new, renamed and removed files of a folder durable.
#[cfg(unix)]
pub(crate) fn sync_names(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Does nothing. Windows has no operation that syncs a folder: `FlushFileBuffers` refuses a handle on one. NTFS writes new
/// names and renames to its journal, in the order in which they were made.
#[cfg(not(unix))]
pub(crate) fn sync_names(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Returns the folder of a file or a folder.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Opens a file for reading. Fails if it is not a file, without waiting for the other end of a pipe.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    regular(options().read(true).open(path)?)
}

/// Returns options under which only the user can read a new file, and which neither follow a link nor wait for the other
/// end of a pipe.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    only_files(&mut options);
    options
}

#[cfg(unix)]
fn only_files(options: &mut OpenOptions) {
    use rustix::fs::OFlags;
    options.mode(0o600).custom_flags((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed());
}

#[cfg(not(unix))]
fn only_files(_: &mut OpenOptions) {}

/// Makes new folders that only the user can open.
#[cfg(unix)]
fn only_for_the_user(builder: &mut DirBuilder) {
    builder.mode(0o700);
}

#[cfg(not(unix))]
fn only_for_the_user(_: &mut DirBuilder) {}

/// Returns `file` if it is a regular file. Fails if it is a folder, a pipe or a device.
fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"))
    }
}

/// Returns whether a file could not be opened because it, its folder or its file system is read-only.
pub(crate) fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
}

/// A file that is open for reading.
#[derive(Debug)]
struct Opened(File);

impl ReadFile for Opened {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    #[cfg(unix)]
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    #[cfg(windows)]
    fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        use std::os::windows::fs::FileExt;
        while !buffer.is_empty() {
            match self.0.seek_read(buffer, offset) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    buffer = &mut buffer[read..];
                    offset += read as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A new file.
#[derive(Debug)]
struct Created(File);

impl Write for Created {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl WriteFile for Created {
    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_all()
    }
}

/// A file with a lock.
#[derive(Debug)]
struct Held(File);

impl Locked for Held {}

impl Drop for Held {
    fn drop(&mut self) {
        // A child that was forked meanwhile has the open file too, and closing it here would leave the lock to the child.
        // If this fails, the lock ends when all of them have closed it.
        let _ = self.0.unlock();
    }
}

/// The file of a database that is written.
#[derive(Debug)]
struct Database(Opened);

impl redb::StorageBackend for Database {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.0.sync_data()
    }

    #[cfg(unix)]
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.0.write_all_at(data, offset)
    }

    #[cfg(windows)]
    fn write(&self, mut offset: u64, mut data: &[u8]) -> io::Result<()> {
        use std::os::windows::fs::FileExt;
        while !data.is_empty() {
            match self.0.0.seek_write(data, offset) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    data = &data[written..];
                    offset += written as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
