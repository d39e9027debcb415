//! `memsnap push` and `memsnap pull`.

use memsnap_store::{Error, Id, Repository, Transfer, Transferred};
use serde::Serialize;

use crate::args;
use crate::failure::Failure;
use crate::output::{Output, count, plain, size};
use crate::progress::Bar;
use crate::remote;

#[derive(Serialize)]
struct Document<'a> {
    snapshots: Vec<Snapshot<'a>>,
}

#[derive(Serialize)]
struct Snapshot<'a> {
    id: String,
    /// The name that was moved in the destination, or null.
    name: Option<&'a str>,
    /// The number of blocks that the destination lacked.
    blocks: u64,
    /// The bytes that were sent or received.
    bytes: u64,
}

pub(super) fn push(args: &args::Push, output: &mut Output) -> Result<(), Failure> {
    let repository = Repository::open(&args.repo)?;
    // A wrong id is an error before anything is sent.
    for id in &args.ids {
        repository.resolve(id)?;
    }
    let names = repository.names()?;
    let remote = remote::open_or_create(&args.url)?;
    let is_name = |id: &str| Ok(names.iter().any(|(name, _)| name == id));
    let ways = Ways {
        is_name,
        resolve: |id: &str| repository.resolve(id),
        begin: |id| repository.push(&remote, id),
    };
    transfer(&args.ids, "pushing", "sent", &ways, output)
}

pub(super) fn pull(args: &args::Pull, output: &mut Output) -> Result<(), Failure> {
    let repository = Repository::open(&args.repo)?;
    let remote = remote::open(&args.url)?;
    let is_name = |id: &str| remote::has_name(&remote, id);
    let ways =
        Ways { is_name, resolve: |id: &str| remote.resolve(id), begin: |id| repository.pull(&remote, id) };
    transfer(&args.ids, "pulling", "received", &ways, output)
}

/// How a push and a pull differ.
struct Ways<N, R, B> {
    /// Returns whether the source has this name.
    is_name: N,
    /// Returns the id of a snapshot of the source.
    resolve: R,
    begin: B,
}

/// Copies snapshots one after the other. A snapshot that was given by its name is copied with the name.
fn transfer<'a, 'r>(
    ids: &'a [String],
    action: &str,
    done: &str,
    ways: &Ways<
        impl Fn(&str) -> Result<bool, Failure>,
        impl Fn(&str) -> Result<Id, Error>,
        impl Fn(&'a str) -> Transfer<'r>,
    >,
    output: &mut Output,
) -> Result<(), Failure> {
    let mut document = Document { snapshots: Vec::new() };
    let mut lines = Vec::new();
    let mut result = Ok(());
    for id in ids {
        match one(id, action, ways) {
            Ok((transferred, name)) => {
                lines.push(line(&transferred, name, done));
                document.snapshots.push(Snapshot {
                    id: transferred.id.to_string(),
                    name,
                    blocks: transferred.blocks,
                    bytes: transferred.bytes,
                });
            }
            Err(failure) => {
                result = Err(failure);
                break;
            }
        }
    }
    // After a failure too, because the snapshots that were copied before it stay.
    output.result(&document, || lines.join("\n"))?;
    result
}

fn one<'a, 'r>(
    id: &'a str,
    action: &str,
    ways: &Ways<
        impl Fn(&str) -> Result<bool, Failure>,
        impl Fn(&str) -> Result<Id, Error>,
        impl Fn(&'a str) -> Transfer<'r>,
    >,
) -> Result<(Transferred, Option<&'a str>), Failure> {
    let name = (ways.is_name)(id)?.then_some(id);
    let bar = Bar::bytes(format!("{action} {}", plain(id)));
    let mut transfer = (ways.begin)(id).progress(bar.observer());
    if let Some(name) = name {
        transfer = transfer.name(name);
    }
    match (transfer.run(), name) {
        // The destination cannot have the name, for example because it has one that differs only in case.
        (Err(error @ Error::Invalid { .. }), Some(name)) => match (ways.resolve)(name) {
            Ok(id) => Err(Failure::new(format!(
                "{error}; to copy the snapshot without the name, give its id: {id}"
            ))),
            Err(_) => Err(error.into()),
        },
        (transferred, name) => Ok((transferred?, name)),
    }
}

fn line(transferred: &Transferred, name: Option<&str>, done: &str) -> String {
    let name = name.map(|name| format!(" {}", plain(name))).unwrap_or_default();
    format!(
        "{}{name}: {}, {} {done}",
        transferred.id,
        count(transferred.blocks, "block"),
        size(transferred.bytes)
    )
}
