//! Names of snapshots in a remote, and how they move.
//!
//! A move of a name writes an *entry*: a new object `names/<name>/<20 digits>`. Its number is one more than the highest
//! number so far, and its content is the id of the snapshot. The name stands for the entry with the highest number.
//! Entries are never overwritten.
//!
//! Where the store honours conditions, an entry is created only if there is none with the number. So one of two movers
//! at the same time fails. Where the store ignores conditions, an entry has a random end, so that both movers succeed
//! with the same number. The last of them in the order of their paths is what the name stands for, and readers are told
//! of the others.
//!
//! The content of zeroes stands for no snapshot: such an entry removes the name.
//!
//! Where the store ignores conditions, a mover lists the entries again after it wrote its own. It takes its entry back if it came too late, or if it
//! had not seen all entries that its own one hides.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use super::Remote;
use super::objects::Object;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::name::{differ_only_in_case, same_but_for_case};

/// The longest name of the folder of a name. Most file systems allow file names of up to 255 bytes.
const MAX_NAME: usize = 240;

/// The longest content of an entry that is read. An id and a line end are shorter.
const MAX_CONTENT: u64 = 128;

/// How often a name is read if entries are deleted between the listing and the reading.
const TRIES: usize = 3;

/// The content of an entry that removes the name.
const REMOVED: Id = Id::from_bytes([0; 32]);

/// A name in a remote, and what it stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct RemoteName {
    /// The name.
    pub name: String,
    /// The snapshot that it stands for.
    pub id: Id,
    /// Other snapshots to which the name was moved at the same time. Empty if the store honours conditions.
    ///
    /// After the next move of the name, this is empty again.
    pub also: Vec<Id>,
}

/// The last part of the path of an entry: number and random end.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Entry {
    pub(super) number: u64,
    pub(super) end: String,
}

impl Entry {
    fn parse(text: &str) -> Option<Self> {
        let (digits, end) = match text.split_once('-') {
            Some((digits, end)) => (digits, end),
            None => (text, ""),
        };
        let is_end =
            text.len() == 20 || (end.len() == 16 && end.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let is_number = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
        // The largest numbers of 20 digits do not fit.
        let number = digits.parse().ok()?;
        (is_end && is_number).then(|| Self { number, end: end.to_owned() })
    }

    fn path(&self, name: &str) -> String {
        let folder = encode(name);
        match self.end.as_str() {
            "" => format!("names/{folder}/{:020}", self.number),
            end => format!("names/{folder}/{:020}-{end}", self.number),
        }
    }
}

impl Remote {
    /// Returns all names, in ascending order.
    ///
    /// # Errors
    ///
    /// - [`Error::Damaged`] if an object below `names` is not a valid entry.
    /// - [`Error::Remote`] if the store does not answer or refuses a request.
    /// - [`Error::Busy`] if names were moved again and again while they were read.
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap_store::{Remote, RemoteOptions};
    ///
    /// let remote = Remote::create("memory:///", &RemoteOptions::new())?;
    /// assert!(remote.names()?.is_empty());
    /// # Ok::<(), memsnap_store::Error>(())
    /// ```
    pub fn names(&self) -> Result<Vec<RemoteName>> {
        let began = Instant::now();
        for _ in 0..TRIES {
            let mut tops = BTreeMap::new();
            self.objects.list("names", |object| {
                let (name, entry) = self.parse_entry(&object)?;
                keep_highest(tops.entry(name).or_default(), entry);
                Ok(())
            })?;
            if let Some(names) = self.read_tops(tops)? {
                return Ok(names);
            }
        }
        Err(Error::Busy {
            place: self.url().to_owned(),
            lock: "names that other processes move",
            seconds: began.elapsed().as_secs(),
        })
    }

    /// Returns a name and the snapshot that it stands for, or `None` if there is no such name.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if `name` cannot be a name; [`Error::Conflict`] if the name was moved again and again while it
    /// was read. Otherwise, those of [`names`](Self::names).
    pub fn name(&self, name: &str) -> Result<Option<RemoteName>> {
        Ok(self.current(name)?.0)
    }

    /// Returns what a name stands for, and its highest entries.
    fn current(&self, name: &str) -> Result<(Option<RemoteName>, Vec<Entry>)> {
        check(name)?;
        for _ in 0..TRIES {
            let mut tops = Vec::new();
            for entry in self.entries(name)? {
                keep_highest(&mut tops, entry);
            }
            if tops.is_empty() {
                return Ok((None, tops));
            }
            if let Some(names) = self.read_tops(BTreeMap::from([(name.to_owned(), tops.clone())]))? {
                return Ok((names.into_iter().next(), tops));
            }
        }
        Err(Error::Conflict { name: name.to_owned() })
    }

    /// Moves a name from the snapshot `expected` to `id`. `None` means that the name must not exist.
    ///
    /// If the name already stands for `id` alone, it is not moved. The result is the name after the move. If the store
    /// ignores conditions and another process moved the name at the same time, the name can stand for the snapshot of
    /// that process, and `id` is in [`RemoteName::also`].
    ///
    /// Returns [`Error::Conflict`] if the name does not stand for `expected`.
    pub(crate) fn move_name(&self, name: &str, expected: Option<Id>, id: Id) -> Result<RemoteName> {
        self.check_case(name)?;
        let (current, seen) = self.current(name)?;
        if let Some(current) = &current
            && current.id == id
            && current.also.is_empty()
        {
            return Ok(current.clone());
        }
        let conflict = || Error::Conflict { name: name.to_owned() };
        if current.map(|current| current.id) != expected {
            return Err(conflict());
        }
        self.append(name, &seen, id)?;
        self.name(name)?.ok_or_else(conflict)
    }

    /// Fails if the remote is a folder, and the name is new and differs only in case from another one.
    ///
    /// Some systems would keep the entries of both in one folder. An object store tells them apart.
    pub(crate) fn check_case(&self, name: &str) -> Result<()> {
        if !self.url().starts_with("file:") {
            return Ok(());
        }
        let (mut exists, mut other) = (false, None);
        self.objects.list("names", |object| {
            let found = self.parse_entry(&object)?.0;
            exists |= found == name;
            if differ_only_in_case(name, &found) {
                other = Some(found);
            }
            Ok(())
        })?;
        match other {
            Some(other) if !exists && self.name(&other)?.is_none() => Err(Error::invalid(format!(
                "{name:?} cannot be a new name in {}: the name {other:?} was removed, but the remote still has its \
                 entries, and Windows and macOS keep those of both in one folder; use {other:?} or a name that differs in \
                 more than case",
                self.url()
            ))),
            Some(other) if !exists => Err(same_but_for_case(name, &other)),
            _ => Ok(()),
        }
    }

    /// Removes a name if it stands for `id` alone. Returns whether it did.
    pub(crate) fn remove_name_of(&self, name: &str, id: Id) -> Result<bool> {
        let (current, seen) = self.current(name)?;
        if !current.is_some_and(|current| current.id == id && current.also.is_empty()) {
            return Ok(false);
        }
        match self.append(name, &seen, REMOVED) {
            Err(Error::Conflict { .. }) => Ok(false),
            removed => removed.map(|()| true),
        }
    }

    /// Writes the entry after `seen`, the highest entries, which have the same number.
    pub(super) fn append(&self, name: &str, seen: &[Entry], id: Id) -> Result<()> {
        let base = seen.first().map_or(0, |entry| entry.number);
        let number = base.checked_add(1).ok_or_else(|| {
            Error::damaged(self.objects.full(&format!("names/{}", encode(name))), "its numbers are used up")
        })?;
        let conditional = self.honours_conditions()?;
        let end = if conditional { String::new() } else { format!("{:016x}", rand::random::<u64>()) };
        let entry = Entry { number, end };
        let path = entry.path(name);
        let content = id.to_string();
        if !conditional {
            self.objects.put(&path, content)?;
        } else if !self.objects.create(&path, content.clone())?
            // The answer to an earlier attempt may have been lost.
            && self.objects.get(&path, MAX_CONTENT)?.as_deref() != Some(content.as_bytes())
        {
            return Err(Error::Conflict { name: name.to_owned() });
        }
        self.confirm(name, seen, &entry)
    }

    /// Fails if a new entry came too late, because others were written after it was decided which number it gets.
    fn confirm(&self, name: &str, seen: &[Entry], written: &Entry) -> Result<()> {
        let entries = self.entries(name)?;
        // Old entries are pruned. If the base is, this process was stopped for a long time meanwhile.
        let base = seen.first().map(|entry| entry.number);
        let base_is_gone = base.is_some_and(|base| entries.iter().all(|entry| entry.number != base));
        let passed = entries.iter().any(|entry| entry.number > written.number);
        let conditional = written.end.is_empty();
        // The mover that wrote it was told that the name was moved, and this entry hides it.
        let hides = entries.iter().any(|entry| Some(entry.number) == base && !seen.contains(entry));
        // Where conditions are honoured, a higher number is a move that came after this one.
        let too_late = if conditional { passed && base_is_gone } else { passed || base_is_gone || hides };
        if too_late {
            self.objects.delete(&written.path(name))?;
            return Err(Error::Conflict { name: name.to_owned() });
        }
        Ok(())
    }

    /// Deletes old entries of names: all but the last `keep` of each name, and those younger than `grace`.
    ///
    /// Returns the number of deleted entries.
    ///
    /// A process that moves a name relies on the entry with the highest number that it found. So `grace` has to be
    /// longer than a move can take.
    pub(crate) fn prune_names(&self, keep: usize, grace: Duration, now: SystemTime) -> Result<usize> {
        let mut names: BTreeMap<String, Vec<(Entry, SystemTime)>> = BTreeMap::new();
        self.objects.list("names", |object| {
            let (name, entry) = self.parse_entry(&object)?;
            names.entry(name).or_default().push((entry, object.modified));
            Ok(())
        })?;
        let mut old = Vec::new();
        for (name, mut entries) in names {
            entries.sort();
            let mut numbers: Vec<u64> = entries.iter().map(|(entry, _)| entry.number).collect();
            numbers.dedup();
            // Entries with the same number are kept or deleted together.
            let Some(lowest) = numbers.iter().rev().nth(keep.max(1) - 1) else { continue };
            let is_old = |modified: SystemTime| modified.checked_add(grace).is_some_and(|end| end < now);
            for (entry, modified) in entries {
                if entry.number < *lowest && is_old(modified) {
                    old.push(entry.path(&name));
                }
            }
        }
        let count = old.len();
        self.objects.delete_many(old)?;
        Ok(count)
    }

    /// Returns the entries of one name.
    fn entries(&self, name: &str) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        self.objects.list(&format!("names/{}", encode(name)), |object| {
            entries.push(self.parse_entry(&object)?.1);
            Ok(())
        })?;
        Ok(entries)
    }

    fn parse_entry(&self, object: &Object) -> Result<(String, Entry)> {
        let mut parts = object.path.split('/').skip(1);
        let name = parts.next().and_then(decode);
        let entry = parts.next().and_then(Entry::parse);
        match (name, entry, parts.next()) {
            (Some(name), Some(entry), None) => Ok((name, entry)),
            _ => Err(Error::damaged(
                self.objects.full(&object.path),
                "it is not an entry of a name; delete it if it is yours",
            )),
        }
    }

    /// Reads the highest entries of names. Returns `None` if one of them was deleted.
    fn read_tops(&self, tops: BTreeMap<String, Vec<Entry>>) -> Result<Option<Vec<RemoteName>>> {
        let mut paths = Vec::new();
        for (name, entries) in &tops {
            paths.extend(entries.iter().map(|entry| entry.path(name)));
        }
        let contents = self.objects.get_many(&paths, MAX_CONTENT)?;
        let mut contents = paths.iter().zip(contents);
        let mut names = Vec::new();
        for (name, entries) in tops {
            let mut ids = Vec::new();
            for (path, content) in contents.by_ref().take(entries.len()) {
                let Some(content) = content else { return Ok(None) };
                let id =
                    std::str::from_utf8(&content).ok().and_then(|text| text.trim_end().parse::<Id>().ok());
                ids.push(
                    id.ok_or_else(|| Error::damaged(self.objects.full(path), "its content is not an id"))?,
                );
            }
            ids.retain(|id| *id != REMOVED);
            let Some(id) = ids.pop() else { continue };
            ids.sort();
            ids.dedup();
            ids.retain(|other| *other != id);
            names.push(RemoteName { name, id, also: ids });
        }
        Ok(Some(names))
    }
}

/// Adds an entry to `tops`, the entries with the highest number so far, in ascending order.
fn keep_highest(tops: &mut Vec<Entry>, entry: Entry) {
    let highest = tops.first().map_or(0, |top| top.number);
    if entry.number > highest {
        tops.clear();
    }
    if entry.number >= highest {
        let place = tops.partition_point(|top| *top < entry);
        tops.insert(place, entry);
    }
}

/// Fails if `name` cannot be a name in a remote.
pub(crate) fn check(name: &str) -> Result<()> {
    if name.is_empty() || encode(name).len() > MAX_NAME {
        return Err(Error::invalid(format!(
            "{name:?} cannot be a name in a remote: a name has 1 to {MAX_NAME} bytes; each byte that is not an ASCII \
             letter, a digit, a dot, a dash or an underscore counts as 3"
        )));
    }
    Ok(())
}

/// Encodes a name as a part of a path.
///
/// Replaces bytes that a store may refuse by `=` and two hexadecimal digits.
fn encode(name: &str) -> String {
    let mut text = String::new();
    for (index, byte) in name.bytes().enumerate() {
        let plain =
            byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') || (byte == b'.' && index > 0);
        if plain {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("={byte:02x}"));
        }
    }
    text
}

/// Returns the name that [`encode`] turns into `text`, if there is one.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'=' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    let name = String::from_utf8(bytes).ok()?;
    (encode(&name) == text && check(&name).is_ok()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_their_encoding() {
        for name in ["base", ".hidden", "..", "a/b", "über 1", "a=b%20", "x.y-z_0", "日本"] {
            let text = encode(name);
            assert!(
                text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.=".contains(&byte)),
                "{text}"
            );
            assert!(!text.starts_with('.'));
            assert_eq!(decode(&text).as_deref(), Some(name));
        }
        for text in ["", ".", "a=", "a=4", "a=zz", "=61", "=C3=BC", "=ff", "a=+1"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }

    #[test]
    fn long_and_empty_names_are_refused() {
        assert!(check(&"x".repeat(240)).is_ok());
        for name in ["", &"x".repeat(241), &"ü".repeat(41)] {
            assert!(matches!(check(name), Err(Error::Invalid { .. })));
        }
    }

    #[test]
    fn only_numbers_of_20_digits_are_entries() {
        let entry = Entry::parse("00000000000000000007-00000000000000ff").unwrap();
        assert_eq!((entry.number, entry.end.as_str()), (7, "00000000000000ff"));
        assert_eq!(entry.path("n"), "names/n/00000000000000000007-00000000000000ff");
        assert!(Entry::parse("18446744073709551615").is_some());
        for text in [
            "18446744073709551616",
            "7",
            "+0000000000000000007",
            "00000000000000000007-",
            "00000000000000000007-00000000000000fg",
            "00000000000000000007x00000000000000ff",
        ] {
            assert_eq!(Entry::parse(text), None, "{text}");
        }
    }
}
