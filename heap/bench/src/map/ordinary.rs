//! The map of the standard library. A mark is a clone.

use std::collections::HashMap;

use anyhow::Result;

use super::{Change, Hasher, Map, NEW, append, hash_of_all, key, list};

/// A hash map of the standard library.
pub struct Cloned(HashMap<String, Vec<u64>, Hasher>);

impl Map for Cloned {
    type Mark = HashMap<String, Vec<u64>, Hasher>;

    const NAME: &'static str = "clone of std's HashMap";
    const KEPT: usize = 9;

    fn build(entries: u64) -> Result<Self> {
        let mut map = HashMap::default();
        map.extend((0..entries).map(|entry| (key(entry), list(entry).to_vec())));
        Ok(Self(map))
    }

    fn change(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Append(key, number) => {
                    if let Some(list) = self.0.get_mut(key) {
                        append!(list, *number);
                    }
                }
                Change::Remove(key) => drop(self.0.remove(key)),
                Change::Insert(key) => drop(self.0.insert(key.clone(), NEW.to_vec())),
            }
        }
    }

    fn read(&self, keys: &[String]) -> u64 {
        let lists = keys.iter().filter_map(|key| self.0.get(key));
        lists.map(|list| list[0]).fold(0, u64::wrapping_add)
    }

    fn hash(&self) -> u64 {
        hash_of_all(self.0.iter().map(|(key, list)| (&**key, &**list)))
    }

    fn mark(&mut self) -> Result<Self::Mark> {
        Ok(self.0.clone())
    }

    fn back_to(&mut self, mark: &Self::Mark) -> Result<()> {
        self.0 = mark.clone();
        Ok(())
    }
}
