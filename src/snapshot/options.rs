//! `SnapshotOptions`: how a snapshot is made, which is the name of its memory and the use of huge pages.
//!
//! This is a builder in the manner of `std::fs::OpenOptions`. It checks the name. `snapshot/mod.rs` makes the
//! snapshots.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use crate::error;
use crate::image::label::Label;
use crate::snapshot::Snapshot;
use crate::sys::HugePages;

/// Options with which a snapshot is made: the name of its memory, and the use of huge pages.
///
/// [`Snapshot::zeroed`], [`from_slice`](Snapshot::from_slice), [`from_file`](Snapshot::from_file) and
/// [`from_reader`](Snapshot::from_reader) do the same with default options. Snapshots that are taken of views have
/// the options of the snapshot from which they descend.
///
/// # Examples
///
/// ```
/// use memsnap::{HugePages, SnapshotOptions};
///
/// # fn main() -> std::io::Result<()> {
/// let snapshot = SnapshotOptions::new().name("guest").huge_pages(HugePages::Advise).from_slice(b"boot")?;
/// assert_eq!(snapshot.view()?.content(), b"boot");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct SnapshotOptions {
    name: Option<String>,
    huge_pages: HugePages,
}

impl SnapshotOptions {
    /// Returns the default options: no name, and [`HugePages::Auto`].
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::SnapshotOptions;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let mut options = SnapshotOptions::new();
    /// options.name("worker-heap");
    /// let (first, second) = (options.zeroed(1 << 20)?, options.zeroed(1 << 24)?);
    /// assert_eq!((first.len(), second.len()), (1 << 20, 1 << 24));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the name under which the system lists the memory of the snapshot and of its views.
    ///
    /// On Linux, the name appears in `/proc/self/maps`, as `/memfd:NAME`. Memory without a file appears as
    /// `[anon:NAME]`, since Linux 5.17. Files that were cloned by the file system (see [`from_file`](Self::from_file))
    /// have no name.
    ///
    /// The name has 1 to 79 printable ASCII characters, without ``[]\$` ``. With any other name, making the snapshot
    /// fails (`InvalidInput`).
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::SnapshotOptions;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = SnapshotOptions::new().name("guest-ram").from_slice(b"boot")?;
    /// let view = snapshot.view()?;
    /// # if cfg!(all(target_os = "linux", not(memsnap_unix))) {
    /// let maps = std::fs::read_to_string("/proc/self/maps")?;
    /// assert!(maps.contains("/memfd:guest-ram"));
    /// # }
    /// # Ok(())
    /// # }
    /// ```
    pub fn name(&mut self, name: &str) -> &mut Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Sets whether the bytes that the snapshot is made from are in huge pages.
    ///
    /// - [`Auto`](HugePages::Auto), the default: a large view moves the bytes into huge pages while it is in use,
    ///   once that saves time. See [`ViewOptions::huge_pages`](crate::ViewOptions::huge_pages).
    /// - [`Advise`](HugePages::Advise): the bytes are moved when the snapshot is made (since Linux 6.1), which takes
    ///   as long as copying them once more. Views then take one page fault for each huge page that they read.
    /// - [`Never`](HugePages::Never): the bytes are in pages of the usual size, and no view moves them.
    ///
    /// Files that were cloned by the file system, and files that [`map_file`](Snapshot::map_file) maps, have no huge
    /// pages.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::{HugePages, SnapshotOptions};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let model = vec![1; 4 << 20];
    /// let snapshot = SnapshotOptions::new().huge_pages(HugePages::Advise).from_slice(&model)?;
    /// assert_eq!(snapshot.view()?.content(), model);
    /// # Ok(())
    /// # }
    /// ```
    pub fn huge_pages(&mut self, huge_pages: HugePages) -> &mut Self {
        self.huge_pages = huge_pages;
        self
    }

    /// Makes a snapshot of `len` zero bytes. See [`Snapshot::zeroed`].
    ///
    /// # Errors
    ///
    /// Those of [`Snapshot::zeroed`]; `InvalidInput` if the [`name`](Self::name) is not valid.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::SnapshotOptions;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let heap = SnapshotOptions::new().name("heap").zeroed(1 << 20)?;
    /// assert_eq!(heap.stats().base, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn zeroed(&self, len: usize) -> io::Result<Snapshot> {
        Snapshot::make_zeroed(len, self.label()?)
    }

    /// Makes a snapshot of a copy of `bytes`. See [`Snapshot::from_slice`].
    ///
    /// # Errors
    ///
    /// Those of [`Snapshot::from_slice`]; `InvalidInput` if the [`name`](Self::name) is not valid.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::SnapshotOptions;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let snapshot = SnapshotOptions::new().name("firmware").from_slice(b"boot code")?;
    /// assert_eq!(snapshot.content_len(), 9);
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_slice(&self, bytes: &[u8]) -> io::Result<Snapshot> {
        Snapshot::make_from_slice(bytes, self.label()?)
    }

    /// Makes a snapshot of the current contents of `file`. See [`Snapshot::from_file`].
    ///
    /// # Errors
    ///
    /// Those of [`Snapshot::from_file`]; `InvalidInput` if the [`name`](Self::name) is not valid.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::SnapshotOptions;
    /// use std::io::Write;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let mut file = tempfile::tempfile()?;
    /// file.write_all(b"disk image")?;
    /// let snapshot = SnapshotOptions::new().name("disk").from_file(file)?;
    /// assert_eq!(snapshot.view()?.content(), b"disk image");
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_file(&self, file: File) -> io::Result<Snapshot> {
        Snapshot::make_from_file(&file, self.label()?)
    }

    /// Makes a snapshot of all bytes that `reader` returns. See [`Snapshot::from_reader`].
    ///
    /// # Errors
    ///
    /// Those of [`Snapshot::from_reader`]; `InvalidInput` if the [`name`](Self::name) is not valid.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap::SnapshotOptions;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let download = &b"any stream"[..];
    /// let snapshot = SnapshotOptions::new().name("download").from_reader(download)?;
    /// assert_eq!(snapshot.content_len(), 10);
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_reader(&self, reader: impl Read) -> io::Result<Snapshot> {
        Snapshot::make_from_reader(reader, self.label()?)
    }

    fn label(&self) -> io::Result<Label> {
        let name = self.name.as_deref().map(checked_name).transpose()?;
        Ok(Label { name, huge_pages: self.huge_pages })
    }
}

/// Returns the name, if Linux accepts it as the name of a memfd and of anonymous memory.
fn checked_name(name: &str) -> io::Result<Arc<CStr>> {
    let allowed = |byte: u8| matches!(byte, b' '..=b'~') && !br"[]\$`".contains(&byte);
    match CString::new(name) {
        Ok(checked) if (1..80).contains(&name.len()) && name.bytes().all(allowed) => Ok(checked.into()),
        _ => Err(error::invalid(format!(
            "{name:?} cannot be the name of memory; choose 1 to 79 printable ASCII characters without []\\$`"
        ))),
    }
}
