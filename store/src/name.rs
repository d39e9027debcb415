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
/// // Windows cannot keep a file with this name.
/// assert!(check_name("con").is_err());
/// ```
pub fn check_name(name: &str) -> Result<()> {
    if !can_exist(name) {
        return Err(Error::invalid(format!(
            "{name:?} cannot be a name: a name has 1 to 128 letters, digits and . _ - + @ =, does not begin with . or \
             -, does not end with a dot, and is not an id"
        )));
    }
    if is_device(name) {
        let device = name.split('.').next().unwrap_or(name);
        return Err(Error::invalid(format!(
            "{name:?} cannot be a name: Windows reserves {device:?} for a device, also with an extension; put \
             something before it, as in \"vm-{name}\""
        )));
    }
    Ok(())
}

/// Whether a repository can have this name. Repositories of older versions have names that [`check_name`] refuses.
pub(crate) fn can_exist(name: &str) -> bool {
    // An id as a name would hide the snapshot with this id.
    is_safe(name) && name.parse::<Id>().is_err()
}

/// Whether a name can be used as the name of a file: it has no separator of paths, and is not `..`.
pub(crate) fn is_safe(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+@=".contains(&byte);
    (1..=LONGEST).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with(['.', '-'])
        && !name.ends_with('.')
}

/// Whether Windows reserves a name for a device, so that no file can have it.
fn is_device(name: &str) -> bool {
    // The extension does not matter: `con.img` is the console too.
    let stem = name.split('.').next().unwrap_or(name).to_ascii_lowercase();
    match stem.as_bytes() {
        b"con" | b"nul" | b"aux" | b"prn" => true,
        [b'c', b'o', b'm', digit] | [b'l', b'p', b't', digit] => digit.is_ascii_digit(),
        _ => false,
    }
}

/// Whether this system can keep the file of a name.
///
/// A repository of an older version can have a name that Windows reserves. The index has it on every system.
pub(crate) fn has_file(name: &str) -> bool {
    !cfg!(windows) || !is_device(name)
}

/// Whether two names are the file of one name on a system that ignores case, such as Windows or macOS.
pub(crate) fn differ_only_in_case(one: &str, other: &str) -> bool {
    // Names consist of ASCII characters.
    one != other && one.eq_ignore_ascii_case(other)
}

/// Returns the error for a new name that differs only in case from one that exists.
pub(crate) fn same_but_for_case(name: &str, existing: &str) -> Error {
    Error::invalid(format!(
        "{name:?} cannot be a new name: the name {existing:?} exists, and Windows and macOS keep both in one file; use \
         {existing:?} or a name that differs in more than case"
    ))
}
