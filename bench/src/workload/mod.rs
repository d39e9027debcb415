//! The workloads: a file for each.

pub(crate) mod adapting;
pub(crate) mod costs;
pub(crate) mod create;
pub(crate) mod logged;
pub(crate) mod memory;
pub(crate) mod restore;
pub(crate) mod sparse;
pub(crate) mod take;
pub(crate) mod threads;
pub(crate) mod tree;
pub(crate) mod view;
pub(crate) mod writer;

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

use crate::case::{Case, GIB, MIB};
use crate::competitor::{self, Competitor};
use crate::harness::Plan;
use crate::image::Image;
use crate::results::Results;

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Workload {
    /// Taking snapshots, with writes in between
    Take,
    /// Writing and restoring in turn
    Restore,
    /// Opening views of snapshots
    View,
    /// Making snapshots from bytes, files and zeroes
    Create,
    /// Restoring the snapshots of a tree in random order
    Tree,
    /// The memory that snapshots hold
    Memory,
    /// Stalls of a continuous writer while snapshots are taken
    Writer,
    /// Two threads compared with one
    Threads,
    /// Views to which the program reports what it writes
    Logged,
    /// Views that move their image into huge pages
    Adapting,
    /// Large views of which little is in use
    Sparse,
    /// The costs on which memsnap's cost model is based
    Costs,
}

impl Workload {
    /// Returns an estimate of the most memory that the workload holds, in bytes.
    pub(crate) fn working_set(self, scale: Scale) -> usize {
        match self {
            _ if scale.quick => 2 * GIB,
            Self::Take | Self::Restore | Self::Writer => 9 * GIB,
            Self::Create | Self::Adapting => 4 * GIB,
            Self::Logged => 5 * GIB,
            Self::View | Self::Tree | Self::Memory | Self::Costs => 3 * GIB,
            Self::Threads | Self::Sparse => 2 * GIB,
        }
    }

    pub(crate) fn run(self, scale: Scale, results: &mut Results) -> Result<()> {
        match self {
            Self::Take => take::run(scale, results),
            Self::Restore => restore::run(scale, results),
            Self::View => view::run(scale, results),
            Self::Create => create::run(scale, results),
            Self::Tree => tree::run(scale, results),
            Self::Memory => memory::run(scale, results),
            Self::Writer => writer::run(scale, results),
            Self::Threads => threads::run(scale, results),
            Self::Logged => logged::run(scale, results),
            Self::Adapting => adapting::run(scale, results),
            Self::Sparse => sparse::run(scale, results),
            Self::Costs => costs::run(scale, results),
        }
    }
}

/// Competitors that take seconds for a large region.
const SLOW: [&str; 3] = ["memmap2", "plain copy", "crumbles"];

/// Whether a run is a quick or a full one.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) quick: bool,
}

impl Scale {
    /// Returns the value for this scale.
    pub(crate) fn pick<T>(self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Returns the competitors of a case. A quick run leaves out the slow ones.
    fn competitors(self, case: &Case, results: &mut Results) -> Vec<Box<dyn Competitor>> {
        let mut competitors = competitor::all();
        if self.quick && case.bytes >= GIB {
            competitors.retain(|competitor| !SLOW.contains(&competitor.name()));
            results.skip(case, &SLOW.join(", "), "takes too long for --quick");
        }
        competitors
    }

    /// Returns how many rounds of a case are measured, and for how long.
    pub(crate) fn plan(self, case: &Case) -> Plan {
        let small = case.bytes <= 128 * MIB;
        Plan {
            rounds: self.pick(if small { 100 } else { 30 }, if small { 1000 } else { 200 }),
            least: self.pick(1, 5),
            time: Duration::from_millis(self.pick(150, 900)),
        }
    }
}

/// A cache of the image of the last case, because most cases have the same image as the case before.
#[derive(Default)]
struct Images(Option<Image>);

impl Images {
    /// Returns an image of `bytes` bytes.
    fn get(&mut self, bytes: usize) -> Result<&Image> {
        let image = match self.0.take() {
            Some(image) if image.bytes().len() == bytes => image,
            other => {
                drop(other);
                Image::new(bytes)?
            }
        };
        Ok(self.0.insert(image))
    }
}
