//! `memsnap list`.

use comfy_table::{CellAlignment, Table, presets};
use memsnap_store::{Repository, Summary};
use serde::Serialize;

use crate::args;
use crate::failure::Failure;
use crate::output::{Output, plain, size, utc, utc_millis};
use crate::remote;

#[derive(Serialize)]
struct Document {
    snapshots: Vec<Snapshot>,
}

#[derive(Serialize)]
struct Snapshot {
    id: String,
    names: Vec<String>,
    /// The id, or null.
    parent: Option<String>,
    len: u64,
    content_len: u64,
    /// The time in UTC in the format of RFC 3339, or null after the year 9999.
    created: Option<String>,
    /// The bytes that saving the snapshot added to the repository.
    stored: u64,
}

impl From<&Summary> for Snapshot {
    fn from(summary: &Summary) -> Self {
        Self {
            id: summary.id.to_string(),
            names: summary.names.clone(),
            parent: summary.parent.map(|id| id.to_string()),
            len: summary.len,
            content_len: summary.content_len,
            created: utc_millis(summary.created),
            stored: summary.stored,
        }
    }
}

pub(super) fn run(args: &args::List, output: &mut Output) -> Result<(), Failure> {
    let summaries = match remote::url(&args.repo) {
        Some(url) => remote::open(url)?.list()?,
        None => Repository::open(&args.repo)?.list()?,
    };
    let document = Document { snapshots: summaries.iter().map(Snapshot::from).collect() };
    output.result(&document, || table(&summaries))
}

fn table(summaries: &[Summary]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["ID", "NAMES", "CREATED", "LENGTH", "STORED", "PARENT"]);
    for summary in summaries {
        table.add_row([
            summary.id.short(),
            plain(&summary.names.join(", ")),
            utc(summary.created),
            size(summary.content_len),
            size(summary.stored),
            summary.parent.map(|id| id.short()).unwrap_or_default(),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for column in [3, 4] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}
