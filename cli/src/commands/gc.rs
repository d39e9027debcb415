//! `memsnap gc`.

use memsnap_store::{Collect, Repository};
use serde::Serialize;

use crate::args;
use crate::failure::Failure;
use crate::output::{Output, count, size};
use crate::progress::Bar;
use crate::remote;

#[derive(Serialize)]
struct Document {
    dry_run: bool,
    /// The number of packs that were deleted because no snapshot needs them.
    packs: u64,
    /// The number of packs that were deleted after their needed blocks had been written to new packs.
    repacked: u64,
    manifests: u64,
    /// The bytes of all deleted files, minus those of the new packs.
    bytes: u64,
}

pub(super) fn run(args: &args::Gc, output: &mut Output) -> Result<(), Failure> {
    let options = Collect::new().grace(args.grace).dry_run(args.dry_run).cache(args.cache);
    let bar = Bar::spinner("collecting");
    let found = match remote::url(&args.repo) {
        Some(url) => remote::open(url)?.collect(&options)?,
        None => Repository::open(&args.repo)?.collect(&options)?,
    };
    drop(bar);

    let document = Document {
        dry_run: args.dry_run,
        packs: found.packs,
        repacked: found.repacked,
        manifests: found.manifests,
        bytes: found.bytes,
    };
    output.result(&document, || {
        let (deleted, rewrote, freed) = match args.dry_run {
            true => ("would delete", "would rewrite", "would be freed"),
            false => ("deleted", "rewrote", "freed"),
        };
        let (manifests, packs) = (count(found.manifests, "manifest"), count(found.packs, "pack"));
        let repacked = count(found.repacked, "pack");
        format!("{deleted} {manifests} and {packs}, {rewrote} {repacked}; {} {freed}", size(found.bytes))
    })
}
