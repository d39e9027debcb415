//! The workloads. Each of them measures some of the bars.

pub(crate) mod child;
pub(crate) mod children;
pub(crate) mod first;
pub(crate) mod load;
pub(crate) mod memory;
pub(crate) mod push;
pub(crate) mod sharing;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::ValueEnum;
use memsnap::Snapshot;

use crate::place::Place;
use crate::results::Results;

/// A workload.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Workload {
    /// The first save of the image
    First,
    /// A save of a child of the image with 256 changed pages
    Child,
    /// A hundred children, each made from the one before
    Children,
    /// Two images with pages in common, at other offsets
    Sharing,
    /// Loading, extracting and mapping
    Load,
    /// The greatest memory of calls
    Memory,
    /// A push of a child to a bucket on loopback
    Push,
}

impl Workload {
    /// Runs the workload.
    pub(crate) fn run(self, bench: &Bench, results: &mut Results) -> Result<()> {
        match self {
            Self::First => first::run(bench, results),
            Self::Child => child::run(bench, results),
            Self::Children => children::run(bench, results),
            Self::Sharing => sharing::run(bench, results),
            Self::Load => load::run(bench, results),
            Self::Memory => memory::run(bench, results),
            Self::Push => push::run(bench, results),
        }
    }
}

/// The data that all workloads use.
pub(crate) struct Bench {
    /// The bytes of the image.
    pub(crate) image: Vec<u8>,
    /// A snapshot of the image.
    pub(crate) snapshot: Snapshot,
    /// The places of repositories. Each has a file with the image.
    pub(crate) places: Vec<Place>,
    /// The number of rounds of long calls, after a first one that is not counted.
    pub(crate) rounds: usize,
    /// Whether this program is installed.
    pub(crate) restic: bool,
    /// Whether this program is installed.
    pub(crate) zstd: bool,
    start: Instant,
}

impl Bench {
    pub(crate) fn new(image: Vec<u8>, places: Vec<Place>, rounds: usize, start: Instant) -> Result<Self> {
        let snapshot = Snapshot::from_slice(&image)?;
        let [restic, zstd] = [("restic", "version"), ("zstd", "--version")]
            .map(|(program, argument)| crate::tool::version(program, argument).is_some());
        Ok(Self { image, snapshot, places, rounds, restic, zstd, start })
    }

    /// Prints the current step to the standard error.
    pub(crate) fn tell(&self, what: &str) {
        eprintln!("[{:>4} s] {what}", self.start.elapsed().as_secs());
    }

    /// Returns the place on a disk, or the only place.
    pub(crate) fn disk(&self) -> &Place {
        self.places.iter().find(|place| place.name == crate::place::DISK).unwrap_or(&self.places[0])
    }

    /// Returns the path of a repository in this place. Deletes the repository if it exists.
    pub(crate) fn repository(&self, place: &Place) -> Result<PathBuf> {
        place.fresh("repository")
    }
}

/// Runs a call. Returns its result and its time.
pub(crate) fn timed<T, E>(call: impl FnOnce() -> Result<T, E>) -> Result<(T, Duration), E> {
    let start = Instant::now();
    let result = call()?;
    Ok((result, start.elapsed()))
}
