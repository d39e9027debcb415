//! Opens repositories in object stores.

use std::path::Path;

use memsnap_store::{Error, Remote, RemoteOptions};

use crate::failure::Failure;
use crate::output::note;

/// Returns the URL if `repo` is one, or `None` if it is a folder.
pub(crate) fn url(repo: &Path) -> Option<&str> {
    repo.to_str().filter(|text| text.contains("://"))
}

/// Opens the repository in an object store to push to it. Makes one if there is none.
pub(crate) fn open_or_create(url: &str) -> Result<Remote, Failure> {
    let remote = Remote::open_or_create(url, &RemoteOptions::new())?;
    if !remote.honours_conditions()? {
        note(
            "this object store ignores conditional writes: if two machines move a name at the same time, it stands \
             for one of their two snapshots; both snapshots are kept, and `memsnap pull` reports the other one",
        );
    }
    Ok(remote)
}

/// Opens the repository in an object store to pull from it.
pub(crate) fn open(url: &str) -> Result<Remote, Failure> {
    Ok(Remote::open(url, &RemoteOptions::new())?)
}

/// Returns whether `text` is a name in an object store.
///
/// Prints a message if several machines moved it at the same time.
pub(crate) fn has_name(remote: &Remote, text: &str) -> Result<bool, Failure> {
    let name = match remote.name(text) {
        Ok(Some(name)) => name,
        // A text that cannot be a name may be the digits of an id. The pull reports it if it is neither.
        Ok(None) | Err(Error::Invalid { .. }) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    if !name.also.is_empty() {
        let also: Vec<String> = name.also.iter().map(ToString::to_string).collect();
        note(&format!(
            "several machines moved the name {text} at the same time: it stands for {}, and was also moved to {}",
            name.id,
            also.join(", ")
        ));
    }
    Ok(true)
}
