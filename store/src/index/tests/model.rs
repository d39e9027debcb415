//! Random operations, compared with maps.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{REPOSITORY, everything, id, manifest, pack, place};
use crate::error::Error;
use crate::id::Id;
use crate::index::{Index, ManifestRow, PackRow, Place, Writer};
use crate::storage::DatabaseMode;
use crate::storage::simulated::Simulated;

#[derive(Clone, Debug)]
enum Op {
    /// Adds a pack with blocks from a small range, so that packs share blocks.
    Pack {
        first: u64,
        blocks: u64,
    },
    RemovePacks {
        packs: Vec<u32>,
    },
    Manifest(u64),
    RemoveManifest(u64),
    Name(u8, Option<u64>),
    Commit,
    Abort,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let blocks = prop_oneof![1..8_u64, 8..300_u64, Just(0)];
    let op = prop_oneof![
        6 => (0..600_u64, blocks).prop_map(|(first, blocks)| Op::Pack { first, blocks }),
        1 => prop::collection::vec(0..12_u32, 0..4).prop_map(|packs| Op::RemovePacks { packs }),
        1 => (0..6_u64).prop_map(Op::Manifest),
        1 => (0..6_u64).prop_map(Op::RemoveManifest),
        1 => (0..4_u8, prop::option::of(0..6_u64)).prop_map(|(name, id)| Op::Name(name, id)),
        4 => Just(Op::Commit),
        1 => Just(Op::Abort),
    ];
    prop::collection::vec(op, 1..40)
}

#[derive(Clone, Default, Debug)]
struct Model {
    packs: BTreeMap<u32, PackRow>,
    /// All packs that have a block, in the order in which they were added.
    places: BTreeMap<Id, Vec<Place>>,
    manifests: BTreeMap<Id, ManifestRow>,
    names: BTreeMap<String, Id>,
}

impl Model {
    fn apply(&mut self, op: &Op, writer: &mut Writer<'_>, added: &mut u64) {
        match op {
            Op::Pack { first, blocks } => {
                *added += 1;
                let number = writer.next_pack().unwrap();
                assert_eq!(number, self.packs.last_key_value().map_or(0, |(last, _)| last + 1));
                let entries: Vec<_> =
                    (*first..first + blocks).map(|block| (id(block), place(number, block))).collect();
                writer.add_packs(&[(number, pack(*added))], entries.clone()).unwrap();
                self.packs.insert(number, pack(*added));
                for (hash, place) in entries {
                    self.places.entry(hash).or_default().push(place);
                }
            }
            Op::RemovePacks { packs } => {
                let packs = packs.iter().copied().collect();
                writer.remove_packs(&packs).unwrap();
                self.packs.retain(|number, _| !packs.contains(number));
                for places in self.places.values_mut() {
                    places.retain(|place| !packs.contains(&place.pack));
                }
            }
            Op::Manifest(number) => {
                writer.put_manifest(&id(*number), &manifest(*number)).unwrap();
                self.manifests.insert(id(*number), manifest(*number));
            }
            Op::RemoveManifest(number) => {
                writer.remove_manifest(&id(*number)).unwrap();
                self.manifests.remove(&id(*number));
            }
            Op::Name(name, target) => {
                let (name, target) = (format!("name-{name}"), target.map(id));
                writer.set_name(&name, target.as_ref()).unwrap();
                match target {
                    Some(target) => self.names.insert(name, target),
                    None => self.names.remove(&name),
                };
            }
            Op::Commit | Op::Abort => unreachable!(),
        }
    }

    /// Compares the index with the model.
    fn check(&mut self, storage: &Simulated) {
        let index = Index::open(storage, crate::index::PATH, DatabaseMode::Read, REPOSITORY).unwrap();
        let reader = index.read().unwrap();
        let all = everything(&reader).unwrap();
        assert_eq!(all.packs, self.packs.clone().into_iter().collect::<Vec<_>>());
        assert_eq!(all.manifests, self.manifests.clone().into_iter().collect::<Vec<_>>());
        assert_eq!(all.names, self.names.clone().into_iter().collect::<Vec<_>>());
        let hashes: BTreeSet<Id> = (0..900).map(id).collect();
        let hashes: Vec<Id> = hashes.into_iter().collect();
        for (hash, found) in hashes.iter().zip(reader.find(&hashes).unwrap()) {
            let places = self.places.entry(*hash).or_default();
            match found {
                Some(found) => assert_eq!(places.last(), Some(&found)),
                // The index may have dropped the place for a newer one, which was removed later.
                None => places.clear(),
            }
        }
        for (number, row) in &self.packs {
            assert_eq!(reader.pack(*number).unwrap(), Some(*row));
            assert_eq!(reader.pack_number(&row.id).unwrap(), Some(*number));
        }
        assert_eq!(reader.pack_number(&id(u64::MAX)).unwrap(), None);
        for number in 0..6 {
            assert_eq!(reader.manifest(&id(number)).unwrap(), self.manifests.get(&id(number)).copied());
        }
        let range = id(1).min(id(2))..=id(1).max(id(2));
        let expected: Vec<Id> = self.manifests.range(range.clone()).map(|(id, _)| *id).collect();
        assert_eq!(reader.manifests_from(range.start(), range.end()).unwrap(), expected);
        for name in 0..4 {
            let name = format!("name-{name}");
            assert_eq!(reader.name(&name).unwrap(), self.names.get(&name).copied());
        }
        let mut runs = std::collections::BTreeMap::new();
        for row in reader.runs().unwrap() {
            *runs.entry(row.class()).or_insert(0) += 1;
        }
        // Only a removal makes runs smaller. The next save merges them.
        assert!(runs.values().sum::<u32>() < 40, "{runs:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_index_is_what_was_written(ops in ops()) {
        let storage = Simulated::new();
        Index::create(&storage, crate::index::PATH, REPOSITORY).unwrap();
        let mut model = Model::default();
        let mut added = 0;
        for transaction in ops.chunk_by(|op, _| !matches!(op, Op::Commit | Op::Abort)) {
            let mut changed = model.clone();
            let index = Index::open(&storage, crate::index::PATH, DatabaseMode::Write, REPOSITORY).unwrap();
            let mut writer = index.write().unwrap();
            let (last, ops) = transaction.split_last().unwrap();
            for op in ops {
                changed.apply(op, &mut writer, &mut added);
            }
            if matches!(last, Op::Commit) {
                writer.commit().unwrap();
                model = changed;
            } else {
                drop(writer);
            }
            drop(index);
            model.check(&storage);
        }
    }
}

/// A run is merged together with all newer runs, so that the newest place of a block is kept.
#[test]
fn a_newer_place_survives_merges() {
    let storage = Simulated::new();
    Index::create(&storage, crate::index::PATH, REPOSITORY).unwrap();
    let index = Index::open(&storage, crate::index::PATH, DatabaseMode::Write, REPOSITORY).unwrap();
    let mut writer = index.write().unwrap();
    // With these sizes, there are runs of other sizes between those that are merged.
    let sizes = [1, 1, 1, 20, 1, 300, 1, 1, 1, 20, 20, 1, 1, 1, 1];
    for (number, size) in (0..).zip(sizes) {
        writer
            .add_packs(
                &[(number, pack(number.into()))],
                (0..size).map(|block| (id(block), place(number, block))).collect(),
            )
            .unwrap();
    }
    writer.remove_packs(&(0..14).filter(|number| *number != 5).collect()).unwrap();
    writer.commit().unwrap();
    let mut hashes: Vec<Id> = (0..300).map(id).collect();
    hashes.sort();
    let reader = index.read().unwrap();
    let found = reader.find(&hashes).unwrap();
    assert_eq!(reader.find(&[id(0)]).unwrap(), [Some(place(14, 0))]);
    // No place in a removed pack is left, and all blocks that only one pack has are still found.
    assert!(found.iter().flatten().all(|place| place.pack == 5 || *place == super::place(14, 0)));
    assert!(found.iter().flatten().count() > 280);
}

#[test]
fn formats_and_repositories_are_checked() {
    let storage = Simulated::new();
    assert!(matches!(
        Index::open(&storage, crate::index::PATH, DatabaseMode::Read, REPOSITORY),
        Err(Error::File { .. })
    ));
    Index::create(&storage, crate::index::PATH, REPOSITORY).unwrap();
    assert!(matches!(Index::create(&storage, crate::index::PATH, REPOSITORY), Err(Error::File { .. })));
    let other = "ffeeddccbbaa99887766554433221100";
    let error = Index::open(&storage, crate::index::PATH, DatabaseMode::Write, other).unwrap_err();
    assert!(
        matches!(&error, Error::Mixed { found, expected, .. } if found == REPOSITORY && expected == other),
        "{error}"
    );
    storage.set_bytes("index.redb", Vec::new());
    assert!(matches!(
        Index::open(&storage, crate::index::PATH, DatabaseMode::Write, REPOSITORY),
        Err(Error::Damaged { .. })
    ));
    storage.set_bytes("index.redb", vec![7; 100_000]);
    assert!(matches!(
        Index::open(&storage, crate::index::PATH, DatabaseMode::Read, REPOSITORY),
        Err(Error::Damaged { .. })
    ));
}
