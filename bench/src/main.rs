//! Measures memsnap, its competitors and the limit of the machine. See `README.md`.
//!
//! ```text
//! cargo run --release -p memsnap-bench -- [--quick] [--only take,restore] [--out FOLDER]
//! ```

// The files that need `unsafe` allow it.
#![deny(unsafe_code)]

mod case;
mod competitor;
mod harness;
mod image;
mod mounted;
mod pages;
mod report;
mod results;
mod system;
mod warm;
mod workload;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use crate::results::Results;
use crate::system::Processors;
use crate::workload::{Scale, Workload};

/// Measures memsnap, its competitors and the limit of the machine.
#[derive(Parser)]
struct Options {
    /// Measure fewer rounds and no regions of 4 GiB: under two minutes instead of fifteen
    #[arg(long)]
    quick: bool,
    /// Run only these workloads
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Workload>,
    /// Write the results to this folder
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let scale = Scale { quick: options.quick };
    let all = Workload::value_variants();
    let workloads = if options.only.is_empty() { all } else { &options.only };

    let (start, processors) = (Instant::now(), Processors::now()?);
    let largest = workloads.iter().map(|workload| workload.working_set(scale)).max();
    warm::warm(largest.unwrap_or_default())?;
    let mut results = Results::default();
    for workload in workloads {
        workload.run(scale, &mut results)?;
        eprintln!("[{} s]", start.elapsed().as_secs());
    }
    results.others = Processors::now()?.others_since(processors);
    report::write(&results, &options.out)
}
