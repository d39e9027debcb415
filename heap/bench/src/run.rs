//! A run of the benchmark: options, workloads and record.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use crate::results::Results;
use crate::workload::{Size, Workload};
use crate::{bars, report, system};

/// Measures memsnap-heap beside clones, persistent collections, serialization and fork, and checks its bars.
#[derive(Parser)]
struct Options {
    /// Use small workloads and few rounds, under 30 seconds; the bars are those for the full size
    #[arg(long)]
    quick: bool,
    /// Run only these workloads
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Workload>,
    /// Write the record to this folder
    #[arg(long, default_value = "heap/record")]
    out: PathBuf,
}

/// Runs the program.
pub(crate) fn run() -> Result<()> {
    let Options { quick, only, out } = Options::parse();
    let start = Instant::now();
    let size = Size::new(quick);
    let mut results = Results::default();
    let workloads = if only.is_empty() { Workload::value_variants() } else { &only };
    for workload in workloads {
        eprintln!("{:6.1} s: {workload:?}", start.elapsed().as_secs_f64());
        workload.run(&size, &mut results)?;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments = if arguments.is_empty() { String::new() } else { format!(" -- {}", arguments.join(" ")) };
    let heading = format!(
        "{}- command: `cargo run --release -p memsnap-heap-bench{arguments}`\n- in {} s\n",
        system::description()?,
        start.elapsed().as_secs()
    );
    report::write(&results, &heading, &out)?;
    println!("{}", report::table_of_bars(&bars::verdicts(&results)));
    eprintln!("the record is in {}", out.display());
    Ok(())
}
