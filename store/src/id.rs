//! `Id`: the hash that names a block, a pack or a manifest. `Reference`: a reference to a snapshot.

use std::fmt;
use std::str::FromStr;

use crate::Saved;
use crate::error::Error;

/// The id of a saved snapshot: the BLAKE3 hash of its manifest, which has 32 bytes.
///
/// It is displayed as 64 lowercase hexadecimal digits. [`Id::short`] returns the first 12 of them.
///
/// # Examples
///
/// ```
/// use memsnap_store::Id;
///
/// let id: Id = "00".repeat(32).parse()?;
/// assert_eq!(id.short(), "000000000000");
/// assert_eq!(id.to_string().len(), 64);
/// # Ok::<(), memsnap_store::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id([u8; 32]);

impl Id {
    /// Returns the id with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes of the id.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the first 12 hexadecimal digits.
    #[must_use]
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(12);
        text
    }

    /// Returns the hash of `bytes`.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        blake3::hash(bytes).into()
    }
}

impl From<blake3::Hash> for Id {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Id({})", self.short())
    }
}

impl FromStr for Id {
    type Err = Error;

    /// Parses 64 hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, Error> {
        match blake3::Hash::from_hex(text) {
            Ok(hash) => Ok(hash.into()),
            Err(_) => Err(Error::Invalid {
                what: format!("{text:?} is not an id: an id has 64 hexadecimal digits"),
            }),
        }
    }
}

/// A reference to a saved snapshot: its id, the first digits of its id, or a name.
///
/// Functions that take `impl Into<Reference>` accept an [`Id`], a [`Saved`], or text. Text is a name if the repository
/// has that name. Otherwise, it is an id, or the first digits of an id (at least 4).
///
/// # Examples
///
/// ```
/// use memsnap_store::Reference;
///
/// assert_eq!(Reference::from("base").to_string(), "base");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reference {
    /// An id.
    Id(Id),
    /// A name, or the first digits of an id.
    Text(String),
}

impl From<Id> for Reference {
    fn from(id: Id) -> Self {
        Self::Id(id)
    }
}

impl From<&Id> for Reference {
    fn from(id: &Id) -> Self {
        Self::Id(*id)
    }
}

impl From<&Saved> for Reference {
    fn from(saved: &Saved) -> Self {
        Self::Id(saved.id())
    }
}

impl From<&str> for Reference {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<&String> for Reference {
    fn from(text: &String) -> Self {
        Self::Text(text.clone())
    }
}

impl From<String> for Reference {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}
