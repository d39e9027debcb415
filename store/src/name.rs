//! Names of snapshots: which texts can be one.

use crate::error::{Error, Result};
use crate::id::Id;

/// The greatest length of a name in bytes.
const LONGEST: usize = 128;

/// Checks that a text can be the name of a snapshot.
///
/// [`Save::name`](crate::Save::name) and [`Repository::set_name`](crate::Repository::set_name) check it too. A program
/// that does long work before it saves can check the name first.
///
/// # Errors
///
/// [`Error::Invalid`] says what a name consists of.
///
/// # Examples
///
/// ```
/// use memsnap_store::check_name;
///
/// assert!(check_name("base-2026.11").is_ok());
/// assert!(check_name("a/b").is_err());
/// ```
pub fn check_name(name: &str) -> Result<()> {
    // An id as a name would hide the snapshot with this id.
    if is_safe(name) && name.parse::<Id>().is_err() {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{name:?} cannot be a name: a name has 1 to 128 letters, digits and . _ - + @ =, does not begin with . or -, \
         does not end with a dot, and is not an id"
    )))
}

/// Whether a name can be used as the name of a file: it has no separator of paths, and is not `..`.
pub(crate) fn is_safe(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+@=".contains(&byte);
    (1..=LONGEST).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with(['.', '-'])
        && !name.ends_with('.')
}
