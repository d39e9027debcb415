//! `memsnap init`.

use memsnap_store::Repository;
use serde::Serialize;

use crate::args;
use crate::failure::Failure;
use crate::output::Output;

#[derive(Serialize)]
struct Document {
    /// The folder. Bytes that are not Unicode are replaced.
    repository: String,
}

pub(super) fn run(args: &args::Init, output: &mut Output) -> Result<(), Failure> {
    Repository::create(&args.repo)?;
    let repository = args.repo.display().to_string();
    output.result(&Document { repository: repository.clone() }, || {
        format!("made an empty repository in {repository}")
    })
}
