//! Tests of the index.

mod costs;
mod damage;
mod faults;
mod model;

use crate::id::Id;
use crate::index::{Index, ManifestRow, PackRow, Place, Reader};
use crate::storage::{DatabaseMode, Storage};

const REPOSITORY: &str = "00112233445566778899aabbccddeeff";

fn id(number: u64) -> Id {
    Id::of(&number.to_le_bytes())
}

fn place(pack: u32, number: u64) -> Place {
    let offset = 32 + u32::try_from(number % 65_536).unwrap();
    Place { pack, offset, stored: 100, number: 3, blocks: 16, encoding: 1 }
}

fn pack(number: u64) -> PackRow {
    PackRow { id: id(number), len: 1 << 20, blocks: 256, created: 1_700_000_000_000 }
}

fn manifest(number: u64) -> ManifestRow {
    ManifestRow {
        listed: number.is_multiple_of(2),
        parent: number.is_multiple_of(3).then(|| id(number + 1)),
        base: number.is_multiple_of(5).then(|| id(number + 2)),
        len: number * 8192,
        content_len: number * 8000,
        created: number,
        depth: 3,
        entries: number,
        chain_entries: number * 2,
        stored: number * 3,
    }
}

/// All that a reader returns.
#[derive(PartialEq, Debug)]
struct Everything {
    packs: Vec<(u32, PackRow)>,
    manifests: Vec<(Id, ManifestRow)>,
    names: Vec<(String, Id)>,
    places: Vec<(Id, Place)>,
}

fn everything(reader: &Reader) -> crate::Result<Everything> {
    let mut places = std::collections::BTreeMap::new();
    reader.for_each_place(|hash, place| {
        places.entry(*hash).or_insert(*place);
        Ok(())
    })?;
    let places: Vec<(Id, Place)> = places.into_iter().collect();
    let hashes: Vec<Id> = places.iter().map(|entry| entry.0).collect();
    let found = reader.find(&hashes)?;
    assert!(found.iter().zip(&places).all(|(found, entry)| *found == Some(entry.1)));
    Ok(Everything { packs: reader.packs()?, manifests: reader.manifests()?, names: reader.names()?, places })
}

/// Opens the index for reading, and reads everything.
fn read(storage: &dyn Storage) -> crate::Result<Everything> {
    everything(&Index::open(storage, crate::index::PATH, DatabaseMode::Read, REPOSITORY)?.read()?)
}

/// Adds a pack with `blocks` blocks, a manifest and a name.
fn save(storage: &dyn Storage, seed: u64, blocks: u64) -> crate::Result<()> {
    let index = Index::open(storage, crate::index::PATH, DatabaseMode::Write, REPOSITORY)?;
    let mut writer = index.write()?;
    let number = writer.next_pack()?;
    let entries = (0..blocks).map(|block| (id(seed * 1_000_000 + block), place(number, block))).collect();
    writer.add_packs(&[(number, pack(seed))], entries)?;
    writer.put_manifest(&id(seed), &manifest(seed))?;
    writer.set_name(&format!("name-{}", seed % 3), Some(&id(seed)))?;
    writer.commit()
}
