//! Random operations on a repository, compared with byte vectors.
//!
//! `MEMSNAP_STORE_CASES` sets the number of cases.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use memsnap::Snapshot;
use memsnap_store::{Collect, Depth, Id, Repository, Saved};
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

const BLOCK: usize = 4096;

struct State {
    bytes: Vec<u8>,
    saved: Option<Saved>,
}

struct Model {
    random: Xoshiro256PlusPlus,
    folder: tempfile::TempDir,
    repository: Repository,
    states: BTreeMap<Id, State>,
    names: BTreeMap<String, Id>,
}

fn content(snapshot: &Snapshot) -> Vec<u8> {
    snapshot.view().unwrap().content().to_vec()
}

impl Model {
    fn new(seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repository = Repository::create(folder.path().join("repository")).unwrap();
        let random = Xoshiro256PlusPlus::seed_from_u64(seed);
        Self { random, folder, repository, states: BTreeMap::new(), names: BTreeMap::new() }
    }

    fn any(&mut self) -> Option<Id> {
        let count = self.states.len();
        (count > 0).then(|| *self.states.keys().nth(self.random.random_range(0..count)).unwrap())
    }

    /// Changes some blocks: to random bytes, to zeroes, or to those of another block.
    fn change(&mut self, bytes: &mut [u8]) {
        if bytes.is_empty() {
            return;
        }
        for _ in 0..self.random.random_range(0..20) {
            let at = self.random.random_range(0..bytes.len());
            let end = bytes.len().min(at + self.random.random_range(1..3 * BLOCK));
            match self.random.random_range(0..4) {
                0 => bytes[at..end].fill(0),
                1 => bytes[at..end].fill(self.random.random()),
                2 => {
                    let (from, to) =
                        (at / BLOCK * BLOCK, self.random.random_range(0..bytes.len()) / BLOCK * BLOCK);
                    let len = BLOCK.min(bytes.len() - from).min(bytes.len() - to);
                    bytes.copy_within(from..from + len, to);
                }
                _ => self.random.fill(&mut bytes[at..end]),
            }
        }
    }

    fn resized(&mut self, bytes: &mut Vec<u8>) {
        if self.random.random_ratio(1, 6) {
            let len = self.random.random_range(0..60 * BLOCK);
            bytes.resize(len, 0);
        }
    }

    fn save(&mut self) {
        let parent = self.any().filter(|_| self.random.random_ratio(9, 10));
        let mut bytes = match parent {
            Some(parent) => self.states[&parent].bytes.clone(),
            None => vec![0; self.random.random_range(0..60 * BLOCK)],
        };
        self.resized(&mut bytes);
        self.change(&mut bytes);
        let name = self.random.random_ratio(1, 3).then(|| format!("name-{}", self.random.random_range(0..5)));
        let snapshot = Snapshot::from_slice(&bytes).unwrap();
        let by_file = self.random.random_ratio(1, 4);
        let repository = &self.repository;
        let id = if by_file {
            let path = self.folder.path().join("input");
            fs::write(&path, &bytes).unwrap();
            let file = fs::File::open(&path).unwrap();
            let mut save = repository.save_file(&file);
            if let Some(parent) = parent {
                save = save.parent_id(parent);
            }
            if let Some(name) = &name {
                save = save.name(name);
            }
            save.run().unwrap().id
        } else {
            let mut save = repository.save(&snapshot);
            match parent.map(|parent| (parent, self.states[&parent].saved.as_ref())) {
                Some((_, Some(saved))) if self.random.random() => save = save.parent(saved),
                Some((parent, _)) => save = save.parent_id(parent),
                None => {}
            }
            if let Some(name) = &name {
                save = save.name(name);
            }
            save.run().unwrap().id()
        };
        if let Some(name) = name {
            self.names.insert(name, id);
        }
        let saved = (!by_file).then(|| repository.load(id).run().unwrap());
        self.states.insert(id, State { bytes, saved });
    }

    fn load(&mut self) {
        let (Some(id), Some(other)) = (self.any(), self.any()) else { return };
        let loaded = self.repository.load(id).run().unwrap();
        assert_eq!(content(loaded.snapshot()), self.states[&id].bytes);
        let Some(onto) = &self.states[&other].saved else { return };
        let loaded = self.repository.load(id).onto(onto).run().unwrap();
        assert_eq!(content(loaded.snapshot()), self.states[&id].bytes);
        self.states.get_mut(&id).unwrap().saved = Some(loaded);
    }

    fn map_and_extract(&mut self) {
        let Some(id) = self.any() else { return };
        // SAFETY: nothing writes to the files of the cache.
        let mapped = unsafe { self.repository.map(id) }.unwrap();
        assert_eq!(content(mapped.snapshot()), self.states[&id].bytes);
        let path = self.folder.path().join("output");
        self.repository.extract(id, &path).run().unwrap();
        assert!(fs::read(&path).unwrap() == self.states[&id].bytes);
    }

    fn diff(&mut self) {
        let (Some(a), Some(b)) = (self.any(), self.any()) else { return };
        let ranges = self.repository.diff(a, b).unwrap();
        let (mut a, mut b) = (self.states[&a].bytes.clone(), self.states[&b].bytes.clone());
        let len = a.len().max(b.len()).next_multiple_of(BLOCK);
        a.resize(len, 0);
        b.resize(len, 0);
        let differs = |block: usize| a[block * BLOCK..][..BLOCK] != b[block * BLOCK..][..BLOCK];
        for block in 0..len / BLOCK {
            let at = (block * BLOCK) as u64;
            assert_eq!(ranges.iter().any(|range| range.contains(&at)), differs(block), "block {block}");
        }
    }

    fn remove(&mut self) {
        let Some(id) = self.any().filter(|_| self.states.len() > 3) else { return };
        assert_eq!(self.repository.remove(id).unwrap(), id);
        self.states.remove(&id);
        self.names.retain(|_, named| *named != id);
    }

    fn collect(&mut self) {
        self.repository.collect(&Collect::new().grace(Duration::ZERO).cache(self.random.random())).unwrap();
    }

    fn reopen(&mut self) {
        let path = self.repository.path().to_owned();
        if self.random.random() && self.random.random() {
            self.collect(); // Otherwise, `repair` lists what was removed.
            fs::remove_file(path.join("index.redb")).unwrap();
            let repaired = Repository::repair(&path).unwrap();
            assert_eq!(repaired.problems, [""; 0]);
        }
        self.repository = Repository::open(path).unwrap();
    }

    fn check(&self) {
        let verified = self.repository.verify(Depth::Data).unwrap();
        assert_eq!(verified.problems, [""; 0]);
        let names: BTreeMap<_, _> = self.repository.names().unwrap().into_iter().collect();
        assert_eq!(names, self.names);
        let mut listed: Vec<Id> = self.repository.list().unwrap().iter().map(|summary| summary.id).collect();
        listed.sort_unstable();
        for (id, state) in &self.states {
            assert_eq!(content(self.repository.load(id).run().unwrap().snapshot()), state.bytes);
        }
        // A manifest that others need is listed again by `repair`.
        assert!(self.states.keys().all(|id| listed.binary_search(id).is_ok()));
    }
}

#[test]
fn random_operations_agree_with_byte_vectors() {
    let cases = std::env::var("MEMSNAP_STORE_CASES").map_or(20, |cases| cases.parse().unwrap());
    for seed in 0..cases {
        println!("seed {seed}");
        let mut model = Model::new(seed);
        for _ in 0..60 {
            match model.random.random_range(0..20) {
                0..=8 => model.save(),
                9..=12 => model.load(),
                13 | 14 => model.diff(),
                15 => model.map_and_extract(),
                16 | 17 => model.remove(),
                18 => model.collect(),
                _ => model.reopen(),
            }
        }
        model.check();
    }
}
