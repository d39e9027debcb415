//! `memsnap repair`.

use memsnap_store::Repository;
use serde::Serialize;

use crate::args;
use crate::failure::Failure;
use crate::output::{Output, count, plain};
use crate::progress::Bar;

#[derive(Serialize)]
struct Document<'a> {
    /// The numbers of manifests, packs and names that are in the new index.
    manifests: u64,
    packs: u64,
    names: u64,
    /// The files that cannot be used, with one sentence for each.
    problems: &'a [String],
}

pub(super) fn run(args: &args::Repair, output: &mut Output) -> Result<(), Failure> {
    let bar = Bar::spinner("rebuilding the index");
    let found = Repository::repair(&args.repo)?;
    drop(bar);

    let document = Document {
        manifests: found.manifests,
        packs: found.packs,
        names: found.names,
        problems: &found.problems,
    };
    output.result(&document, || {
        let mut lines: Vec<String> = found.problems.iter().map(|problem| plain(problem)).collect();
        lines.push(format!(
            "rebuilt the index from {}, {}, {}",
            count(found.manifests, "manifest"),
            count(found.packs, "pack"),
            count(found.names, "name"),
        ));
        lines.join("\n")
    })?;
    if found.problems.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{} has files that cannot be used; pull the snapshots that need them, or save their files again",
        args.repo.display(),
    )))
}
