//! The map in a `Heap` of memsnap.

use anyhow::Result;
use memsnap_heap::{Heap, HeapOptions, HeapStats, Mark, Root, String, Vec};

use super::{Change, Hasher, Map, NEW, append, hash_of_all, key, list};

type Entries<'h> = memsnap_heap::HashMap<'h, String<'h>, Vec<'h, u64>, Hasher>;

/// The name of the type of the map.
pub struct Names;

impl Root for Names {
    type Of<'h> = Entries<'h>;
}

/// A hash map in a [`Heap`].
pub struct InHeap(Heap<Names>);

impl InHeap {
    /// Makes a map of the first `entries` keys, in a heap with options.
    ///
    /// # Errors
    ///
    /// Those of [`Heap::with_options`].
    pub fn with_options(options: &HeapOptions, entries: u64) -> Result<Self> {
        let heap = Heap::with_options(options, |memory| {
            let mut map = Entries::with_hasher_in(Hasher::default(), memory);
            for entry in 0..entries {
                let mut numbers = Vec::with_capacity_in(4, memory);
                numbers.extend_from_slice(&list(entry));
                map.insert(String::from_str_in(&key(entry), memory), numbers);
            }
            map
        })?;
        Ok(Self(heap))
    }

    /// Returns statistics of the heap.
    #[must_use]
    pub fn stats(&self) -> HeapStats {
        self.0.stats()
    }
}

impl Map for InHeap {
    type Mark = Mark<Names>;

    const NAME: &'static str = "memsnap-heap";

    fn build(entries: u64) -> Result<Self> {
        Self::with_options(&HeapOptions::new(), entries)
    }

    fn change(&mut self, changes: &[Change]) {
        self.0.with_mut(|map, memory| {
            for change in changes {
                match change {
                    Change::Append(key, number) => {
                        if let Some(list) = map.get_mut(key.as_str()) {
                            append!(list, *number);
                        }
                    }
                    Change::Remove(key) => drop(map.remove(key.as_str())),
                    Change::Insert(key) => {
                        let mut list = Vec::with_capacity_in(NEW.len(), memory);
                        list.extend_from_slice(&NEW);
                        map.insert(String::from_str_in(key, memory), list);
                    }
                }
            }
        });
    }

    fn read(&self, keys: &[std::string::String]) -> u64 {
        self.0.with(|map| {
            let lists = keys.iter().filter_map(|key| map.get(key.as_str()));
            lists.map(|list| list[0]).fold(0, u64::wrapping_add)
        })
    }

    fn hash(&self) -> u64 {
        self.0.with(|map| hash_of_all(map.iter().map(|(key, list)| (&**key, &**list))))
    }

    fn mark(&mut self) -> Result<Self::Mark> {
        Ok(self.0.mark()?)
    }

    fn back_to(&mut self, mark: &Self::Mark) -> Result<()> {
        Ok(self.0.back_to(mark)?)
    }
}
