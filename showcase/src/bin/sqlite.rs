//! Runs and measures SQLite databases in the memory of views.

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
    /// Number of rows of the database
    #[arg(long, default_value_t = 100_000)]
    rows: u32,
    /// Largest size of the database, in MiB
    #[arg(long, default_value_t = 64)]
    capacity: u32,
    /// Number of rounds in which everything is measured, in turns of ten
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Number of databases that are open on one snapshot at the same time
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    copies: u32,
    /// Number of threads that use these databases
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    threads: u32,
    /// Print only the memory that the databases of one source take
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
        "## Step by step\n\nAfter each step, the rows are counted, and `PRAGMA integrity_check` reports no error.\n\n{steps}"
    );

    println!("\n## The memory of {copies} databases\n");
    println!(
        "10 rows were changed in each database, and all of it was read. The memory of the source is not included.\n"
    );
    println!("{}", measure::memory(&snapshot, copies, in_a_process_of_its_own)?);

    println!(
        "\n## Opening a new database\n\n{rounds} rounds, in turns of ten.\n\n{}",
        measure::opens(&snapshot, rounds)?
    );

    println!("\n## Resetting a database\n");
    println!(
        "{rounds} rounds, in turns of ten: a transaction changes the database, the database is reset, and a query computes one bill.\n"
    );
    println!("{}", measure::resets(&snapshot, rows, rounds)?);
    Ok(())
}

/// Returns the memory that the databases of one source take, measured in a process of its own.
fn in_a_process_of_its_own(index: usize) -> anyhow::Result<u64> {
    let mut command = Command::new(env::current_exe()?);
    let output = command.args(env::args_os().skip(1)).args(["--memory-of", &index.to_string()]).output()?;
    let (answer, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    answer.trim().parse().with_context(|| format!("{command:?} printed no number: {answer}{error}"))
}
