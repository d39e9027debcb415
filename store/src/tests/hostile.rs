//! Files and indexes with right hashes and checksums, and wrong contents.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memsnap::Snapshot;

use super::{BLOCK, Small, content, noise, open, small, text};
use crate::chain::{KEPT, above_common, manifest_path};
use crate::format::manifest::{self, Header};
use crate::format::pack::{Encoding, Frame, PackWriter};
use crate::format::runs::Entry;
use crate::id::Id;
use crate::index::{ManifestRow, PackRow, Place};
use crate::repository::Repository;
use crate::storage::simulated::Simulated;
use crate::{Collect, Depth, Error};

/// A change that makes a manifest or a row wrong.
type Change<T> = fn(&mut T);

const LEN: u64 = BLOCK as u64;

/// Returns the bytes of a manifest.
fn encoded(header: &Header, entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let entries = entries.iter().map(|entry| Ok::<_, std::io::Error>(*entry));
    manifest::write(&mut bytes, header, entries).unwrap();
    bytes
}

/// Adds a manifest to a repository.
fn add(storage: &Simulated, bytes: Vec<u8>, row: &ManifestRow) -> Id {
    let id = Id::of(&bytes);
    storage.set_bytes(&manifest_path(&id), bytes);
    let repository = open(storage).unwrap();
    repository.inner.change(|index| index.put_manifest(&id, row)).unwrap();
    id
}

/// Calls all operations on a snapshot. Returns the errors of those that read it.
fn use_it(small: &Small, id: Id) -> Vec<Error> {
    let storage = &small.storage;
    let started = Instant::now();
    let folder = tempfile::tempdir().unwrap();
    let repository = open(storage).unwrap();
    let mut errors = Vec::new();
    errors.extend(repository.manifest(id).err());
    errors.extend(repository.load(id).run().err());
    let base = repository.load(small.base).run().unwrap();
    errors.extend(repository.load(id).onto(&base).run().err());
    errors.extend(repository.diff(small.base, id).err());
    errors.extend(repository.diff(id, small.child).err());
    errors.extend(repository.extract(id, folder.path().join("file")).run().err());
    errors.extend(repository.list().err());
    let next = Snapshot::from_slice(&noise(77)).unwrap();
    let _ = repository.save(&next).parent_id(id).run();
    let _ = repository.collect(&Collect::new().grace(Duration::ZERO).dry_run(true));
    let _ = repository.verify(Depth::Data).unwrap();
    let repaired = storage.kill();
    Repository::repair_in(Arc::new(repaired.clone())).unwrap();
    let repaired = open(&repaired).unwrap();
    let _ = repaired.load(id).run();
    for (id, bytes) in &small.bytes {
        assert!(content(repository.load(id).run().unwrap().snapshot()) == *bytes);
        assert!(content(repaired.load(id).run().unwrap().snapshot()) == *bytes);
    }
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}: {errors:?}", started.elapsed());
    errors
}

fn partial(small: &Small) -> Header {
    let parent = Some(small.base);
    let (len, entries) = (4 * LEN, 1);
    Header {
        parent,
        base: parent,
        len,
        content_len: len,
        depth: 1,
        entries,
        chain_entries: entries,
        ..Header::default()
    }
}

/// Checks that all operations that read all of a manifest refuse it.
fn refused(what: &str, bytes: Vec<u8>, row: &ManifestRow, small: &Small) {
    let id = add(&small.storage, bytes, row);
    let errors = use_it(small, id);
    assert!(errors.len() >= 3, "{what}: {errors:?}");
    for error in &errors {
        let named = error.to_string().contains("index.redb") || error.to_string().contains(&id.to_string());
        assert!(named || matches!(error, Error::Memory { .. } | Error::File { .. }), "{what}: {error}");
    }
}

#[test]
fn lengths_that_nothing_has_are_errors() {
    for len in [1 << 62, 1 << 63, u64::MAX - LEN + 1] {
        let small = small();
        let header = Header { len, content_len: len, ..Header::default() };
        let id = add(&small.storage, encoded(&header, &[]), &ManifestRow::new(&header, true, 0));
        let errors = use_it(&small, id);
        assert!(errors.len() >= 2, "{len}: {errors:?}");
    }
}

#[test]
fn headers_that_lie_are_refused() {
    let hash = Id::of(&noise(4));
    let cases: [(&str, Change<Header>); 7] = [
        ("depth 0", |header| header.depth = 0),
        ("depth 2", |header| header.depth = 2),
        ("depth 64", |header| header.depth = 64),
        ("depth of all ones", |header| header.depth = u32::MAX),
        ("a base that does not exist", |header| header.base = Some(Id::of(b"nothing"))),
        ("more blocks than there are", |header| header.entries = 1 << 40),
        ("a content longer than the snapshot", |header| header.content_len = 5 * LEN),
    ];
    for (what, change) in cases {
        let small = small();
        let mut header = partial(&small);
        change(&mut header);
        let honest = ManifestRow {
            content_len: header.content_len.min(header.len),
            ..ManifestRow::new(&header, true, 0)
        };
        refused(what, encoded(&header, &[(1, Some(hash))]), &honest, &small);
    }
    let small = small();
    let header = partial(&small);
    refused(
        "a block behind the end",
        encoded(&header, &[(4, Some(hash))]),
        &ManifestRow::new(&header, true, 0),
        &small,
    );
    refused(
        "a block that no pack has",
        encoded(&header, &[(1, Some(Id::of(b"?")))]),
        &ManifestRow::new(&header, true, 0),
        &small,
    );
}

/// The length of a run of zeroes was not limited, so that reading 17 bytes could take years.
#[test]
fn runs_that_lie_are_refused_at_once() {
    let small = small();
    let len = 1 << 62;
    let header = Header { len, content_len: 0, entries: 1 << 50, chain_entries: 1 << 50, ..partial(&small) };
    let end = encoded(&header, &[]);
    let head = &end[..end.len() - 17];
    for (kind, count) in [(2_u8, 1_u64 << 50), (1, 1 << 50), (1, 4097), (2, 0), (3, 1)] {
        let run = [&[kind][..], &1_u64.to_le_bytes(), &count.to_le_bytes()].concat();
        let bytes = [head, &run, &[7; 100], &[0; 17]].concat();
        refused(
            &format!("a run of {count} of kind {kind}"),
            bytes,
            &ManifestRow::new(&header, true, 0),
            &small,
        );
    }
}

#[test]
fn labels_and_attachments_that_lie_are_refused() {
    let small = small();
    let header = partial(&small);
    let bytes = encoded(&header, &[]);
    // The numbers of labels and attachments, and the bytes after the header.
    let cases: [(u32, u32, Vec<u8>); 5] = [
        (u32::MAX, 0, Vec::new()),
        (0, u32::MAX, vec![0; 12]),
        (1, 0, u32::MAX.to_le_bytes().to_vec()),
        (0, 1, [&[1, 0, 0, 0, b'a'][..], &u64::MAX.to_le_bytes()].concat()),
        (1, 0, [1, 0, 0, 0, 0xff, 0, 0, 0, 0].to_vec()),
    ];
    for (labels, attachments, rest) in cases {
        let mut lie = bytes.clone();
        lie[108..112].copy_from_slice(&labels.to_le_bytes());
        lie[112..116].copy_from_slice(&attachments.to_le_bytes());
        lie.splice(136..136, rest);
        refused(
            &format!("{labels} labels, {attachments} attachments"),
            lie,
            &ManifestRow::new(&header, true, 0),
            &small,
        );
    }
}

/// A load panicked if the lengths in the index and in the manifest were different.
#[test]
fn an_index_that_lies_is_refused() {
    let cases: [(&str, Change<ManifestRow>); 3] = [
        ("shorter", |row| (row.len, row.content_len) = (LEN, LEN)),
        ("longer", |row| row.len = 1 << 30),
        ("other content", |row| row.content_len -= 1),
    ];
    for (what, change) in cases {
        let small = small();
        let repository = open(&small.storage).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let loaded = [small.base, small.child].map(|id| repository.load(id).run().unwrap());
        for id in [small.base, small.child] {
            let storage = small.storage.kill();
            let repository = open(&storage).unwrap();
            let mut row = repository.inner.read(|index| index.manifest(&id)).unwrap().unwrap();
            change(&mut row);
            repository.inner.change(|index| index.put_manifest(&id, &row)).unwrap();
            for onto in &loaded {
                let error = repository.load(id).onto(onto).run().unwrap_err();
                assert!(error.to_string().contains("index.redb"), "{what}: {error}");
                if onto.id() == id {
                    let other = if id == small.base { small.child } else { small.base };
                    assert!(repository.load(other).onto(onto).run().is_err(), "{what}");
                }
            }
            assert!(repository.load(id).run().is_err(), "{what}");
            assert!(repository.extract(id, folder.path().join("file")).run().is_err(), "{what}");
            assert!(repository.diff(small.base, small.child).is_err(), "{what}");
            let next = Snapshot::from_slice(&noise(5)).unwrap();
            assert!(repository.save(&next).parent_id(id).run().is_err(), "{what}");
            assert!(!repository.verify(Depth::Structure).unwrap().problems.is_empty(), "{what}");
        }
    }
    // Numbers whose successor would overflow.
    let small = small();
    let repository = open(&small.storage).unwrap();
    let mut row = repository.inner.read(|index| index.manifest(&small.base)).unwrap().unwrap();
    (row.depth, row.chain_entries, row.entries, row.stored) = (u32::MAX, u64::MAX, u64::MAX, u64::MAX);
    (row.created, row.base) = (u64::MAX, Some(small.base));
    repository.inner.change(|index| index.put_manifest(&small.base, &row)).unwrap();
    assert!(!repository.verify(Depth::Structure).unwrap().problems.is_empty());
    let next = Snapshot::from_slice(&noise(5)).unwrap();
    let saved = repository.save(&next).parent_id(small.base).run().unwrap();
    assert!(content(repository.load(saved.id()).run().unwrap().snapshot()) == noise(5));
    repository.list().unwrap();
    // Its base is not below it, so it is not known what it needs.
    let collected = repository.collect(&Collect::new().grace(Duration::ZERO));
    assert!(matches!(collected, Err(Error::Damaged { .. })));
}

/// A load onto another snapshot trusted the length in the manifest that both have in common.
#[test]
fn the_length_of_a_common_manifest_is_not_believed() {
    for (parent_len, child_len) in [(4, 4), (4, 6), (6, 4), (2, 6)] {
        let small = small();
        let repository = open(&small.storage).unwrap();
        let bytes = |seed: u64, len: usize| -> Vec<u8> {
            let mut bytes = small.bytes[&small.base].clone();
            bytes[..BLOCK].copy_from_slice(&noise(seed));
            bytes.resize(len * BLOCK, 0);
            bytes
        };
        let save = |seed, len, block: usize| {
            let mut bytes = bytes(seed, len);
            bytes[block * BLOCK..][..BLOCK].copy_from_slice(&noise(seed + 100));
            let snapshot = Snapshot::from_slice(&bytes).unwrap();
            (repository.save(&snapshot).parent_id(small.base).run().unwrap(), bytes)
        };
        let (a, _) = save(1, parent_len, 1);
        let (b, right) = save(2, child_len, 0);
        let path = manifest_path(&small.base);
        let honest = small.storage.bytes(&path).unwrap();
        for len in 0..9_u64 {
            let mut lie = honest.clone();
            lie[80..88].copy_from_slice(&(len * LEN).to_le_bytes());
            lie[88..96].copy_from_slice(&(len * LEN).to_le_bytes());
            small.storage.set_bytes(&path, lie);
            if let Ok(loaded) = repository.load(b.id()).onto(&a).run() {
                assert!(content(loaded.snapshot()) == right, "{parent_len} {child_len} {len}");
            }
        }
    }
}

/// A pack whose only frame does not agree with its list, and a snapshot that needs it.
fn pack(small: &Small, encoding: Encoding, bytes: Vec<u8>, hashes: Vec<Id>, change: fn(&mut Place)) -> Id {
    let mut writer = PackWriter::new(Vec::new()).unwrap();
    let hash = hashes[0];
    let (stored, blocks) = (u32::try_from(bytes.len()).unwrap(), u8::try_from(hashes.len()).unwrap());
    writer.push(&Frame { encoding, hashes, bytes }).unwrap();
    let (id, len, contents, bytes) = writer.finish().unwrap();
    small.storage.set_bytes(&format!("packs/{id}"), bytes);
    let mut place = Place { pack: 0, offset: 32, stored, number: 0, blocks, encoding: encoding as u8 };
    let repository = open(&small.storage).unwrap();
    let header = Header { len: LEN, content_len: LEN, entries: 1, ..Header::default() };
    repository
        .inner
        .change(|index| {
            place.pack = index.next_pack()?;
            change(&mut place);
            let row = PackRow { id, len, blocks: u32::try_from(contents.hashes.len()).unwrap(), created: 1 };
            index.add_packs(&[(index.next_pack()?, row)], vec![(hash, place)])
        })
        .unwrap();
    add(&small.storage, encoded(&header, &[(0, Some(hash))]), &ManifestRow::new(&header, true, 0))
}

#[test]
fn packs_that_lie_are_refused() {
    let block = text(50);
    let zstd = |bytes: &[u8]| zstd::bulk::compress(bytes, 1).unwrap();
    let right = Id::of(&block);
    let keep = |_: &mut Place| {};
    type Case = (&'static str, Encoding, Vec<u8>, Vec<Id>, fn(&mut Place));
    let cases: Vec<Case> = vec![
        ("other bytes", Encoding::Raw, noise(51), vec![right], keep),
        ("too few bytes", Encoding::Raw, block[..4095].to_vec(), vec![right], keep),
        ("a frame of no bytes", Encoding::Raw, Vec::new(), vec![right], keep),
        ("not zstd", Encoding::Zstd, block.clone(), vec![right], keep),
        ("a gigabyte of zeroes", Encoding::Zstd, zstd(&vec![0; 100 << 20]), vec![right], keep),
        ("more than a block", Encoding::Zstd, zstd(&[&block[..], &block].concat()), vec![right], keep),
        ("less than its blocks", Encoding::Zstd, zstd(&block), vec![right, right], keep),
        ("a place behind the end", Encoding::Raw, block.clone(), vec![right], |place| {
            place.offset = u32::MAX
        }),
        ("a place in the header", Encoding::Raw, block.clone(), vec![right], |place| place.offset = 0),
        ("a place that is longer", Encoding::Raw, block.clone(), vec![right], |place| place.stored = 65_536),
        ("a pack that does not exist", Encoding::Raw, block.clone(), vec![right], |place| place.pack = 9999),
        ("another encoding", Encoding::Raw, block.clone(), vec![right], |place| place.encoding = 1),
    ];
    for (what, encoding, bytes, hashes, change) in cases {
        let small = small();
        let id = pack(&small, encoding, bytes, hashes, change);
        let repository = open(&small.storage).unwrap();
        let error = repository.load(id).run().err();
        let error = error.unwrap_or_else(|| panic!("{what}: it was loaded"));
        assert!(matches!(error, Error::Damaged { .. }), "{what}: {error}");
        let errors = use_it(&small, id);
        assert!(errors.len() >= 3, "{what}: {errors:?}");
        let verified = repository.verify(Depth::Data).unwrap();
        assert!(!verified.problems.is_empty(), "{what}: verify finds nothing");
    }
}

/// The lengths in a chain can increase and decrease.
///
/// A block after the end of a manifest on the way is zero.
#[test]
fn bases_of_other_lengths_are_read_as_the_format_says() {
    let hashes: Vec<Id> = [text(1), text(2), text(3)].iter().map(|bytes| Id::of(bytes)).collect();
    let by_hash: BTreeMap<Id, Vec<u8>> =
        [text(1), text(2), text(3)].into_iter().map(|bytes| (Id::of(&bytes), bytes)).collect();
    let small = small();
    let first = [text(1), vec![0; BLOCK], text(2), text(3)];
    for lens in [[2_u64, 6, 4], [6, 2, 8], [1, 1, 9], [9, 3, 1], [4, 4, 4], [0, 5, 5]] {
        let (mut base, mut model) = (small.base, first.to_vec());
        for (len, depth) in lens.into_iter().zip(1..) {
            model.resize(usize::try_from(len).unwrap(), vec![0; BLOCK]);
            let mut entries = Vec::new();
            for block in (0..len).filter(|block| (block + u64::from(depth)) % 3 == 0) {
                let hash =
                    (block % 2 == 0).then(|| hashes[(usize::try_from(block).unwrap() + depth as usize) % 3]);
                model[usize::try_from(block).unwrap()] =
                    hash.map_or_else(|| vec![0; BLOCK], |hash| by_hash[&hash].clone());
                entries.push((block, hash));
            }
            let count = entries.len() as u64;
            let header = Header {
                base: Some(base),
                parent: Some(Id::of(b"a parent that does not exist")),
                len: len * LEN,
                content_len: len * LEN,
                depth,
                entries: count,
                chain_entries: count,
                ..Header::default()
            };
            base = add(&small.storage, encoded(&header, &entries), &ManifestRow::new(&header, true, 0));
            let repository = open(&small.storage).unwrap();
            let loaded = repository.load(base).run().unwrap();
            assert!(content(loaded.snapshot()) == model.concat(), "{lens:?} at {depth}");
            let onto = repository.load(small.base).run().unwrap();
            let loaded = repository.load(base).onto(&onto).run().unwrap();
            assert!(content(loaded.snapshot()) == model.concat(), "{lens:?} at {depth}, onto");
            let back = repository.load(small.base).onto(&loaded).run().unwrap();
            assert!(content(back.snapshot()) == first.concat(), "{lens:?} at {depth}, back");
            // The second reading of a long list returns what the first one found.
            for (from, to) in [(small.base, base), (base, small.base)] {
                let above = |kept| above_common(&small.storage, from, to, kept).unwrap();
                let blocks =
                    |found: Box<dyn Iterator<Item = _>>| found.map(Result::unwrap).collect::<Vec<_>>();
                assert_eq!(above(0).map(blocks), above(KEPT).map(blocks), "{lens:?} at {depth}");
            }
        }
    }
}
