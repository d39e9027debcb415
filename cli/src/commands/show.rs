//! `memsnap show`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, IsTerminal};

use memsnap_store::{Manifest, Repository};
use serde::Serialize;

use crate::args;
use crate::failure::Failure;
use crate::output::{Output, plain, size, utc, utc_millis};

#[derive(Serialize)]
struct Document<'a> {
    id: String,
    names: &'a [String],
    /// The id, or null.
    parent: Option<String>,
    /// The base of the manifest, or null if the manifest is a full one.
    base: Option<String>,
    len: u64,
    content_len: u64,
    /// The time in UTC in the format of RFC 3339, or null after the year 9999.
    created: Option<String>,
    labels: &'a BTreeMap<String, String>,
    attachments: Vec<Attachment<'a>>,
    /// The number of blocks that this manifest lists.
    blocks: u64,
    /// The bytes that saving the snapshot added to the repository.
    stored: u64,
}

#[derive(Serialize)]
struct Attachment<'a> {
    name: &'a str,
    len: usize,
}

pub(super) fn run(args: &args::Show, output: &mut Output) -> Result<(), Failure> {
    let manifest = Repository::open(&args.repo)?.manifest(&args.id)?;
    if let Some(name) = &args.attachment {
        return write_attachment(args, &manifest, name, output);
    }
    let document = Document {
        id: manifest.id.to_string(),
        names: &manifest.names,
        parent: manifest.parent.map(|id| id.to_string()),
        base: manifest.base.map(|id| id.to_string()),
        len: manifest.len,
        content_len: manifest.content_len,
        created: utc_millis(manifest.created),
        labels: &manifest.labels,
        attachments: manifest
            .attachments
            .iter()
            .map(|(name, bytes)| Attachment { name, len: bytes.len() })
            .collect(),
        blocks: manifest.blocks,
        stored: manifest.stored,
    };
    output.result(&document, || text(&manifest))
}

fn text(manifest: &Manifest) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{key:<12}{}", plain(value));
    };
    let bytes = |number: u64| format!("{number} bytes ({})", size(number));
    line("id", &manifest.id.to_string());
    line("names", &manifest.names.join(", "));
    line("parent", &manifest.parent.map_or("none".to_owned(), |id| id.to_string()));
    line("created", &utc(manifest.created));
    line("length", &bytes(manifest.content_len));
    if manifest.len != manifest.content_len {
        line("padded to", &bytes(manifest.len));
    }
    line("stored", &bytes(manifest.stored));
    let relative = match manifest.base {
        Some(base) => format!("{} listed, the others are those of {base}", manifest.blocks),
        None => format!("{} listed, the others are zero", manifest.blocks),
    };
    line("blocks", &relative);
    for (key, value) in &manifest.labels {
        line("label", &format!("{key}={value}"));
    }
    for (name, attachment) in &manifest.attachments {
        line("attachment", &format!("{name}: {}", bytes(attachment.len() as u64)));
    }
    text
}

fn write_attachment(
    args: &args::Show,
    manifest: &Manifest,
    name: &str,
    output: &mut Output,
) -> Result<(), Failure> {
    let Some(bytes) = manifest.attachments.get(name) else {
        let known: Vec<&str> = manifest.attachments.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let id = manifest.id.short();
        return Err(Failure::new(format!(
            "snapshot {id} has no attachment {name}; its attachments: {known}"
        )));
    };
    match &args.output {
        Some(file) => fs::write(file, bytes).map_err(Failure::file("write the attachment to", file)),
        None if io::stdout().is_terminal() && !is_text(bytes) => Err(Failure::new(format!(
            "attachment {name} is not text, and the standard output is a terminal; write it to a file with --output"
        ))),
        None => output.bytes(bytes),
    }
}

/// Returns whether these bytes are text without control characters other than line ends and tabs.
fn is_text(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes)
        .is_ok_and(|text| text.chars().all(|character| !character.is_control() || "\n\t".contains(character)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_goes_to_a_terminal() {
        assert!(is_text("{\n\t\"größe\": 1\n}".as_bytes()));
        assert!(!is_text(b"\x1b[2J"));
        assert!(!is_text(b"\xff"));
    }
}
