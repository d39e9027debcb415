//! Measurements of resets of a virtual machine, with memsnap and in other ways.

use std::fmt::Write;
use std::io::{self, ErrorKind};

use anyhow::{Error, Result, ensure};
use memsnap::{Tracking, ViewOptions};

use super::guest::{Model, WORK_PAGES};
use super::machine::{Checkpoint, Machine};
use super::ways::{self, MEMSNAP};
use crate::report::{self, Times, table, three_digits};

/// The numbers of pages that the guest writes between two resets, in the comparison of the ways.
const SIZES: [usize; 3] = [16, 256, 4096];
/// The number of pages that the guest writes in the other measurements.
const PAGES: usize = 64;
/// Rounds before the measured ones.
const WARM_UP: usize = 10;

/// Measures resets, and returns the record as Markdown.
///
/// Resets one machine to a checkpoint `resets` times. Then compares all ways and all tracking methods, each in `rounds`
/// rounds. Every run of a guest is compared with the model.
///
/// # Errors
///
/// Fails if a guest computes something else than the model, or if a call of KVM or of memsnap fails.
pub fn record(resets: usize, rounds: usize) -> Result<String> {
    let mut text = report::heading("Resets of a virtual machine", "kvm");
    let mut machine = Machine::boot(&ViewOptions::new())?;
    let mut model = Model::default();
    eprintln!("writing to all {WORK_PAGES} pages of the guest");
    machine.set_steps(WORK_PAGES)?;
    ensure!(machine.run()? == model.run(WORK_PAGES), "the guest computed something else than the model");
    ensure!(model.matches(machine.memory()), "guest memory differs from the model");
    let booted = machine.checkpoint()?;

    eprintln!("{resets} resets to one checkpoint");
    writeln!(text, "\n{}", endurance(&booted, &model, resets)?)?;
    writeln!(text, "\n## Compared with other ways\n\n{}", comparison(&booted, &model, rounds)?)?;
    writeln!(text, "\n## By tracking method\n\n{}", tiers(&booted, &model, rounds)?)?;
    Ok(text)
}

/// Makes a checkpoint that differs from `checkpoint` only in the number of pages that the next batch writes.
fn with_steps(checkpoint: &Checkpoint, steps: usize) -> Result<Checkpoint> {
    let mut machine = Machine::from_checkpoint(checkpoint, &ViewOptions::new())?;
    machine.set_steps(steps)?;
    machine.checkpoint()
}

fn endurance(booted: &Checkpoint, model: &Model, resets: usize) -> Result<String> {
    let checkpoint = with_steps(booted, PAGES)?;
    let expected = model.clone().run(PAGES);
    let mut machine = Machine::from_checkpoint(&checkpoint, &ViewOptions::new())?;
    let (mut restores, mut cycles) = (Times::default(), Times::default());
    for round in 0..resets {
        let reported = cycles.time(|| {
            let reported = machine.run();
            restores.time(|| machine.restore(&checkpoint)).and(reported)
        })?;
        ensure!(reported == expected, "round {round}: {reported:?} instead of {expected:?}");
    }
    ensure!(model.matches(machine.memory()), "guest memory differs from that of the checkpoint");
    Ok(format!(
        "{resets} times, the guest wrote {PAGES} pages and reported the same sums, and the machine was reset. A reset of \
         memory and processor took {} (median), {} (p99). Together with the guest's run: {} a second.",
        report::time(restores.median()),
        report::time(restores.p99()),
        three_digits(cycles.per_second()),
    ))
}

fn comparison(booted: &Checkpoint, model: &Model, rounds: usize) -> Result<String> {
    let mut rows = Vec::new();
    for pages in SIZES {
        eprintln!("all ways, {pages} pages written");
        let checkpoint = with_steps(booted, pages)?;
        let expected = model.clone().run(pages);
        let mut ways = ways::all(&checkpoint)?;
        let mut times = vec![<[Times; 3]>::default(); ways.len()];
        for round in 0..WARM_UP + rounds {
            if round == WARM_UP {
                times.fill(<[Times; 3]>::default());
            }
            for ((name, way), [resets, runs, cycles]) in ways.iter_mut().zip(&mut times) {
                let reported = cycles.time(|| {
                    let reported = runs.time(|| way.run())?;
                    resets.time(|| way.reset()).map(|()| reported)
                })?;
                ensure!(reported == expected, "{name}: {reported:?} instead of {expected:?}");
            }
        }
        let [_, _, subject] = &times[0];
        debug_assert_eq!(ways[0].0, MEMSNAP);
        for ((name, _), [resets, runs, cycles]) in ways.iter().zip(&times) {
            rows.push([
                (*name).to_owned(),
                pages.to_string(),
                report::time(resets.median()),
                report::time(resets.p99()),
                report::time(runs.median()),
                three_digits(1.0 / cycles.median().as_secs_f64()),
                report::ratio(cycles.median(), subject.median()),
            ]);
        }
    }
    let header = [
        "way",
        "pages written",
        "reset, median",
        "reset, p99",
        "next run, median",
        "resets and runs a second",
        "reset and run / memsnap",
    ];
    Ok(format!("{}\n\n{rounds} rounds, in which all ways took turns.", table(header, rows)))
}

/// Returns whether an error means that the system does not support something, and not that a call failed.
fn is_unsupported(error: &Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::Unsupported)
}

fn tiers(booted: &Checkpoint, model: &Model, rounds: usize) -> Result<String> {
    let checkpoint = with_steps(booted, PAGES)?;
    let expected = model.clone().run(PAGES);
    let mut rows = Vec::new();
    for tracking in [Tracking::Armed, Tracking::Scan, Tracking::Pagemap, Tracking::Compare] {
        eprintln!("tracking: {tracking:?}");
        let mut machine = match Machine::from_checkpoint(&checkpoint, ViewOptions::new().tracking(tracking)) {
            Err(error) if is_unsupported(&error) => {
                eprintln!("skipped: kvm, {tracking:?}: {error:#}");
                continue;
            }
            machine => machine?,
        };
        let mut resets = Times::default();
        for _ in 0..WARM_UP {
            machine.run()?;
            machine.restore(&checkpoint)?;
        }
        for round in 0..rounds {
            let reported = machine.run()?;
            ensure!(
                reported == expected,
                "{tracking:?}, round {round}: {reported:?} instead of {expected:?}"
            );
            resets.time(|| machine.restore(&checkpoint))?;
        }
        rows.push([format!("{tracking:?}"), report::time(resets.median()), report::time(resets.p99())]);
    }
    let header = ["tracking", "reset, median", "reset, p99"];
    Ok(format!("{}\n\n{PAGES} pages written in each of {rounds} rounds.", table(header, rows)))
}
