//! Random operations on two repositories and a remote, compared with byte vectors.
//!
//! `MEMSNAP_STORE_CASES` sets the number of cases, and `MEMSNAP_STORE_FIRST_SEED` the seed of the first one.
#![cfg(feature = "remote")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::transfer::at_once;
use common::{BLOCK, Machine};
use memsnap::Snapshot;
use memsnap_store::{Id, Remote, RemoteOptions, Repository};
use object_store::memory::InMemory;
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// The lists of a repository or a remote: its snapshots and its names.
#[derive(Default, Clone)]
struct Side {
    listed: BTreeSet<Id>,
    names: BTreeMap<String, Id>,
}

struct Model {
    random: Xoshiro256PlusPlus,
    machines: [Machine; 2],
    sides: [Side; 2],
    store: Arc<InMemory>,
    remote: Side,
    /// The bytes of all snapshots that were ever saved.
    bytes: BTreeMap<Id, Vec<u8>>,
    /// The ids of these snapshots, in the order in which they were saved.
    ///
    /// An id depends on the time of the save. So that the operations depend only on the seed, they pick from this list.
    saved: Vec<Id>,
}

impl Model {
    fn new(seed: u64) -> Self {
        Self {
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            machines: [Machine::new(), Machine::new()],
            sides: [Side::default(), Side::default()],
            store: Arc::default(),
            remote: Side::default(),
            bytes: BTreeMap::new(),
            saved: Vec::new(),
        }
    }

    fn remote(&self) -> Remote {
        Remote::with_store(self.store.clone(), "", &RemoteOptions::new()).unwrap()
    }

    fn pick(&mut self, ids: &BTreeSet<Id>) -> Option<Id> {
        let count = ids.len();
        let mut in_order = self.saved.iter().filter(|id| ids.contains(id));
        (count > 0).then(|| *in_order.nth(self.random.random_range(0..count)).unwrap())
    }

    fn name(&mut self) -> Option<String> {
        self.random.random_ratio(1, 2).then(|| format!("name-{}", self.random.random_range(0..4)))
    }

    /// Changes some blocks: to noise, to zeroes, or to those of any other snapshot.
    fn changed(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        if self.random.random_ratio(1, 5) {
            bytes.resize(self.random.random_range(1..80) * BLOCK - self.random.random_range(0..BLOCK), 0);
        }
        for _ in 0..self.random.random_range(1..8) {
            let at = self.random.random_range(0..bytes.len()) / BLOCK * BLOCK;
            let end = bytes.len().min(at + self.random.random_range(1..10) * BLOCK);
            match self.random.random_range(0..3) {
                0 => bytes[at..end].fill(0),
                1 => self.random.fill(&mut bytes[at..end]),
                _ => {
                    let number = self.random.random_range(0..=self.saved.len());
                    let Some(other) = self.saved.get(number).map(|id| &self.bytes[id]) else { continue };
                    let from = self.random.random_range(0..=other.len() / BLOCK) * BLOCK;
                    let len = (end - at).min(other.len() - from);
                    bytes[at..at + len].copy_from_slice(&other[from..from + len]);
                }
            }
        }
        bytes
    }

    fn save(&mut self, machine: usize) {
        let listed = self.sides[machine].listed.clone();
        let parent = self.pick(&listed).filter(|_| self.random.random_ratio(4, 5));
        let old = parent.map_or_else(|| vec![0; 40 * BLOCK], |parent| self.bytes[&parent].clone());
        let bytes = self.changed(old);
        let name = self.name();
        let snapshot = Snapshot::from_slice(&bytes).unwrap();
        let mut save = self.machines[machine].repository.save(&snapshot);
        if let Some(parent) = parent {
            save = save.parent_id(parent);
        }
        if let Some(name) = &name {
            save = save.name(name);
        }
        let id = save.run().unwrap().id();
        if self.bytes.insert(id, bytes).is_none() {
            self.saved.push(id);
        }
        self.sides[machine].listed.insert(id);
        if let Some(name) = name {
            self.sides[machine].names.insert(name, id);
        }
    }

    fn push(&mut self, machine: usize) {
        let listed = self.sides[machine].listed.clone();
        let Some(id) = self.pick(&listed) else { return };
        let (name, remote) = (self.name(), self.remote());
        let mut push = self.machines[machine].repository.push(&remote, id);
        if let Some(name) = &name {
            push = push.name(name);
        }
        assert_eq!(push.run().unwrap().id, id);
        self.remote.listed.insert(id);
        if let Some(name) = name {
            self.remote.names.insert(name, id);
        }
    }

    fn pull(&mut self, machine: usize) {
        let (name, remote) = (self.name(), self.remote());
        let by_name = self.random.random_ratio(1, 3);
        let named = self.remote.names.clone();
        let number = self.random.random_range(0..=named.len());
        let (from, id) = match named.iter().nth(number).filter(|_| by_name) {
            Some((name, id)) => (name.clone(), *id),
            None => {
                let listed = self.remote.listed.clone();
                let Some(id) = self.pick(&listed) else { return };
                (id.to_string(), id)
            }
        };
        let mut pull = self.machines[machine].repository.pull(&remote, &*from);
        if let Some(name) = &name {
            pull = pull.name(name);
        }
        assert_eq!(pull.run().unwrap().id, id);
        assert!(self.machines[machine].bytes(id) == self.bytes[&id]);
        self.sides[machine].listed.insert(id);
        if let Some(name) = name {
            self.sides[machine].names.insert(name, id);
        }
    }

    fn remove(&mut self, machine: usize) {
        let listed = self.sides[machine].listed.clone();
        if let Some(id) = self.pick(&listed).filter(|_| listed.len() > 2) {
            self.machines[machine].repository.remove(id).unwrap();
            self.sides[machine].listed.remove(&id);
            self.sides[machine].names.retain(|_, named| *named != id);
        }
    }

    fn remove_from_remote(&mut self) {
        let listed = self.remote.listed.clone();
        if let Some(id) = self.pick(&listed) {
            self.remote().remove(id).unwrap();
            self.remote.listed.remove(&id);
            self.remote.names.retain(|_, named| *named != id);
        }
    }

    fn rename(&mut self, machine: usize) {
        let listed = self.sides[machine].listed.clone();
        let (Some(id), Some(name)) = (self.pick(&listed), self.name()) else { return };
        self.machines[machine].repository.set_name(&name, id).unwrap();
        self.sides[machine].names.insert(name, id);
    }

    fn collect(&mut self, machine: usize) {
        let cache = self.random.random_ratio(1, 4);
        self.machines[machine].repository.collect(&at_once().cache(cache)).unwrap();
    }

    fn check(&self) {
        let remote = self.remote();
        let listed: BTreeSet<Id> = remote.list().unwrap().iter().map(|summary| summary.id).collect();
        assert_eq!(listed, self.remote.listed);
        let names: BTreeMap<String, Id> =
            remote.names().unwrap().into_iter().map(|name| (name.name, name.id)).collect();
        assert_eq!(names, self.remote.names);
        for (machine, side) in self.machines.iter().zip(&self.sides) {
            machine.check();
            check_side(&machine.repository, side);
            for id in &side.listed {
                assert!(machine.bytes(*id) == self.bytes[id]);
            }
        }
        // A machine with an empty repository gets everything.
        let third = Machine::new();
        for id in &self.remote.listed {
            third.repository.pull(&remote, *id).run().unwrap();
            assert!(third.bytes(*id) == self.bytes[id]);
        }
        third.check();
    }
}

fn check_side(repository: &Repository, side: &Side) {
    let listed: BTreeSet<Id> = repository.list().unwrap().iter().map(|summary| summary.id).collect();
    assert_eq!(listed, side.listed);
    let names: BTreeMap<String, Id> = repository.names().unwrap().into_iter().collect();
    assert_eq!(names, side.names);
}

#[test]
fn random_operations_on_two_repositories_and_a_remote_agree_with_byte_vectors() {
    let number = |variable, default| std::env::var(variable).map_or(default, |value| value.parse().unwrap());
    let first: u64 = number("MEMSNAP_STORE_FIRST_SEED", 0);
    for seed in first..first + number("MEMSNAP_STORE_CASES", 12) {
        println!("seed {seed}");
        let mut model = Model::new(seed);
        for _ in 0..80 {
            let machine = model.random.random_range(0..2);
            match model.random.random_range(0..24) {
                0..=6 => model.save(machine),
                7..=11 => model.push(machine),
                12..=15 => model.pull(machine),
                16 | 17 => model.remove(machine),
                18 | 19 => model.remove_from_remote(),
                20 => model.rename(machine),
                21 => model.collect(machine),
                _ => {
                    model.remote().collect(&at_once()).unwrap();
                }
            }
        }
        model.check();
    }
}
