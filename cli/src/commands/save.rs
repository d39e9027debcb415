//! `memsnap save`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use memsnap_store::{Repository, check_name};
use serde::Serialize;

use crate::args;
use crate::failure::Failure;
use crate::output::{Output, count, note, size};
use crate::progress::Bar;
use crate::source;

/// The longest attachment.
///
/// Attachments are in memory when they are saved and when their manifest is read.
const MAX_ATTACHMENT: u64 = 64 << 20;

#[derive(Serialize)]
struct Document {
    id: String,
    /// The number of blocks that were added to the repository.
    blocks: u64,
    /// The number of bytes that were added to the repository.
    bytes: u64,
}

pub(super) fn run(args: &args::Save, output: &mut Output) -> Result<(), Failure> {
    let repository = Repository::open(&args.repo)?;
    // A wrong parent or name is an error before a pipe is read.
    if let Some(parent) = &args.parent {
        repository.resolve(parent)?;
    }
    if let Some(name) = &args.name {
        check_name(name)?;
    }
    let attachments = args
        .attach
        .iter()
        .map(|(name, file)| Ok((name, attachment(Path::new(file))?)))
        .collect::<Result<Vec<_>, Failure>>()?;
    let file = source::open(&args.file, args.diff)?;

    let bar = Bar::bytes("saving");
    let mut save = repository.save_file(&file).progress(bar.observer());
    if let Some(parent) = &args.parent {
        save = save.parent_id(parent);
    }
    if args.diff {
        save = save.holes_are_parent();
    }
    if args.allow_no_holes {
        save = save.allow_no_holes();
    }
    if let Some(name) = &args.name {
        save = save.name(name);
    }
    for (key, value) in &args.label {
        save = save.label(key, value);
    }
    for (name, bytes) in attachments {
        save = save.attach(name, bytes);
    }
    let written = save.run()?;
    drop(bar);

    let document = Document { id: written.id.to_string(), blocks: written.blocks, bytes: written.bytes };
    output.result(&document, || written.id.to_string())?;
    if !output.is_json() {
        note(&format!("saved; {} added, {} written", count(written.blocks, "block"), size(written.bytes)));
    }
    Ok(())
}

/// Reads the file of an attachment.
fn attachment(path: &Path) -> Result<Vec<u8>, Failure> {
    let file = File::open(path).map_err(Failure::file("open the attachment", path))?;
    let mut bytes = Vec::new();
    file.take(MAX_ATTACHMENT + 1)
        .read_to_end(&mut bytes)
        .map_err(Failure::file("read the attachment", path))?;
    if bytes.len() as u64 > MAX_ATTACHMENT {
        return Err(Failure::new(format!(
            "cannot attach {}: it is longer than {}; save it as a snapshot of its own",
            path.display(),
            size(MAX_ATTACHMENT)
        )));
    }
    Ok(bytes)
}
