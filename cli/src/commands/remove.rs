//! `memsnap remove`.

use memsnap_store::Repository;
use serde::Serialize;

use crate::args;
use crate::failure::Failure;
use crate::output::Output;
use crate::remote;

#[derive(Serialize)]
struct Document {
    id: String,
}

pub(super) fn run(args: &args::Remove, output: &mut Output) -> Result<(), Failure> {
    let id = match remote::url(&args.repo) {
        Some(url) => remote::open(url)?.remove(&args.id)?,
        None => Repository::open(&args.repo)?.remove(&args.id)?,
    };
    output.result(&Document { id: id.to_string() }, || format!("removed {id}; `memsnap gc` frees its space"))
}
