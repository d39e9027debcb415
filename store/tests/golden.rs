//! A repository that an earlier version wrote, on a system with pages of 4 KiB. It has to stay readable.
//!
//! A change of the format that lacks a reader of the old one fails this test. `golden/repository.zst` is one zstd frame
//! with the files of the repository: for each, the length of its path (4 bytes, little-endian), the path, its length (8)
//! and its bytes. The file is part of the program, because a virtual machine that runs the test has no other files.
//!
//! The fixture stays as it is. To make one of a new version of the format, in a file beside it:
//!
//! ```text
//! MEMSNAP_GOLDEN=store/tests/golden/new.zst cargo test -p memsnap-store --test golden -- --ignored
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use memsnap::{Snapshot, page_size};
use memsnap_store::{Collect, Depth, Id, Repository, Saved};

const BLOCK: usize = 4096;

const FIXTURE: &[u8] = include_bytes!("golden/repository.zst");

/// The manifest of this step repeats the entries of the partial manifests below it.
const CUMULATIVE: usize = 33;
/// It is made from a step at the beginning, and is shorter.
const SHORT: usize = 35;
/// It was saved without a parent, and has the bytes of step 0.
const COPY: usize = 36;
/// It was removed, and not collected.
const REMOVED: usize = 37;
const STEPS: usize = 38;

/// The names in ascending order, with the steps of their snapshots.
const NAMES: [(&str, usize); 5] =
    [("Copy_1", COPY), ("base", 0), ("current", 34), ("short", SHORT), ("v1.2+x@y=z", 1)];

/// The ids of the first snapshot and the cumulative one. They are the hashes of their manifests.
const IDS: [(usize, &str); 2] = [
    (0, "1d8d4ad26d09c83ba2e934b31d188e2825ba4a998da58613661f2b3b3fbc705f"),
    (CUMULATIVE, "dcbbb33cf61a21953e48faa59b48165ff00fff9415b3e627236d782bdd31b7e4"),
];

fn parent(step: usize) -> Option<usize> {
    match step {
        0 | COPY => None,
        SHORT => Some(1),
        REMOVED => Some(0),
        _ => Some(step - 1),
    }
}

/// Returns bytes that cannot be compressed.
fn noise(seed: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&(seed as u64).to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Returns a block that can be compressed.
fn text(seed: usize) -> Vec<u8> {
    noise(seed, 32).repeat(BLOCK / 32)
}

/// What a snapshot contains: whole blocks, and how many of the bytes are its content.
#[derive(Clone)]
struct State {
    bytes: Vec<u8>,
    content_len: usize,
}

impl State {
    fn content(&self) -> &[u8] {
        &self.bytes[..self.content_len]
    }

    fn set(&mut self, block: usize, bytes: &[u8]) {
        self.bytes[block * BLOCK..][..bytes.len()].copy_from_slice(bytes);
    }

    fn resize(&mut self, blocks: usize, content_len: usize) {
        self.bytes.resize(blocks * BLOCK, 0);
        self.content_len = content_len;
    }

    /// Returns the ranges in which two states differ, in blocks. The shorter one is followed by zeroes.
    fn diff(&self, other: &Self) -> Vec<std::ops::Range<u64>> {
        let blocks = self.bytes.len().max(other.bytes.len()) / BLOCK;
        let block = |bytes: &[u8], n: usize| bytes.chunks(BLOCK).nth(n).unwrap_or(&[0; BLOCK]).to_vec();
        let mut ranges: Vec<std::ops::Range<u64>> = Vec::new();
        for n in (0..blocks).filter(|n| block(&self.bytes, *n) != block(&other.bytes, *n)) {
            let start = (n * BLOCK) as u64;
            match ranges.last_mut().filter(|last| last.end == start) {
                Some(last) => last.end += BLOCK as u64,
                None => ranges.push(start..start + BLOCK as u64),
            }
        }
        ranges
    }
}

/// Returns what the snapshots of all steps contain.
fn states() -> Vec<State> {
    let mut states: Vec<State> = Vec::new();
    for step in 0..STEPS {
        let mut state = match parent(step) {
            Some(parent) => states[parent].clone(),
            None => State { bytes: vec![0; 24 * BLOCK], content_len: 24 * BLOCK - 96 },
        };
        match step {
            // 18 blocks of text, which are more than one frame, then zeroes, then a part of a block.
            0 | COPY => {
                (0..18).for_each(|n| state.set(n, &text(n)));
                state.set(23, &noise(23, BLOCK - 96));
            }
            1 => (4..7).for_each(|n| state.set(n, &noise(100 + n, BLOCK))),
            2 => state.set(9, &[0; BLOCK]),
            3 => {
                state.set(2, &text(200));
                state.resize(40, 40 * BLOCK);
                state.set(39, &text(201));
            }
            SHORT => {
                state.set(0, &noise(300, BLOCK));
                state.resize(6, 5 * BLOCK + 1);
                state.bytes[5 * BLOCK + 1..].fill(0);
            }
            _ => state.set(step * 7 % (state.bytes.len() / BLOCK), &text(1000 + step)),
        }
        states.push(state);
    }
    states
}

/// Returns a snapshot of a state that was made from another one. It shares the pages that do not differ.
fn derived(parent: &Saved, old: &State, new: &State) -> Snapshot {
    let resized = parent.snapshot().resized(whole_pages(new.bytes.len()), new.content_len).unwrap();
    let changes = old.diff(new).into_iter().map(|range| {
        let (start, end) = (usize::try_from(range.start).unwrap(), usize::try_from(range.end).unwrap());
        (start, new.bytes.get(start..end.min(new.bytes.len())).unwrap_or_default())
    });
    resized.with_changes(changes.filter(|(_, bytes)| !bytes.is_empty())).unwrap()
}

fn whole_pages(len: usize) -> usize {
    len.next_multiple_of(page_size())
}

fn content(saved: &Saved) -> Vec<u8> {
    saved.snapshot().view().unwrap().content().to_vec()
}

/// Makes the fixture.
#[test]
#[ignore = "writes the file that MEMSNAP_GOLDEN names"]
fn make() {
    let Some(path) = std::env::var_os("MEMSNAP_GOLDEN") else {
        println!("skipped: make: MEMSNAP_GOLDEN names no file to write");
        return;
    };
    // Cargo runs tests in the folder of the package.
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    assert_eq!(page_size(), BLOCK, "the fixture is that of a system with pages of 4 KiB");
    let folder = tempfile::tempdir().unwrap();
    let repository = Repository::create(folder.path()).unwrap();
    let states = states();
    let mut saved: Vec<Saved> = Vec::new();
    for (step, state) in states.iter().enumerate() {
        let snapshot = match parent(step) {
            Some(parent) => derived(&saved[parent], &states[parent], state),
            None => Snapshot::from_slice(state.content()).unwrap(),
        };
        let mut save = repository.save(&snapshot).label("step", step.to_string());
        if let Some(parent) = parent(step) {
            save = save.parent(&saved[parent]);
        }
        if step == 1 {
            save = save.label("größe", "groß").attach("empty", []).attach("registers", noise(7, 100));
        }
        if step == 33 {
            save = save.name("current");
        }
        saved.push(save.run().unwrap());
        // Snapshots are listed in the order of their times, which are in milliseconds.
        std::thread::sleep(Duration::from_millis(2));
    }
    for (name, step) in NAMES {
        repository.set_name(name, saved[step].id()).unwrap();
    }
    repository.set_name("gone", saved[2].id()).unwrap();
    repository.remove_name("gone").unwrap();
    repository.remove(saved[REMOVED].id()).unwrap();
    for (step, _) in IDS {
        println!("the id of step {step}: {}", saved[step].id());
    }
    fs::write(path, pack(folder.path())).unwrap();
}

/// Returns the bytes of a fixture with the files in a folder.
fn pack(folder: &Path) -> Vec<u8> {
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_file() {
            files.insert(name, fs::read(entry.path()).unwrap());
            continue;
        }
        for file in fs::read_dir(entry.path()).unwrap().map(|file| file.unwrap()) {
            let path = format!("{name}/{}", file.file_name().into_string().unwrap());
            files.insert(path, fs::read(file.path()).unwrap());
        }
    }
    let mut all = Vec::new();
    for (path, bytes) in files {
        all.extend(u32::try_from(path.len()).unwrap().to_le_bytes());
        all.extend(path.as_bytes());
        all.extend((bytes.len() as u64).to_le_bytes());
        all.extend(bytes);
    }
    zstd::encode_all(&all[..], 19).unwrap()
}

/// Returns the files of the fixture.
fn files() -> BTreeMap<String, Vec<u8>> {
    let all = zstd::decode_all(FIXTURE).unwrap();
    let mut rest = &all[..];
    let mut take = |len: usize| {
        let (taken, left) = rest.split_at(len);
        rest = left;
        taken.to_vec()
    };
    let mut files = BTreeMap::new();
    let mut left = all.len();
    while left > 0 {
        let len = u32::from_le_bytes(take(4).try_into().unwrap()) as usize;
        let path = String::from_utf8(take(len)).unwrap();
        let count = usize::try_from(u64::from_le_bytes(take(8).try_into().unwrap())).unwrap();
        left -= 12 + len + count;
        files.insert(path, take(count));
    }
    files
}

/// The fixture in a temporary folder.
struct Golden {
    folder: tempfile::TempDir,
    repository: Repository,
    states: Vec<State>,
    /// The ids of the listed snapshots, by their steps.
    ids: BTreeMap<usize, Id>,
}

impl Golden {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for sub in ["packs", "manifests", "names", "tmp"] {
            fs::create_dir(folder.path().join(sub)).unwrap();
        }
        for (path, bytes) in files() {
            fs::write(folder.path().join(path), bytes).unwrap();
        }
        let repository = Repository::open(folder.path()).unwrap();
        let listed = repository.list().unwrap();
        // The steps in the order in which they were saved. The last one was removed.
        let ids: BTreeMap<usize, Id> =
            listed.iter().enumerate().map(|(n, summary)| (n, summary.id)).collect();
        assert_eq!(ids.len(), REMOVED);
        Self { folder, repository, states: states(), ids }
    }

    fn load(&self, step: usize) -> Saved {
        self.repository.load(self.ids[&step]).run().unwrap()
    }

    #[track_caller]
    fn check(&self, saved: &Saved, step: usize) {
        assert!(content(saved) == self.states[step].content(), "step {step}");
    }

    #[track_caller]
    fn check_intact(&self) {
        assert_eq!(self.repository.verify(Depth::Data).unwrap().problems, [""; 0]);
    }
}

/// Returns the number of `len` bytes at `at`.
fn number(bytes: &[u8], at: usize, len: usize) -> usize {
    let mut number = [0; 8];
    number[..len].copy_from_slice(&bytes[at..at + len]);
    usize::try_from(u64::from_le_bytes(number)).unwrap()
}

/// The other tests are worth nothing if the fixture lacks a kind of file. The offsets are those of `DESIGN.md`.
#[test]
fn the_fixture_has_all_kinds_of_files() {
    let files = files();
    assert!(files["config"].starts_with(b"{\"format\":1,\"repository\":\""), "{:?}", files["config"]);
    let (mut depths, mut encodings) = (BTreeMap::<usize, usize>::new(), [0, 0]);
    for (path, bytes) in &files {
        if let Some(id) = path.strip_prefix("manifests/") {
            assert_eq!(bytes[..12], *b"memsnapM\x01\0\0\0", "{path}");
            assert_eq!(blake3::hash(bytes).to_string(), *id);
            let (has_base, depth) = (bytes[12] & 2 != 0, number(bytes, 104, 4));
            assert_eq!(has_base, depth > 0);
            *depths.entry(depth).or_default() += 1;
        }
        if let Some(id) = path.strip_prefix("packs/") {
            assert_eq!(bytes[..12], *b"memsnapP\x01\0\0\0", "{path}");
            assert_eq!(blake3::hash(bytes).to_string(), *id);
            let (frames, blocks) = (number(bytes, bytes.len() - 48, 4), number(bytes, bytes.len() - 44, 4));
            let table = bytes.len() - 48 - 32 * blocks - 8 * frames;
            (0..frames).for_each(|n| encodings[usize::from(bytes[table + 8 * n + 5])] += 1);
        }
    }
    // Two manifests are full, and 32 partial ones are above the first of them. The cumulative one has depth 1 again.
    assert_eq!(depths[&0], 2);
    assert_eq!(*depths.last_key_value().unwrap().0, 32);
    let cumulative = &files[&format!("manifests/{}", IDS[1].1)];
    assert_eq!(number(cumulative, 104, 4), 1);
    assert!(number(cumulative, 120, 8) > 20, "it repeats the entries of those below");
    assert!(encodings[0] >= 1 && encodings[1] >= 30, "raw and compressed frames: {encodings:?}");
    assert_eq!(files.keys().filter(|path| path.starts_with("names/")).count(), NAMES.len());
    assert!(FIXTURE.len() < 64 << 10, "{} bytes", FIXTURE.len());
}

#[test]
fn all_snapshots_are_listed_with_what_belongs_to_them() {
    let golden = Golden::new();
    let named: Vec<(String, Id)> =
        NAMES.iter().map(|(name, step)| ((*name).to_owned(), golden.ids[step])).collect();
    assert_eq!(golden.repository.names().unwrap(), named);
    for (step, id) in IDS {
        assert_eq!(golden.ids[&step].to_string(), id);
    }
    for summary in golden.repository.list().unwrap() {
        let manifest = golden.repository.manifest(summary.id).unwrap();
        let step: usize = manifest.labels["step"].parse().unwrap();
        assert_eq!(golden.ids[&step], summary.id, "the order of the steps");
        let state = &golden.states[step];
        assert_eq!(summary.parent, parent(step).map(|parent| golden.ids[&parent]));
        assert_eq!((manifest.parent, manifest.created), (summary.parent, summary.created));
        assert_eq!((summary.len, summary.content_len), (state.bytes.len() as u64, state.content_len as u64));
        assert_eq!((manifest.len, manifest.content_len), (summary.len, summary.content_len));
        let names: Vec<&str> = NAMES.iter().filter(|name| name.1 == step).map(|name| name.0).collect();
        assert_eq!((&summary.names[..], &manifest.names[..]), (&to_owned(&names)[..], &to_owned(&names)[..]));
        let special = step == 1;
        assert_eq!(manifest.labels.get("größe").map(String::as_str), special.then_some("groß"));
        assert_eq!(manifest.attachments.len(), if special { 2 } else { 0 });
    }
    let attachments = golden.repository.manifest("v1.2+x@y=z").unwrap().attachments;
    assert_eq!((&attachments["registers"][..], &attachments["empty"][..]), (&noise(7, 100)[..], &[][..]));
}

fn to_owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn all_snapshots_have_their_bytes() {
    let golden = Golden::new();
    golden.check_intact();
    let base = golden.load(0);
    for step in 0..REMOVED {
        golden.check(&golden.load(step), step);
        let onto = golden.repository.load(golden.ids[&step]).onto(&base).run().unwrap();
        golden.check(&onto, step);
        let out = golden.folder.path().join("tmp").join("out");
        golden.repository.extract(golden.ids[&step], &out).run().unwrap();
        assert!(fs::read(&out).unwrap() == golden.states[step].content(), "step {step}, extracted");
    }
}

#[test]
fn snapshots_are_mapped() {
    let golden = Golden::new();
    for (name, step) in NAMES {
        // SAFETY: nothing writes to the files of the cache of this temporary repository.
        let saved = unsafe { golden.repository.map(name) }.unwrap();
        golden.check(&saved, step);
    }
}

#[test]
fn differences_are_those_of_the_bytes() {
    let golden = Golden::new();
    for (a, b) in
        [(0, 1), (1, 2), (0, 34), (32, CUMULATIVE), (SHORT, 34), (34, SHORT), (0, COPY), (SHORT, COPY)]
    {
        let found = golden.repository.diff(golden.ids[&a], golden.ids[&b]).unwrap();
        assert_eq!(found, golden.states[a].diff(&golden.states[b]), "{a} and {b}");
    }
}

#[test]
fn work_goes_on() {
    let golden = Golden::new();
    let (parent, old) = (golden.load(34), &golden.states[34]);
    let mut new = old.clone();
    new.set(3, &noise(400, BLOCK));
    new.set(30, &text(5)); // The repository has this block.
    let child = derived(&parent, old, &new);
    let saved = golden.repository.save(&child).parent(&parent).name("current").run().unwrap();
    let manifest = golden.repository.manifest(saved.id()).unwrap();
    assert_eq!((manifest.parent, manifest.blocks), (Some(golden.ids[&34]), 2));
    // The new files have the format of the old ones.
    let file = fs::read(golden.folder.path().join(format!("manifests/{}", saved.id()))).unwrap();
    assert_eq!(file[..12], *b"memsnapM\x01\0\0\0");

    let check = |repository: &Repository| {
        assert!(content(&repository.load("current").run().unwrap()) == new.content());
        golden.check(&repository.load("short").run().unwrap(), SHORT);
        golden.check_intact();
    };
    check(&golden.repository);
    let collected = golden.repository.collect(&Collect::new().grace(Duration::ZERO)).unwrap();
    assert_eq!(collected.manifests, 1, "that of the removed snapshot");
    check(&golden.repository);
    fs::remove_file(golden.folder.path().join("index.redb")).unwrap();
    let repaired = Repository::repair(golden.folder.path()).unwrap();
    assert_eq!((repaired.problems, repaired.manifests), (vec![], STEPS as u64));
    assert_eq!(repaired.names, NAMES.len() as u64);
    check(&Repository::open(golden.folder.path()).unwrap());
}
