//! `String`: UTF-8 text in a heap.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

use crate::handle::In;
use crate::snap::Snap;

/// Text in a heap, as [`std::string::String`] is in the memory of the global allocator.
///
/// It dereferences to `str`, and can be written to with `write!`.
///
/// # Examples
///
/// ```
/// use std::fmt::Write;
///
/// use memsnap_heap::{Heap, Root, String};
///
/// struct Text;
/// impl Root for Text {
///     type Of<'h> = String<'h>;
/// }
///
/// # fn main() -> std::io::Result<()> {
/// let mut heap = Heap::<Text>::new(|memory| String::from_str_in("turn", memory))?;
/// heap.with_mut(|text, _| write!(text, " {}", 12)).expect("writing to a string cannot fail");
/// assert!(heap.with(|text| text == "turn 12"));
/// # Ok(())
/// # }
/// ```
pub struct String<'h> {
    /// Always UTF-8.
    bytes: allocator_api2::vec::Vec<u8, In<'h>>,
}

// SAFETY: the text is in memory of the heap.
unsafe impl<'h> Snap<'h> for String<'h> {}

impl<'h> String<'h> {
    /// Makes an empty string, which allocates nothing.
    #[must_use]
    pub fn new_in(memory: In<'h>) -> Self {
        Self { bytes: allocator_api2::vec::Vec::new_in(memory) }
    }

    /// Makes an empty string with room for `capacity` bytes.
    #[must_use]
    pub fn with_capacity_in(capacity: usize, memory: In<'h>) -> Self {
        Self { bytes: allocator_api2::vec::Vec::with_capacity_in(capacity, memory) }
    }

    /// Makes a copy of `text`.
    #[must_use]
    pub fn from_str_in(text: &str, memory: In<'h>) -> Self {
        let mut copy = Self::with_capacity_in(text.len(), memory);
        copy.push_str(text);
        copy
    }

    /// Returns the allocator of the heap that the string is in.
    #[must_use]
    pub fn allocator(&self) -> In<'h> {
        *self.bytes.allocator()
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // SAFETY: all methods that change the bytes add or remove whole characters.
        unsafe { str::from_utf8_unchecked(&self.bytes) }
    }

    /// Returns how many bytes the string can have without a new allocation.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Appends text.
    pub fn push_str(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
    }

    /// Appends a character.
    pub fn push(&mut self, character: char) {
        self.push_str(character.encode_utf8(&mut [0; 4]));
    }

    /// Removes the last character and returns it.
    pub fn pop(&mut self) -> Option<char> {
        let last = self.chars().next_back()?;
        self.bytes.truncate(self.bytes.len() - last.len_utf8());
        Some(last)
    }

    /// Shortens the string to `len` bytes. Does nothing if it is not longer.
    ///
    /// # Panics
    ///
    /// If `len` is in the middle of a character.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len() {
            assert!(self.is_char_boundary(len), "byte {len} is in the middle of a character");
            self.bytes.truncate(len);
        }
    }

    /// Removes the whole text, and keeps the allocation.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Makes room for `additional` more bytes.
    pub fn reserve(&mut self, additional: usize) {
        self.bytes.reserve(additional);
    }

    /// Gives back what is allocated beyond the text.
    pub fn shrink_to_fit(&mut self) {
        self.bytes.shrink_to_fit();
    }
}

/// The copy is in the same heap.
impl Clone for String<'_> {
    fn clone(&self) -> Self {
        Self { bytes: self.bytes.clone() }
    }
}

impl Deref for String<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for String<'_> {
    fn as_ref(&self) -> &str {
        self
    }
}

impl Borrow<str> for String<'_> {
    fn borrow(&self) -> &str {
        self
    }
}

impl fmt::Write for String<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes.try_reserve(text.len()).map_err(|_| fmt::Error)?;
        self.push_str(text);
        Ok(())
    }
}

impl fmt::Debug for String<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for String<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.as_str(), f)
    }
}

impl Hash for String<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl<T: AsRef<str> + ?Sized> PartialEq<T> for String<'_> {
    fn eq(&self, other: &T) -> bool {
        self.as_str() == other.as_ref()
    }
}

impl PartialEq<String<'_>> for str {
    fn eq(&self, other: &String<'_>) -> bool {
        self == other.as_str()
    }
}

impl PartialEq<String<'_>> for &str {
    fn eq(&self, other: &String<'_>) -> bool {
        *self == other.as_str()
    }
}

impl Eq for String<'_> {}

impl PartialOrd for String<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for String<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other)
    }
}

impl Extend<char> for String<'_> {
    fn extend<I: IntoIterator<Item = char>>(&mut self, characters: I) {
        characters.into_iter().for_each(|character| self.push(character));
    }
}

impl<'a> Extend<&'a str> for String<'_> {
    fn extend<I: IntoIterator<Item = &'a str>>(&mut self, texts: I) {
        texts.into_iter().for_each(|text| self.push_str(text));
    }
}
