//! Maps of text to lists of numbers, in structures whose states can be kept and put back.

mod contender;
#[cfg(unix)]
mod forked;
mod heap;
mod ordinary;
mod persistent;

use anyhow::Result;
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use rustc_hash::FxHasher;
use std::hash::BuildHasherDefault;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

pub use contender::{Contender, Player, Timed};
#[cfg(unix)]
pub use forked::Forked;
pub use heap::InHeap;
pub use ordinary::Cloned;
pub use persistent::{Im, Imbl, Rpds};

/// The hasher of all maps, so that only the structures differ.
pub type Hasher = BuildHasherDefault<FxHasher>;

/// A map of text to lists of numbers whose states can be kept and put back.
pub trait Map: Sized {
    /// A state of the map.
    type Mark;

    /// The name in tables and plots.
    const NAME: &'static str;

    /// The most marks that are kept at a time. Copies of a million entries take too much memory to keep many.
    const KEPT: usize = usize::MAX;

    /// Makes a map of the first `entries` keys.
    ///
    /// # Errors
    ///
    /// Those of the operating system: no memory.
    fn build(entries: u64) -> Result<Self>;

    /// Makes changes.
    fn change(&mut self, changes: &[Change]);

    /// Adds up the first numbers of the lists of these keys.
    fn read(&self, keys: &[String]) -> u64;

    /// Hashes all entries. Equal maps have equal hashes, whatever structure they are in.
    fn hash(&self) -> u64;

    /// Keeps the current state.
    ///
    /// # Errors
    ///
    /// Those of the operating system: no memory.
    fn mark(&mut self) -> Result<Self::Mark>;

    /// Goes back to a kept state.
    ///
    /// # Errors
    ///
    /// Those of the operating system: no memory.
    fn back_to(&mut self, mark: &Self::Mark) -> Result<()>;
}

/// A change to one entry.
#[derive(Clone, Debug)]
pub enum Change {
    /// Adds to the first number of the list, and appends the number. Does nothing if there is no such entry.
    Append(String, u64),
    /// Removes the entry.
    Remove(String),
    /// Adds an entry.
    Insert(String),
}

/// The list of a new entry.
const NEW: [u64; 4] = [1, 2, 3, 4];

/// The list of an entry in a new map.
fn list(entry: u64) -> [u64; 4] {
    [entry, 1, 2, 3]
}

/// Changes a list. A list that has become long is shortened first, so that lists do not grow for ever.
macro_rules! append {
    ($list:expr, $number:expr) => {{
        let list = $list;
        if list.len() > 7 {
            list.truncate(4);
        }
        list[0] = list[0].wrapping_add($number);
        list.push($number);
    }};
}
use append;

/// Returns the key with this number.
#[must_use]
pub fn key(number: u64) -> String {
    format!("user:{:016x}", number.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// Hashes an entry. The hashes of a map's entries are added up, so that their order does not matter.
fn hash_of(key: &str, list: &[u64]) -> u64 {
    list.iter().fold(xxh3_64(key.as_bytes()), |hash, number| xxh3_64_with_seed(&number.to_le_bytes(), hash))
}

fn hash_of_all<'a>(entries: impl Iterator<Item = (&'a str, &'a [u64])>) -> u64 {
    entries.map(|(key, list)| hash_of(key, list)).fold(0, u64::wrapping_add)
}

/// A source of changes to a map of a number of entries, the same for all maps.
#[derive(Clone)]
pub struct Script {
    random: Xoshiro256PlusPlus,
    entries: u64,
    next: u64,
}

impl Script {
    /// Returns the script with this number.
    #[must_use]
    pub fn new(number: u64, entries: u64) -> Self {
        let next = entries + (number + 1) * (1 << 40);
        Self { random: Xoshiro256PlusPlus::seed_from_u64(number), entries, next }
    }

    /// Returns the next changes: eight tenths change a list, a tenth removes an entry, and a tenth adds one.
    pub fn changes(&mut self, count: usize) -> Vec<Change> {
        (0..count)
            .map(|_| match self.random.random_range(0..10_u32) {
                0 => Change::Remove(self.key()),
                1 => {
                    self.next += 1;
                    Change::Insert(key(self.next))
                }
                _ => Change::Append(self.key(), self.random.random_range(0..1000)),
            })
            .collect()
    }

    /// Returns the number of entries of the map.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Returns random keys, most of which are in the map.
    pub fn keys(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.key()).collect()
    }

    fn key(&mut self) -> String {
        key(self.random.random_range(0..self.entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRIES: u64 = 500;

    /// The hashes of a tree of states: a trunk, and a branch in the middle. Each state is visited again.
    fn hashes<M: Map>() -> Vec<u64> {
        let mut map = M::build(ENTRIES).unwrap();
        let mut script = Script::new(1, ENTRIES);
        let mut marks = vec![(map.mark().unwrap(), map.hash())];
        for step in 0..20 {
            if step == 10 {
                map.back_to(&marks[3].0).unwrap();
            }
            map.change(&script.changes(50));
            marks.push((map.mark().unwrap(), map.hash()));
        }
        for (mark, hash) in marks.iter().rev() {
            map.back_to(mark).unwrap();
            assert_eq!(map.hash(), *hash);
        }
        let keys = script.keys(100);
        marks.iter().map(|(_, hash)| *hash).chain([map.read(&keys)]).collect()
    }

    #[test]
    fn all_maps_go_through_the_same_states() {
        let expected = hashes::<Cloned>();
        assert_eq!(hashes::<InHeap>(), expected);
        assert_eq!(hashes::<Im>(), expected);
        assert_eq!(hashes::<Imbl>(), expected);
        assert_eq!(hashes::<Rpds>(), expected);
        let mut distinct = expected.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), expected.len());
    }
}
