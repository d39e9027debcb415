//! Logged views, compared with copies of the written pages and with other views.
//!
//! Logged views of three lengths are also compared with each other.
//!
//! The time of the writes includes that of the reports, since the words are borrowed with `get_mut`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use memsnap::{Snapshot, ViewOptions};

use super::{Images, Scale};
use crate::case::{Case, GIB, MIB, TIB};
use crate::competitor::{
    Competitor, Crumbles, Limit, Memsnap, MemsnapLogged, Operation, Region, Taken, copies_of_zeroes,
};
use crate::harness::{Entry, Plan, Round, interleave, nanoseconds, open, time};
use crate::pages::{random_changes, rng};
use crate::results::{COPIES, LOGGED, Metric, Results, Samples};

/// The time of a take or of a restore.
pub(crate) const CALL: Metric = Metric::nanoseconds("call");
/// The time of the call and of the writes before it.
pub(crate) const WITH_WRITES: Metric = Metric::nanoseconds("writes + call");

const NAME: &str = "logged";

/// The call that is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Take,
    Restore,
}

impl Call {
    pub(crate) const ALL: [Self; 2] = [Self::Take, Self::Restore];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Take => "take",
            Self::Restore => "restore",
        }
    }

    /// Returns the operation that a competitor has to support.
    pub(crate) fn operation(self) -> Operation {
        match self {
            Self::Take => Operation::Take { kept: 1 },
            Self::Restore => Operation::Restore,
        }
    }

    /// Performs the call with a competitor, and returns the time of the call.
    ///
    /// The snapshot of the previous round is dropped first. This time is not included.
    pub(crate) fn by(self, entry: &mut Entry, round: &Round) -> Result<Duration> {
        match self {
            Self::Take => {
                entry.taken.clear();
                let (taken, pause) = entry.take(round)?;
                entry.taken.push_back(taken);
                Ok(pause)
            }
            Self::Restore => entry.restore(round),
        }
    }
}

pub(crate) const CHANGED: [usize; 3] = [1, 16, 256];
pub(crate) const SIZES: [usize; 3] = [MIB, GIB, TIB];

/// Returns the case of a call on a gibibyte that was read in full.
pub(crate) fn beside_copies(call: Call, changed: usize) -> Case {
    Case::base(NAME).changed(changed).variant(call.name())
}

/// Returns the case of a call on zeroes, of which only the changed pages are resident.
pub(crate) fn of_zeroes(call: Call, bytes: usize) -> Case {
    Case::base(NAME).bytes(bytes).changed(16).sparse().variant(&format!("{}, zeroes", call.name()))
}

/// Returns the case in which a logged view is compared with a view that compares all of its pages.
pub(crate) fn beside_comparing(call: Call) -> Case {
    beside_copies(call, 16).bytes(256 * MIB)
}

pub(crate) fn run(scale: Scale, results: &mut Results) -> Result<()> {
    let mut images = Images::default();
    for call in Call::ALL {
        for changed in CHANGED {
            let mut competitors: Vec<Box<dyn Competitor>> = vec![
                Box::new(Memsnap::default()),
                Box::new(MemsnapLogged::default()),
                Box::new(Limit::CopiesOnly),
            ];
            if call == Call::Take {
                competitors.push(Box::new(Crumbles));
            }
            beside(call, &beside_copies(call, changed), &competitors, scale, &mut images, results)?;
        }
    }
    for call in Call::ALL {
        let comparing = Memsnap { compares: true, ..Memsnap::default() };
        let competitors: [Box<dyn Competitor>; 2] = [Box::new(MemsnapLogged::default()), Box::new(comparing)];
        beside(call, &beside_comparing(call), &competitors, scale, &mut images, results)?;
    }
    Call::ALL.into_iter().try_for_each(|call| sizes(call, scale, results))
}

/// Returns the number of rounds. The calls are short, so this workload needs many.
fn rounds(scale: Scale) -> usize {
    scale.pick(200, 1000)
}

fn beside(
    call: Call,
    case: &Case,
    competitors: &[Box<dyn Competitor>],
    scale: Scale,
    images: &mut Images,
    results: &mut Results,
) -> Result<()> {
    eprintln!("{case}");
    let entries = open(case, call.operation(), images.get(case.bytes)?, competitors, results)?;
    let plan = Plan { rounds: rounds(scale), ..scale.plan(case) };
    interleave(case, plan, entries, results, |entry, round| {
        let before = if round.is_first { entry.sample(round) } else { Vec::new() };
        let writes = entry.write(round);
        let pause = call.by(entry, round)?;
        if round.is_first && call == Call::Restore {
            entry.check_restored(round, &before)?;
        }
        entry.record(CALL, nanoseconds(pause));
        entry.record(WITH_WRITES, nanoseconds(writes + pause));
        Ok(())
    })
}

/// A region of zeroes, and the pages that each round writes to.
struct Zeroes {
    case: Case,
    name: &'static str,
    region: Box<dyn Region>,
    round: Round,
    last: Option<Taken>,
}

impl Zeroes {
    fn new(case: Case, name: &'static str, region: Box<dyn Region>) -> Self {
        let changes = random_changes(case.pages(), case.changed, &mut rng(case.bytes));
        Self { case, name, region, round: Round::new(0, changes), last: None }
    }
}

/// Measures the call for views of all lengths, and the copies alone, in turns of several rounds.
fn sizes(call: Call, scale: Scale, results: &mut Results) -> Result<()> {
    const IN_A_ROW: usize = 10;
    let mut all = Vec::new();
    for bytes in SIZES {
        let case = of_zeroes(call, bytes);
        eprintln!("{case}");
        let view = Arc::new(Snapshot::zeroed(bytes)?).view_arc_with(&ViewOptions::logged())?;
        let copies = copies_of_zeroes(bytes, case.changed)?;
        all.push(Zeroes::new(case.clone(), LOGGED, Box::new(view)));
        all.push(Zeroes::new(case, COPIES, copies));
    }
    let mut samples = Samples::default();
    for row in 0..=rounds(scale) / IN_A_ROW {
        for Zeroes { case, name, region, round, last } in &mut all {
            for number in 0..=IN_A_ROW {
                let value = row * (IN_A_ROW + 1) + number + 1;
                let ((), writes) = time(|| region.write(&round.changes, value as u64));
                let pause = match call {
                    Call::Take => {
                        *last = None;
                        let (taken, pause) = time(|| region.take(&round.ascending));
                        *last = Some(taken?);
                        pause
                    }
                    Call::Restore => {
                        let (restored, pause) = time(|| region.restore(&round.ascending));
                        restored?;
                        pause
                    }
                };
                // The first row warms up the regions. The first round of each row fills the caches.
                if row > 0 && number > 0 {
                    samples.record(case, name, CALL, nanoseconds(pause));
                    samples.record(case, name, WITH_WRITES, nanoseconds(writes + pause));
                }
            }
        }
    }
    samples.add_to(results);
    Ok(())
}
