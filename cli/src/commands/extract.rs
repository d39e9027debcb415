//! `memsnap extract`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use memsnap_store::{Extracted, Repository};
use serde::Serialize;

use crate::args;
use crate::failure::Failure;
use crate::output::{Output, note, size};
use crate::progress::Bar;

#[derive(Serialize)]
struct Document {
    id: String,
    /// The length of the file.
    len: u64,
    /// The bytes that were written. The others are holes or are shared with a file in the repository.
    written: u64,
    /// Whether the file shares bytes with a file in the repository.
    shared: bool,
}

pub(super) fn run(args: &args::Extract, output: &mut Output) -> Result<(), Failure> {
    let repository = Repository::open(&args.repo)?;
    let id = repository.resolve(&args.id)?;
    let extract = |to: &Path| -> Result<Extracted, Failure> {
        let bar = Bar::bytes("extracting");
        let extract = repository.extract(id, to).progress(bar.observer());
        Ok(if args.share { extract.share() } else { extract }.run()?)
    };
    if args.file.as_os_str() == "-" {
        return to_standard_output(extract, output);
    }
    let extracted = extract(&target(&args.file)?)?;
    if args.share && !extracted.shared {
        note(&format!(
            "{} shares nothing: its file system and that of the repository cannot clone files",
            args.file.display()
        ));
    }
    let document = Document {
        id: id.to_string(),
        len: extracted.len,
        written: extracted.written,
        shared: extracted.shared,
    };
    output.result(&document, || {
        let rest = if extracted.shared { "holes or shared with a file in the repository" } else { "holes" };
        format!(
            "{}: {}, of which {} were written; the rest are {rest}",
            args.file.display(),
            size(extracted.len),
            size(extracted.written),
        )
    })
}

/// Returns the path of the file to write.
///
/// Follows links. Refuses folders and devices, because a rename would replace them.
fn target(file: &Path) -> Result<PathBuf, Failure> {
    let Ok(metadata) = fs::metadata(file) else { return Ok(file.to_owned()) };
    if metadata.is_file() {
        return fs::canonicalize(file).map_err(Failure::file("find", file));
    }
    let kind = if metadata.is_dir() { "a folder" } else { "a device or a pipe" };
    Err(Failure::new(format!(
        "cannot extract to {}: it is {kind}, not a file; use `-` to write to the standard output",
        file.display()
    )))
}

fn to_standard_output(
    extract: impl FnOnce(&Path) -> Result<Extracted, Failure>,
    output: &mut Output,
) -> Result<(), Failure> {
    let folder = tempfile::tempdir().map_err(|error| {
        Failure::new(format!("cannot make a temporary folder: {error}; set TMPDIR to another folder"))
    })?;
    let path = folder.path().join("extracted");
    extract(&path)?;
    let mut file = File::open(&path).map_err(Failure::file("open", &path))?;
    output.copy(&mut file)
}
