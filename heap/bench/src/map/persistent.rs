//! Persistent maps: a mark is a clone in constant time, and a change copies the nodes on its path.
//!
//! Keys and lists are behind an `Arc`, because a node that is copied clones all keys and values in it.

use std::sync::Arc;

use anyhow::Result;

use super::{Change, Hasher, Map, NEW, append, hash_of_all, key, list};

macro_rules! persistent {
    ($name:ident, $title:literal, $map:ty, $new:expr, $insert:ident, $remove:ident) => {
        #[doc = concat!("The persistent map of ", $title, ".")]
        pub struct $name($map);

        impl Map for $name {
            type Mark = $map;

            const NAME: &'static str = $title;

            fn build(entries: u64) -> Result<Self> {
                let mut map: $map = $new;
                for entry in 0..entries {
                    map.$insert(key(entry).into(), Arc::new(list(entry).to_vec()));
                }
                Ok(Self(map))
            }

            fn change(&mut self, changes: &[Change]) {
                for change in changes {
                    match change {
                        Change::Append(key, number) => {
                            if let Some(list) = self.0.get_mut(key.as_str()) {
                                append!(Arc::make_mut(list), *number);
                            }
                        }
                        Change::Remove(key) => {
                            self.0.$remove(key.as_str());
                        }
                        Change::Insert(key) => {
                            self.0.$insert(key.as_str().into(), Arc::new(NEW.to_vec()));
                        }
                    }
                }
            }

            fn read(&self, keys: &[String]) -> u64 {
                let lists = keys.iter().filter_map(|key| self.0.get(key.as_str()));
                lists.map(|list| list[0]).fold(0, u64::wrapping_add)
            }

            fn hash(&self) -> u64 {
                hash_of_all(self.0.iter().map(|(key, list)| (&**key, list.as_slice())))
            }

            fn mark(&mut self) -> Result<Self::Mark> {
                Ok(self.0.clone())
            }

            fn back_to(&mut self, mark: &Self::Mark) -> Result<()> {
                self.0 = mark.clone();
                Ok(())
            }
        }
    };
}

type Key = Arc<str>;
type List = Arc<Vec<u64>>;

persistent!(
    Im,
    "im 15",
    im::HashMap<Key, List, Hasher>,
    im::HashMap::with_hasher(Hasher::default()),
    insert,
    remove
);
persistent!(
    Imbl,
    "imbl 7",
    imbl::GenericHashMap<Key, List, Hasher, imbl::shared_ptr::DefaultSharedPtr>,
    imbl::GenericHashMap::with_hasher(Hasher::default()),
    insert,
    remove
);
persistent!(
    Rpds,
    "rpds 1",
    rpds::HashTrieMapSync<Key, List, Hasher>,
    rpds::HashTrieMap::new_with_hasher_and_ptr_kind(Hasher::default()),
    insert_mut,
    remove_mut
);
