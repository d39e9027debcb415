//! The bars: the goals of the benchmark, and whether a run meets them.

use memsnap_heap::allocator::{ArenaAllocator, Segments};
use memsnap_heap_bench::game::{ClonedComponents, InRealm};
use memsnap_heap_bench::map::{Cloned, Im, InHeap, Map};
use memsnap_heap_bench::measure::{number, seconds};
use memsnap_heap_bench::physics::{self, Serialized};
use memsnap_heap_bench::rollback::World;

use crate::results::Results;
use crate::talc::TalcArena;
use crate::workload::{allocator, hecs, map, one, rapier2d};

/// A bar, the measured value, and whether the bar is met.
pub(crate) struct Verdict {
    pub(crate) what: String,
    pub(crate) bar: String,
    /// The measured value with its unit, or `None` if it was not measured.
    pub(crate) measured: Option<String>,
    pub(crate) met: Option<bool>,
}

/// The condition that a value has to meet.
#[derive(Clone, Copy)]
enum Bar {
    AtMost(f64),
    AtLeast(f64),
    MoreThan(f64),
}

impl Bar {
    fn limit(self) -> (&'static str, f64) {
        match self {
            Self::AtMost(limit) => ("at most", limit),
            Self::AtLeast(limit) => ("at least", limit),
            Self::MoreThan(limit) => ("more than", limit),
        }
    }

    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
            Self::MoreThan(limit) => value > limit,
        }
    }
}

fn verdict(what: &str, bar: Bar, value: Option<f64>, format: impl Fn(f64) -> String) -> Verdict {
    let (word, limit) = bar.limit();
    Verdict {
        what: what.to_owned(),
        bar: format!("{word} {}", format(limit)),
        measured: value.map(&format),
        met: value.map(|value| bar.is_met(value)),
    }
}

fn times(value: f64) -> String {
    format!("{} x", number(value))
}

/// Returns all bars with the values of a run.
pub(crate) fn verdicts(results: &Results) -> Vec<Verdict> {
    let mut all = maps(results);
    all.extend(allocators(results));
    all.extend(worlds(results));
    all
}

fn maps(results: &Results) -> Vec<Verdict> {
    let ratio = |metric, of, to| {
        Some(results.median([map::NAME, of, metric])? / results.median([map::NAME, to, metric])?)
    };
    vec![
        verdict(
            "a million entries, 1,000 changes + mark: time of cloning std's map / its time",
            Bar::AtLeast(80.0),
            ratio(map::BOTH, Cloned::NAME, InHeap::NAME),
            times,
        ),
        verdict(
            "the same: its time / time of `im`",
            Bar::AtMost(1.3),
            ratio(map::BOTH, InHeap::NAME, Im::NAME),
            times,
        ),
        verdict(
            "a million entries, reading one: time of `im` / its time",
            Bar::AtLeast(2.0),
            ratio(map::READ, Im::NAME, InHeap::NAME),
            times,
        ),
        verdict(
            "20,000 entries, one change + mark",
            Bar::AtMost(15e-6),
            results.median([one::NAME, InHeap::NAME, map::BOTH]),
            seconds,
        ),
    ]
}

fn allocators(results: &Results) -> Vec<Verdict> {
    let ours = |metric| results.median([allocator::NAME, Segments::NAME, metric]);
    let of = |way, metric| results.median([allocator::NAME, way, metric]);
    let share = || Some(ours(allocator::PAIRS)? / of(TalcArena::NAME, allocator::PAIRS)?);
    let time = || Some(ours(allocator::TIME)? / of(allocator::SYSTEM, allocator::TIME)?);
    vec![
        verdict(
            "300,000 objects, 1,000 free + alloc pairs: written pages",
            Bar::AtMost(300.0),
            ours(allocator::PAIRS),
            number,
        ),
        verdict("the same: pages / those of talc", Bar::AtMost(0.25), share(), times),
        verdict(
            "after ten million random operations: written bytes of the arena / bytes of live objects",
            Bar::AtMost(1.35),
            ours(allocator::MEMORY),
            times,
        ),
        verdict("free + alloc: its time / time of the system's allocator", Bar::AtMost(2.0), time(), times),
    ]
}

fn worlds(results: &Results) -> Vec<Verdict> {
    let (game, _) = hecs::NAMES[0];
    let ratio = |workload, metric, of, to| {
        Some(results.median([workload, of, metric])? / results.median([workload, to, metric])?)
    };
    let (clones, serde) = (ClonedComponents::NAME, Serialized::NAME);
    let physics = physics::InRealm::NAME;
    vec![
        verdict(
            "hecs, 20,000 entities, a tenth moves, 8 frames back and again: time of cloning components / its time",
            Bar::AtLeast(8.0),
            ratio(game, hecs::RETURN, clones, InRealm::NAME),
            times,
        ),
        verdict(
            "the same: exact returns / all",
            Bar::AtLeast(1.0),
            results.median([game, InRealm::NAME, hecs::EXACT]),
            number,
        ),
        verdict(
            "rapier2d, 5,000 bodies, 100 active, step + save: time of serde / its time",
            Bar::MoreThan(1.0),
            ratio(rapier2d::NAME, hecs::FRAME, serde, physics),
            times,
        ),
        verdict(
            "the same, load: time of serde / its time",
            Bar::MoreThan(1.0),
            ratio(rapier2d::NAME, hecs::LOAD, serde, physics),
            times,
        ),
        verdict(
            "the same: exact returns / all",
            Bar::AtLeast(1.0),
            results.median([rapier2d::NAME, physics, hecs::EXACT]),
            number,
        ),
    ]
}
