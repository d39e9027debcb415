//! Object stores: the only place that opens them.

use std::path::Path;

use memsnap_store::{Error, Remote, RemoteOptions};

use crate::failure::Failure;
use crate::output::note;

/// Returns the URL if a repository is named by one instead of a folder.
pub(crate) fn url(repo: &Path) -> Option<&str> {
    repo.to_str().filter(|text| text.contains("://"))
}

/// Opens the repository in an object store to push to it. Makes one if there is none.
pub(crate) fn open_or_create(url: &str) -> Result<Remote, Failure> {
    let remote = Remote::open_or_create(url, &RemoteOptions::new())?;
    if !remote.honours_conditions()? {
        note(
            "this object store ignores conditional writes, so a name that two machines move at the same time \
             stands for one of the two snapshots; both are kept, and `memsnap pull` reports it",
        );
    }
    Ok(remote)
}

/// Opens the repository in an object store to pull from it.
pub(crate) fn open(url: &str) -> Result<Remote, Failure> {
    Ok(Remote::open(url, &RemoteOptions::new())?)
}

/// Returns whether `text` is a name in an object store. Says so if it was moved to several snapshots at the same time.
pub(crate) fn has_name(remote: &Remote, text: &str) -> Result<bool, Failure> {
    let name = match remote.name(text) {
        Ok(Some(name)) => name,
        // What cannot be a name can still be wrong in another way, which the pull itself says.
        Ok(None) | Err(Error::Invalid { .. }) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    if !name.also.is_empty() {
        let also: Vec<String> = name.also.iter().map(ToString::to_string).collect();
        note(&format!(
            "the name {text} was moved by several machines at the same time: it stands for {}, and was also moved to {}",
            name.id,
            also.join(", ")
        ));
    }
    Ok(true)
}
