//! Machines in a repository: the memory as a snapshot, and the registers as an attachment.
//!
//! [`advance`] continues a machine in this process that another process has saved.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use memsnap::{Logged, ViewOptions};
use memsnap_store::{Repository, Saved};

use super::guest::{Model, Report};
use super::machine::{Checkpoint, Machine};
use super::vcpu::State;
use crate::report::time;

/// The name of the last state of the machine.
const LATEST: &str = "machine";
/// The attachment that has the state of the processor, as JSON.
const PROCESSOR: &str = "processor.json";
/// The label that has the number of steps that the guest has run.
const STEPS: &str = "steps";

impl Checkpoint {
    /// Saves the checkpoint in a repository, under a name. If `parent` is given, only what differs is written.
    ///
    /// `steps` is the number of steps that the guest has run. It becomes a label.
    ///
    /// # Errors
    ///
    /// Returns the errors of the store.
    pub fn save(
        &self,
        repository: &Repository,
        name: &str,
        steps: usize,
        parent: Option<&Saved>,
    ) -> Result<Saved> {
        let registers = serde_json::to_vec(self.cpu()).context("writing the registers as JSON")?;
        let save = repository.save(self.memory()).name(name);
        let mut save = save.attach(PROCESSOR, registers).label(STEPS, steps.to_string());
        if let Some(parent) = parent {
            save = save.parent(parent);
        }
        save.run().context("saving a machine")
    }

    /// Returns the checkpoint that `saved` has, and the number of steps that its guest has run.
    ///
    /// The registers are those that the repository has. Only continue machines from repositories that you trust: the
    /// host is safe from any guest, but a guest with other registers computes something else.
    ///
    /// # Errors
    ///
    /// Fails if the snapshot is not that of a machine, and returns the errors of the store.
    pub fn of_saved(repository: &Repository, saved: &Saved) -> Result<(Self, usize)> {
        let manifest = repository.manifest(saved).context("reading the manifest of a machine")?;
        let id = manifest.id.short();
        let registers = manifest.attachments.get(PROCESSOR);
        let registers = registers.with_context(|| format!("{id} is not a machine: it has no {PROCESSOR}"))?;
        let cpu: State = serde_json::from_slice(registers)
            .with_context(|| format!("the attachment {PROCESSOR} of {id} is not the state of a processor"))?;
        let steps = manifest.labels.get(STEPS).and_then(|steps| steps.parse().ok());
        let steps = steps.with_context(|| format!("{id} has no label {STEPS} that is a number"))?;
        Ok((Self::new(saved.snapshot().clone(), cpu)?, steps))
    }
}

/// Runs the machine in `folder` for a batch of `steps` steps, and saves it there. Returns what was done.
///
/// If the folder has no machine, a new one is booted. Otherwise, the machine continues where the last call stopped, which
/// was in another process as a rule. The report of the guest and all of its memory are compared with the model.
///
/// # Errors
///
/// Fails if the guest computes something else than the model, and returns the errors of KVM, memsnap and the store.
pub fn advance(folder: &Path, steps: usize) -> Result<String> {
    let options = ViewOptions::logged();
    let (repository, exists) = open(folder)?;
    let start = Instant::now();
    if !exists {
        let machine = Machine::boot(&options)?;
        let (model, report, checkpoint) = batch(machine, Model::default(), steps)?;
        let start = Instant::now();
        let saved = checkpoint.save(&repository, LATEST, model.steps(), None)?;
        return Ok(format!(
            "booted a machine; after {} steps its sums are {:x} and {:x}; saved it as {} in {}",
            model.steps(),
            report.sum,
            report.mix,
            saved.id().short(),
            time(start.elapsed())
        ));
    }
    let saved = repository.load(LATEST).run().context("loading the machine")?;
    let (checkpoint, before) = Checkpoint::of_saved(&repository, &saved)?;
    let machine = Machine::from_checkpoint(&checkpoint, &options)?;
    let loaded = start.elapsed();
    let mut model = Model::default();
    model.run(before);
    ensure!(model.matches(machine.memory()), "the loaded memory differs from that of the model");
    let (model, report, checkpoint) = batch(machine, model, steps)?;
    let start = Instant::now();
    let child = checkpoint.save(&repository, LATEST, model.steps(), Some(&saved))?;
    Ok(format!(
        "continued {} after {before} steps (loaded in {}); after {} steps its sums are {:x} and {:x}; saved it as {} in {}",
        saved.id().short(),
        time(loaded),
        model.steps(),
        report.sum,
        report.mix,
        child.id().short(),
        time(start.elapsed())
    ))
}

/// Opens the repository in a folder, or makes one. Returns it, and whether it has a machine.
fn open(folder: &Path) -> Result<(Repository, bool)> {
    let is_new = fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none());
    let repository = if is_new { Repository::create(folder) } else { Repository::open(folder) };
    let repository = repository.with_context(|| format!("opening the repository in {}", folder.display()))?;
    let exists = repository.names()?.iter().any(|(name, _)| name == LATEST);
    Ok((repository, exists))
}

/// Runs the guest and the model for a batch, and compares them.
fn batch(
    mut machine: Machine<Logged>,
    mut model: Model,
    steps: usize,
) -> Result<(Model, Report, Checkpoint)> {
    machine.set_steps(steps)?;
    let (report, expected) = (machine.run()?, model.run(steps));
    ensure!(report == expected, "the guest reports {report:?} instead of {expected:?}");
    ensure!(model.matches(machine.memory()), "guest memory differs from that of the model");
    Ok((model, report, machine.checkpoint()?))
}
