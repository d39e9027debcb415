//! `SnapshotOptions`: a builder in the manner of `std::fs::OpenOptions`.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use crate::error;
use crate::image::label::Label;
use crate::snapshot::Snapshot;
use crate::sys::HugePages;

/// How a snapshot is made.
///
/// [`Snapshot::zeroed`], [`from_slice`](Snapshot::from_slice), [`from_file`](Snapshot::from_file) and
/// [`from_reader`](Snapshot::from_reader) are the same without options. Snapshots taken of views have the options
/// of the one that they descend from.
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
    /// No name, and [`HugePages::Auto`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Has the system show the snapshot's memory, and that of its views, under this name: on Linux in
    /// `/proc/self/maps`, as `/memfd:NAME` or, where it is all zeroes and the kernel knows how (5.17), `[anon:NAME]`.
    /// What a file system cloned (see [`from_file`](Self::from_file)) has no name.
    ///
    /// At most 79 printable ASCII characters, none of them ``[]\$` ``; otherwise making the snapshot fails with
    /// `InvalidInput`.
    pub fn name(&mut self, name: &str) -> &mut Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Whether the snapshot's own bytes are to be in huge pages.
    ///
    /// - [`Auto`](HugePages::Auto), the default: a large view moves the bytes into huge pages while it is in use, once
    ///   that saves time. See [`ViewOptions::huge_pages`].
    /// - [`Advise`](HugePages::Advise): the bytes are moved when the snapshot is made (Linux 6.1), which takes the time
    ///   of another copy. Views then take one page fault for each huge page that they read.
    /// - [`Never`](HugePages::Never): the bytes are in pages of the usual size, and no view moves them.
    ///
    /// Snapshots of files that the file system cloned, and `map_file`, go without.
    pub fn huge_pages(&mut self, huge_pages: HugePages) -> &mut Self {
        self.huge_pages = huge_pages;
        self
    }

    /// A snapshot of `len` zero bytes. See [`Snapshot::zeroed`].
    ///
    /// # Errors
    ///
    /// Those of [`Snapshot::zeroed`]; `InvalidInput` for a [`name`](Self::name) that is none.
    pub fn zeroed(&self, len: usize) -> io::Result<Snapshot> {
        Snapshot::make_zeroed(len, self.label()?)
    }

    /// A snapshot of a copy of `bytes`. See [`Snapshot::from_slice`].
    ///
    /// # Errors
    ///
    /// Those of [`Snapshot::from_slice`]; `InvalidInput` for a [`name`](Self::name) that is none.
    pub fn from_slice(&self, bytes: &[u8]) -> io::Result<Snapshot> {
        Snapshot::make_from_slice(bytes, self.label()?)
    }

    /// A snapshot of the bytes that `file` holds now. See [`Snapshot::from_file`].
    ///
    /// # Errors
    ///
    /// Those of [`Snapshot::from_file`]; `InvalidInput` for a [`name`](Self::name) that is none.
    pub fn from_file(&self, file: File) -> io::Result<Snapshot> {
        Snapshot::make_from_file(&file, self.label()?)
    }

    /// A snapshot of all that `reader` gives until its end. See [`Snapshot::from_reader`].
    ///
    /// # Errors
    ///
    /// Those of [`Snapshot::from_reader`]; `InvalidInput` for a [`name`](Self::name) that is none.
    pub fn from_reader(&self, reader: impl Read) -> io::Result<Snapshot> {
        Snapshot::make_from_reader(reader, self.label()?)
    }

    fn label(&self) -> io::Result<Label> {
        let name = self.name.as_deref().map(checked_name).transpose()?;
        Ok(Label { name, huge_pages: self.huge_pages })
    }
}

fn checked_name(name: &str) -> io::Result<Arc<CStr>> {
    let allowed = |byte: u8| matches!(byte, b' '..=b'~') && !br"[]\$`".contains(&byte);
    match CString::new(name) {
        Ok(checked) if (1..80).contains(&name.len()) && name.bytes().all(allowed) => Ok(checked.into()),
        _ => Err(error::invalid(format!(
            "{name:?} cannot be the name of memory; up to 79 printable ASCII characters without []\\$` can"
        ))),
    }
}
