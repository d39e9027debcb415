//! A program that is killed at random moments, and continues from the last checkpoint that it saved.
//!
//! ```text
//! cargo run --release -p memsnap-store --example checkpointed [-- --size 1GiB --rounds 8 --folder FOLDER]
//! ```
//!
//! The program starts itself as a child process. The child keeps a ledger in a view, updates up to 256 pages in each
//! step, and saves a checkpoint every few steps. A checkpoint is *acknowledged* when `save` has returned. The child
//! then sends its id to the parent through a pipe. The parent kills the child at a random moment (`SIGKILL`, or
//! `TerminateProcess` on Windows), and starts the next child, which loads the last checkpoint and continues.
//!
//! # What is verified
//!
//! - The checkpoint that a child loads is the last one that the parent knows, or a newer one whose id did not arrive.
//! - Every byte of a loaded ledger has the value that follows from the seed and the number of steps.
//! - At the end, the repository has all acknowledged checkpoints, and all of its blocks agree with their hashes.
//!
//! If a check fails, the program prints the reason, and ends with exit code 1.

mod child;
mod ledger;
mod report;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytesize::ByteSize;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use memsnap_store::{Depth, Id, Repository};

use crate::child::{Checkpoint, LATEST, Message, STEPS};
use crate::ledger::{Ledger, UPDATES};
use crate::report::Report;

/// The longest time without a message. After it, the child counts as stuck.
const PATIENCE: Duration = Duration::from_secs(300);
/// The time from the moment when a child is ready until it is killed, in milliseconds.
const MOMENTS: std::ops::Range<u64> = 100..3000;

/// Saves checkpoints, is killed at random moments, and continues from the last checkpoint.
///
/// Every byte of each loaded checkpoint is verified.
#[derive(Parser)]
struct Options {
    /// Size of the state in bytes, or with a unit, such as 64MiB or 1.5GB
    #[arg(long, default_value = "1GiB")]
    size: ByteSize,
    /// Number of times that the child is killed
    #[arg(long, default_value = "8")]
    rounds: NonZero<usize>,
    /// Folder for the repository; it must be empty, and is kept [default: a temporary folder]
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Seed of the contents of the state
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run as the child
    #[arg(long, hide = true, requires = "folder")]
    child: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let ledger = Ledger::new(options.seed, usize::try_from(options.size.as_u64())?)?;
    match &options.folder {
        Some(folder) if options.child => child::run(&repository(folder), ledger, &folder.join("whole")),
        Some(folder) => parent(&options, folder, ledger),
        None => {
            let folder = tempfile::tempdir().context("making a temporary folder")?;
            let done = parent(&options, folder.path(), ledger);
            if done.is_err() {
                eprintln!("the repository is kept in {}", folder.keep().display());
            }
            done
        }
    }
}

fn repository(folder: &Path) -> PathBuf {
    folder.join("repository")
}

/// Runs and kills children, checks their messages, and prints the table.
fn parent(options: &Options, folder: &Path, ledger: Ledger) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("making the folder {}", folder.display()))?;
    drop(Repository::create(repository(folder)).context("making the repository")?);
    let bar = ProgressBar::new(options.rounds.get() as u64).with_style(ProgressStyle::with_template(
        "{elapsed_precise} [{bar:30}] killed {pos} of {len} times: {msg}",
    )?);
    bar.enable_steady_tick(Duration::from_millis(200));
    let mut rounds = Rounds { ledger, bar, acknowledged: Vec::new(), report: Report::default() };
    for _ in 0..options.rounds.get() {
        rounds.run(options, folder)?;
        rounds.bar.inc(1);
    }
    rounds.bar.set_message("verifying the repository");
    let step = rounds.verify(&repository(folder))?;
    rounds.bar.finish_and_clear();

    let Rounds { acknowledged, report, .. } = rounds;
    println!(
        "A state of {}; {UPDATES} pages updated in each step, a checkpoint after each {STEPS} steps.",
        options.size
    );
    println!(
        "Killed {} times. All {} acknowledged checkpoints are in the repository, and all data is intact.",
        options.rounds,
        acknowledged.len()
    );
    println!(
        "The last checkpoint is that of step {step}, and every byte of it has its expected value.\n\n{}",
        report.table()
    );
    if let Some(comparison) = report.comparison() {
        println!("{comparison}");
    }
    Ok(())
}

/// The state of the parent: the checkpoints and measurements of the children so far.
struct Rounds {
    ledger: Ledger,
    bar: ProgressBar,
    /// The id and the step of each acknowledged checkpoint, the oldest first.
    acknowledged: Vec<(Id, u64)>,
    report: Report,
}

impl Rounds {
    /// Starts a child, kills it at a random moment, and checks all its messages.
    fn run(&mut self, options: &Options, folder: &Path) -> Result<()> {
        self.bar.set_message("the child starts");
        let (mut child, messages) = start(options, folder)?;
        let heard = self.listen(&messages);
        // A child that has ended by itself cannot be killed. In this case, its exit code is reported instead of this
        // error.
        let killed = child.kill();
        let status = child.wait().context("waiting for the child")?;
        ensure!(heard?, "the child ended by itself: {status}; its error is above");
        killed.context("killing the child")?;
        // Messages that the child wrote to the pipe before it was killed count, too.
        for message in messages {
            self.hear(message?)?;
        }
        Ok(())
    }

    /// Reads messages until a random moment after the child is ready.
    ///
    /// Returns whether the child still runs then.
    ///
    /// A child is ready when it has loaded the last checkpoint, or has made a ledger and written all of it to a file.
    fn listen(&mut self, messages: &Receiver<Result<Message>>) -> Result<bool> {
        let mut end = None;
        loop {
            let left = end.map_or(PATIENCE, |end: Instant| end.saturating_duration_since(Instant::now()));
            let message = match messages.recv_timeout(left) {
                Ok(message) => message?,
                Err(RecvTimeoutError::Disconnected) => return Ok(false),
                Err(RecvTimeoutError::Timeout) if end.is_some() => return Ok(true),
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the child sent no message for {} s", PATIENCE.as_secs())
                }
            };
            if !matches!(message, Message::Made(_)) {
                let moment = Duration::from_millis(rand::random_range(MOMENTS));
                end.get_or_insert_with(|| Instant::now() + moment);
            }
            self.hear(message)?;
        }
    }

    /// Checks a message, and adds its contents to the state.
    fn hear(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Made(checkpoint) => {
                ensure!(
                    self.acknowledged.is_empty(),
                    "the child found no checkpoint, but some were acknowledged"
                );
                self.report.made.add(checkpoint.save, checkpoint.bytes);
                self.acknowledge(&checkpoint)?;
            }
            Message::Whole(time) => self.report.whole.add(time, self.ledger.len() as u64),
            Message::Loaded { id, step, load, check } => {
                self.check_last(id.parse()?, step)?;
                self.report.loaded.add(load, 0);
                self.report.checked.add(check, 0);
            }
            Message::Saved(checkpoint) => {
                self.report.saved.add(checkpoint.save, checkpoint.bytes);
                self.report.pauses.add(checkpoint.pause, 0);
                self.acknowledge(&checkpoint)?;
            }
        }
        Ok(())
    }

    fn acknowledge(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.bar.set_message(format!("checkpoint of step {}", checkpoint.step));
        self.acknowledged.push((checkpoint.id.parse()?, checkpoint.step));
        Ok(())
    }

    /// Fails if a loaded checkpoint is neither the last acknowledged one nor a newer one.
    fn check_last(&self, id: Id, step: u64) -> Result<()> {
        let Some(&(last, last_step)) = self.acknowledged.last() else { return Ok(()) };
        ensure!(
            id == last || step > last_step,
            "the checkpoint {} of step {step} was loaded, but {} of step {last_step} had been acknowledged",
            id.short(),
            last.short()
        );
        Ok(())
    }

    /// Checks that nothing acknowledged is lost and that all data is intact.
    ///
    /// Returns the step of the last checkpoint.
    fn verify(&self, path: &Path) -> Result<u64> {
        let repository = Repository::open(path).context("opening the repository")?;
        let listed: Vec<Id> = repository.list()?.into_iter().map(|summary| summary.id).collect();
        for (id, step) in &self.acknowledged {
            ensure!(
                listed.contains(id),
                "the acknowledged checkpoint {} of step {step} is missing",
                id.short()
            );
        }
        let verified = repository.verify(Depth::Data).context("verifying the repository")?;
        ensure!(verified.problems.is_empty(), "the repository is damaged: {}", verified.problems.join("; "));
        let saved = repository.load(LATEST).run().context("loading the last checkpoint")?;
        let step = self.ledger.check(&saved.snapshot().view()?).context("checking the last checkpoint")?;
        self.check_last(saved.id(), step)?;
        Ok(step)
    }
}

/// Starts a child. Returns it, and a channel with its messages.
fn start(options: &Options, folder: &Path) -> Result<(Child, Receiver<Result<Message>>)> {
    let mut command = Command::new(env::current_exe().context("finding this program")?);
    command.arg("--child").arg("--folder").arg(folder);
    command.args(["--size", &options.size.as_u64().to_string(), "--seed", &options.seed.to_string()]);
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("starting {command:?}"))?;
    let pipe = child.stdout.take().context("the child has no pipe")?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || forward(pipe, &sender));
    Ok((child, receiver))
}

/// Reads messages until the child has ended.
fn forward(pipe: ChildStdout, sender: &Sender<Result<Message>>) {
    let mut pipe = BufReader::new(pipe);
    loop {
        let mut line = String::new();
        let message = match pipe.read_line(&mut line) {
            // The child was killed while it wrote a line, or between two lines.
            Ok(_) if !line.ends_with('\n') => return,
            Ok(_) => serde_json::from_str(&line).with_context(|| format!("the child sent {line:?}")),
            Err(error) => Err(error).context("reading from the child"),
        };
        if sender.send(message).is_err() {
            return;
        }
    }
}
