//! `memsnap verify`.

use memsnap_store::{Depth, Repository};
use serde::Serialize;

use crate::args;
use crate::failure::Failure;
use crate::output::{Output, count, plain};
use crate::progress::Bar;

#[derive(Serialize)]
struct Document<'a> {
    /// Whether there are no problems.
    intact: bool,
    manifests: u64,
    packs: u64,
    blocks: u64,
    /// The problems, with one sentence for each.
    problems: &'a [String],
}

pub(super) fn run(args: &args::Verify, output: &mut Output) -> Result<(), Failure> {
    let repository = Repository::open(&args.repo)?;
    let bar = Bar::spinner("checking");
    let found = repository.verify(if args.data { Depth::Data } else { Depth::Structure })?;
    drop(bar);

    let document = Document {
        intact: found.problems.is_empty(),
        manifests: found.manifests,
        packs: found.packs,
        blocks: found.blocks,
        problems: &found.problems,
    };
    output.result(&document, || {
        let mut lines: Vec<String> = found.problems.iter().map(|problem| plain(problem)).collect();
        lines.push(format!(
            "checked {}, {}, {}: {}",
            count(found.manifests, "manifest"),
            count(found.packs, "pack"),
            count(found.blocks, "block"),
            if found.problems.is_empty() {
                "no damage".to_owned()
            } else {
                count(found.problems.len() as u64, "problem")
            },
        ));
        lines.join("\n")
    })?;
    if found.problems.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{} is damaged: move damaged packs, if any, out of its folder `packs`, run `memsnap repair`, then pull or save lost snapshots again",
        args.repo.display(),
    )))
}
