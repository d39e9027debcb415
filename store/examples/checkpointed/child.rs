//! The child process: keeps the ledger in a view, and saves a checkpoint every few steps.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use memsnap::{OwnedView, Snapshot};
use memsnap_store::{Repository, Saved};
use serde::{Deserialize, Serialize};

use crate::ledger::Ledger;

/// The name of the last checkpoint.
pub(crate) const LATEST: &str = "latest";
/// The number of steps between two checkpoints.
pub(crate) const STEPS: u64 = 4;

/// A message from the child to the parent, in one line of JSON.
#[derive(Serialize, Deserialize)]
pub(crate) enum Message {
    /// The repository had no checkpoint. The child made a new ledger and saved all of it.
    Made(Checkpoint),
    /// The child wrote all of the ledger to a file and synced it, for comparison.
    Whole(Duration),
    /// The child loaded the last checkpoint and checked every byte of it.
    Loaded { id: String, step: u64, load: Duration, check: Duration },
    /// The child saved a checkpoint. It is durable.
    Saved(Checkpoint),
}

/// A checkpoint that the store has acknowledged.
#[derive(Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) id: String,
    pub(crate) step: u64,
    /// The time to take the snapshot, in which the ledger cannot be changed.
    pub(crate) pause: Duration,
    /// The time to save the snapshot.
    pub(crate) save: Duration,
    /// The number of bytes that the store wrote.
    pub(crate) bytes: u64,
}

/// Continues from the last checkpoint, or makes a new ledger. Runs until it is killed or fails.
pub(crate) fn run(repository: &Path, ledger: Ledger, whole: &Path) -> Result<()> {
    let repository = Repository::open(repository).context("opening the repository")?;
    let mut saved = if has_checkpoint(&repository)? {
        let start = Instant::now();
        let saved = repository.load(LATEST).run().context("loading the last checkpoint")?;
        let load = start.elapsed();
        let start = Instant::now();
        let step = ledger.check(&saved.snapshot().view()?).context("checking the last checkpoint")?;
        tell(&Message::Loaded { id: saved.id().to_string(), step, load, check: start.elapsed() })?;
        saved
    } else {
        let snapshot = create(ledger)?;
        let (saved, checkpoint) = save(&repository, &snapshot, 0, None, Duration::ZERO)?;
        tell(&Message::Made(checkpoint))?;
        tell(&Message::Whole(write_whole(&snapshot, whole)?))?;
        saved
    };
    let mut state: OwnedView =
        saved.snapshot().clone().into_view().context("opening a view of the ledger")?;
    loop {
        for _ in 0..STEPS {
            ledger.advance(&mut state)?;
        }
        let start = Instant::now();
        let snapshot = state.take_snapshot().context("taking a snapshot of the ledger")?;
        let pause = start.elapsed();
        let (next, checkpoint) = save(&repository, &snapshot, ledger.step(&state)?, Some(&saved), pause)?;
        tell(&Message::Saved(checkpoint))?;
        saved = next;
    }
}

/// Returns whether the repository has a last checkpoint.
fn has_checkpoint(repository: &Repository) -> Result<bool> {
    let names = repository.names().context("listing the names of the repository")?;
    Ok(names.iter().any(|(name, _)| name == LATEST))
}

fn create(ledger: Ledger) -> Result<Snapshot> {
    let mut snapshot = Snapshot::zeroed(ledger.len()).context("making a ledger of zeroes")?;
    let mut view = snapshot.view_mut().context("opening a mutable view of the ledger")?;
    ledger.create(&mut view[..ledger.len()]);
    view.commit().context("making the ledger")?;
    Ok(snapshot)
}

/// Saves a checkpoint, and moves the name [`LATEST`] to it.
fn save(
    repository: &Repository,
    snapshot: &Snapshot,
    step: u64,
    parent: Option<&Saved>,
    pause: Duration,
) -> Result<(Saved, Checkpoint)> {
    let start = Instant::now();
    let mut save = repository.save(snapshot).name(LATEST).label("step", step.to_string());
    if let Some(parent) = parent {
        save = save.parent(parent);
    }
    let saved = save.run().with_context(|| format!("saving the checkpoint of step {step}"))?;
    let time = start.elapsed();
    let bytes = repository.manifest(&saved).context("reading the manifest of a checkpoint")?.stored;
    let checkpoint = Checkpoint { id: saved.id().to_string(), step, pause, save: time, bytes };
    Ok((saved, checkpoint))
}

/// Writes all of the ledger to a file, syncs it, and deletes it. Returns the time without the deletion.
fn write_whole(snapshot: &Snapshot, path: &Path) -> Result<Duration> {
    let write = || {
        let view = snapshot.view()?;
        let start = Instant::now();
        let mut file = File::create(path)?;
        file.write_all(&view)?;
        file.sync_all()?;
        let time = start.elapsed();
        fs::remove_file(path)?;
        io::Result::Ok(time)
    };
    write().with_context(|| format!("writing all of the ledger to {}", path.display()))
}

/// Writes a message to the pipe. A line is so short that the pipe gets all of it or nothing.
fn tell(message: &Message) -> Result<()> {
    let line = serde_json::to_string(message)? + "\n";
    let mut pipe = io::stdout().lock();
    pipe.write_all(line.as_bytes()).and_then(|()| pipe.flush()).context("writing a message to the parent")
}
