//! `memsnap name`.

use memsnap_store::Repository;
use serde::Serialize;

use crate::args;
use crate::failure::Failure;
use crate::output::{Output, plain};

#[derive(Serialize)]
struct Document<'a> {
    name: &'a str,
    /// The id, or null if the name was deleted.
    id: Option<String>,
}

pub(super) fn run(args: &args::Name, output: &mut Output) -> Result<(), Failure> {
    let repository = Repository::open(&args.repo)?;
    let (name, id) = match (&args.id, &args.name, &args.delete) {
        (_, _, Some(name)) => {
            repository.remove_name(name)?;
            (name, None)
        }
        (Some(id), Some(name), None) => (name, Some(repository.set_name(name, id)?)),
        // The definition of the arguments excludes this.
        _ => return Err(Failure::new("give a snapshot and a name, or --delete and a name")),
    };
    output.result(&Document { name, id: id.map(|id| id.to_string()) }, || match id {
        Some(id) => format!("{} is the name of {id}", plain(name)),
        None => format!("deleted the name {}", plain(name)),
    })
}
