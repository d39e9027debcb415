//! A SQLite database in the memory of a view: shows what that is good for, and measures it.

use std::env;
use std::process::Command;

use anyhow::Context as _;
use clap::Parser;
use memsnap_showcase::report;
use memsnap_showcase::sqlite::fixture::Snapshot;
use memsnap_showcase::sqlite::shop::Rows;
use memsnap_showcase::sqlite::{measure, walk};

#[derive(Parser)]
#[command(about)]
struct Arguments {
    /// Rows of the database
    #[arg(long, default_value_t = 100_000)]
    rows: u32,
    /// The most that the database can take up, in MiB
    #[arg(long, default_value_t = 64)]
    capacity: u32,
    /// How often everything is measured, in turns of ten
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Databases opened on one snapshot at the same time
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    copies: u32,
    /// Threads that these are on
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    threads: u32,
    /// Only tell the memory that the databases of one source take
    #[arg(long, hide = true)]
    memory_of: Option<usize>,
}

fn main() -> anyhow::Result<()> {
    let Arguments { rows, capacity, rounds, copies, threads, memory_of } = Arguments::parse();
    let rows = Rows::share_out(rows);
    let bytes = usize::try_from(u64::from(capacity) << 20)?;
    if let Some(index) = memory_of {
        let snapshot = Snapshot::build(bytes, |sql| rows.create(sql))?;
        println!("{}", measure::memory_of(index, &snapshot, rows, copies)?);
        return Ok(());
    }

    println!("{}", report::heading("A SQLite database in a view", "sqlite"));
    let (snapshot, steps) = walk::run(rows, bytes, copies, threads)?;
    println!("SQLite {}, a database of {} KiB.\n", rusqlite::version(), snapshot.size() >> 10);
    println!(
        "## Step by step\n\nAfter each step the rows are counted, and `PRAGMA integrity_check` finds nothing.\n\n{steps}"
    );

    println!("\n## The memory of {copies} databases\n");
    println!("In each, 10 rows were changed and all was read. Without the source itself.\n");
    println!("{}", measure::memory(&snapshot, copies, in_a_process_of_its_own)?);

    println!(
        "\n## A new database\n\n{rounds} times, in turns of ten.\n\n{}",
        measure::opens(&snapshot, rounds)?
    );

    println!("\n## The same database again\n");
    println!(
        "{rounds} times, in turns of ten: a transaction changes the database, it is put back and asked for one bill.\n"
    );
    println!("{}", measure::resets(&snapshot, rows, rounds)?);
    Ok(())
}

/// The memory that the databases of one source take.
fn in_a_process_of_its_own(index: usize) -> anyhow::Result<u64> {
    let mut command = Command::new(env::current_exe()?);
    let output = command.args(env::args_os().skip(1)).args(["--memory-of", &index.to_string()]).output()?;
    let (answer, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    answer.trim().parse().with_context(|| format!("no number came from {command:?}: {answer}{error}"))
}
