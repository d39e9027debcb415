//! The bytes of packs and manifests, compared with the tables of `DESIGN.md`, and chains, compared with byte vectors.

use proptest::prelude::*;

use memsnap::Snapshot;

use super::{BLOCK, content, create, noise, text};
use crate::format::Sequential;
use crate::format::manifest::{self, Header, ManifestReader};
use crate::format::pack::{Encoder, Encoding, PackWriter, read_contents};
use crate::format::runs::{Entry, RunReader, RunWriter};
use crate::id::Id;
use crate::storage::Storage;
use crate::storage::simulated::Simulated;

/// Returns the number of `len` bytes at `at`.
fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let mut number = [0; 8];
    number[..len].copy_from_slice(&bytes[at..at + len]);
    u64::from_le_bytes(number)
}

#[test]
fn a_pack_has_the_bytes_of_the_design() {
    let mut encoder = Encoder::new().unwrap();
    let mut pack = PackWriter::new(Vec::new()).unwrap();
    let two = [text(1), text(2)].concat();
    let hashes = [Id::of(&two[..BLOCK]), Id::of(&two[BLOCK..]), Id::of(&noise(3))];
    let compressed = encoder.encode(&two, hashes[..2].to_vec()).unwrap();
    let stored = encoder.encode(&noise(3), hashes[2..].to_vec()).unwrap();
    assert_eq!((compressed.encoding, stored.encoding), (Encoding::Zstd, Encoding::Raw));
    pack.push(&compressed).unwrap();
    pack.push(&stored).unwrap();
    let (id, len, contents, bytes) = pack.finish().unwrap();
    assert_eq!((Id::of(&bytes), bytes.len() as u64), (id, len));
    let frame = compressed.bytes.len();
    assert_eq!(&bytes[..8], b"memsnapP");
    assert_eq!(bytes[8..32], [[1, 0, 0, 0].as_slice(), &[0; 20]].concat());
    assert_eq!(zstd::bulk::decompress(&bytes[32..32 + frame], 2 * BLOCK).unwrap(), two);
    assert_eq!(bytes[32 + frame..][..BLOCK], noise(3));
    let table = 32 + frame + BLOCK;
    assert_eq!(number(&bytes, table, 4), frame as u64);
    assert_eq!(bytes[table + 4..table + 8], [2, 1, 0, 0]);
    assert_eq!(number(&bytes, table + 8, 4), BLOCK as u64);
    assert_eq!(bytes[table + 12..table + 16], [1, 0, 0, 0]);
    assert_eq!(bytes[table + 16..table + 112], hashes.map(|hash| *hash.as_bytes()).concat());
    let end = bytes.len();
    assert_eq!(end, table + 112 + 48);
    assert_eq!((number(&bytes, end - 48, 4), number(&bytes, end - 44, 4)), (2, 3));
    let checksum = Id::of(&[&bytes[..32], &bytes[table..end - 40]].concat());
    assert_eq!(bytes[end - 40..end - 8], *checksum.as_bytes());
    assert_eq!(&bytes[end - 8..], b"memsnapE");
    let storage = Simulated::new();
    storage.set_bytes("pack", bytes);
    assert_eq!(read_contents(&*storage.open("pack").unwrap()).unwrap(), contents);
}

#[test]
fn a_manifest_has_the_bytes_of_the_design() {
    let [parent, base, hash] = [b"p", b"b", b"h"].map(|bytes| Id::of(bytes));
    let header = Header {
        parent: Some(parent),
        base: Some(base),
        len: 9 * 4096,
        content_len: 36_000,
        created: 1_700_000_000_000,
        depth: 3,
        entries: 3,
        chain_entries: 11,
        labels: [("key".to_owned(), "value".to_owned())].into(),
        attachments: [("cpu".to_owned(), b"rip".to_vec())].into(),
    };
    let entries: [Entry; 3] = [(2, Some(hash)), (3, Some(base)), (7, None)];
    let mut bytes = Vec::new();
    let (id, len) =
        manifest::write(&mut bytes, &header, entries.iter().map(|entry| Ok::<_, std::io::Error>(*entry)))
            .unwrap();
    // Written by hand from the table.
    let mut expected = b"memsnapM\x01\0\0\0\x03\0\0\0".to_vec();
    expected.extend([*parent.as_bytes(), *base.as_bytes()].concat());
    for number in [9 * 4096, 36_000, 1_700_000_000_000_u64] {
        expected.extend(number.to_le_bytes());
    }
    expected.extend(b"\x03\0\0\0\x01\0\0\0\x01\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x0b\0\0\0\0\0\0\0");
    expected.extend(b"\x03\0\0\0key\x05\0\0\0value\x03\0\0\0cpu\x03\0\0\0\0\0\0\0rip");
    expected.extend(b"\x01\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0");
    expected.extend([*hash.as_bytes(), *base.as_bytes()].concat());
    expected.extend(b"\x02\x07\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0");
    expected.extend([0; 17]);
    assert_eq!(bytes, expected);
    assert_eq!((id, len), (Id::of(&expected), expected.len() as u64));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn runs_are_read_as_they_were_written(
        gaps in prop::collection::vec((0..3_u64, 1..5000_u64, any::<bool>()), 0..6),
    ) {
        let (mut entries, mut at): (Vec<Entry>, u64) = (Vec::new(), 0);
        for (gap, count, zero) in gaps {
            at += gap;
            entries.extend((at..at + count).map(|n| (n, (!zero).then(|| Id::of(&n.to_le_bytes())))));
            at += count;
        }
        let mut writer = RunWriter::new(Vec::new());
        entries.iter().for_each(|entry| writer.push(*entry).unwrap());
        let bytes = writer.finish().unwrap();
        let mut reader = RunReader::new(&bytes[..], at);
        let read: Vec<Entry> = std::iter::from_fn(|| reader.next().unwrap()).collect();
        prop_assert_eq!(&read, &entries);
        // One block less than there are, and every shorter file, is an error.
        if at > 0 {
            let mut reader = RunReader::new(&bytes[..], at - 1);
            prop_assert!((0..=at).any(|_| reader.next().is_err()));
        }
        let mut reader = RunReader::new(&bytes[..bytes.len() - 1], at);
        prop_assert!((0..=at).any(|_| reader.next().is_err()));
    }

    #[test]
    fn any_bytes_are_a_manifest_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let storage = Simulated::new();
        let whole = [&b"memsnapM\x01\0\0\0\0\0\0\0"[..], &bytes].concat();
        for bytes in [bytes, whole] {
            storage.set_bytes("file", bytes.clone());
            let file = Sequential::new(storage.open("file").unwrap()).unwrap();
            let checked = ManifestReader::new(file, Id::of(b"other")).and_then(|mut reader| reader.check());
            prop_assert!(checked.is_err());
            prop_assert!(read_contents(&*storage.open("file").unwrap()).is_err());
        }
    }
}

/// Saves many descendants, one from the other, with lengths that go up and down, and reads all of them.
#[test]
fn long_chains_are_short_and_right() {
    let storage = Simulated::new();
    let repository = create(&storage);
    let mut bytes: Vec<u8> = (0..12).flat_map(text).collect();
    let mut parent = repository.save(&Snapshot::from_slice(&bytes).unwrap()).run().unwrap();
    let mut states = vec![(parent.id(), bytes.clone())];
    let (mut over_full, mut deepest) = (0, 0);
    for round in 1..120_usize {
        match round % 29 {
            7 => bytes.resize(20 * BLOCK, 0),
            13 => bytes.truncate(15 * BLOCK),
            23 if round > 60 => bytes.truncate(6 * BLOCK),
            _ => {}
        }
        let block = round * 5 % (bytes.len() / BLOCK);
        let new = if round % 4 == 0 { vec![0; BLOCK] } else { noise(round as u64) };
        bytes[block * BLOCK..][..BLOCK].copy_from_slice(&new);
        let snapshot = Snapshot::from_slice(&bytes).unwrap();
        let save = repository.save(&snapshot);
        let save = if round % 2 == 0 { save.parent(&parent) } else { save.parent_id(parent.id()) };
        parent = save.run().unwrap();
        states.push((parent.id(), bytes.clone()));
        let row = repository.inner.read(|index| index.manifest(&parent.id())).unwrap().unwrap();
        deepest = deepest.max(row.depth);
        let above =
            repository.inner.read(|index| index.manifest(&states[states.len() - 2].0)).unwrap().unwrap();
        over_full += usize::from(row.depth == 1 && above.depth == 32);
    }
    // A chain is a full manifest and at most 32 above it; then all of them are merged into one.
    assert_eq!(deepest, 32);
    assert!(over_full > 0);
    for (number, (id, bytes)) in states.iter().enumerate() {
        let loaded = repository.load(id).run().unwrap();
        assert!(content(loaded.snapshot()) == *bytes, "state {number}");
        let (other, right) = &states[(number * 37 + 11) % states.len()];
        let onto = repository.load(other).onto(&loaded).run().unwrap();
        assert!(content(onto.snapshot()) == *right, "state {number}, onto");
    }
    assert_eq!(repository.verify(crate::Depth::Data).unwrap().problems, [""; 0]);
}
