//! Measures rollbacks of Wasmtime instances whose memory is a view. See `src/wasm/README.md`.
//!
//! ```text
//! cargo run --release -p memsnap-showcase --bin wasm [-- --quick]
//! cargo run --release -p memsnap-showcase --bin wasm -- --saved [--quick]
//! ```

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Parser;
use memsnap_showcase::report;
use memsnap_showcase::wasm::measure::{self, Size};
use memsnap_showcase::wasm::warm::{self, Served, Start};
use wasmtime::error::Context as _;
use wasmtime::{Result, ensure, format_err};

/// Measures rollbacks of Wasmtime instances whose memory is a view, and compares them with other ways
#[derive(Parser)]
struct Options {
    /// Use a small store, few rounds and few branches: seconds instead of minutes
    #[arg(long)]
    quick: bool,
    /// Number of entries that the key-value store is initialised with, half a kilobyte each
    #[arg(long, default_value_t = 32768, default_value_if("quick", "true", "2048"))]
    entries: i32,
    /// Number of rounds, in each of which all ways take a turn
    #[arg(long, default_value_t = 20, default_value_if("quick", "true", "2"))]
    rounds: usize,
    /// Number of requests in each turn
    #[arg(long, default_value_t = 100, default_value_if("quick", "true", "20"))]
    requests: usize,
    /// Number of branches of one running instance
    #[arg(long, default_value_t = 1000, default_value_if("quick", "true", "100"))]
    branches: usize,
    /// Instead, measure processes that continue an instance that another process has saved
    #[arg(long)]
    saved: bool,
    /// Be one of these processes: start in this way
    #[arg(long, hide = true, requires = "folder")]
    start: Option<Start>,
    /// Folder of the repository with the saved instance
    #[arg(long, hide = true)]
    folder: Option<PathBuf>,
}

fn main() -> Result<()> {
    let Options { entries, rounds, requests, branches, saved, start, folder, .. } = Options::parse();
    if let (Some(start), Some(folder)) = (start, folder) {
        let Served { compile, ready, request, answer } = warm::serve(&folder, start, entries)?;
        println!("{} {} {} {answer}", compile.as_nanos(), ready.as_nanos(), request.as_nanos());
    } else if saved {
        let folder = tempfile::tempdir().context("making a temporary folder")?;
        let repository = folder.path().join("repository");
        let run = |start| in_a_new_process(&repository, start, entries);
        println!("{}", warm::record(&repository, entries, rounds, run)?);
    } else {
        println!("{}", report::heading("Wasmtime on memsnap's memory", "wasm"));
        measure::run(Size { entries, rounds, requests, branches }, &mut io::stdout().lock())?;
    }
    Ok(())
}

/// Starts this program in one of the ways. Returns what it reports, and the time from its start to its end.
fn in_a_new_process(folder: &Path, start: Start, entries: i32) -> Result<(Served, Duration)> {
    let mut command = Command::new(env::current_exe()?);
    command.arg("--start").arg(format!("{start:?}").to_lowercase()).arg("--folder").arg(folder);
    command.args(["--entries", &entries.to_string()]);
    let began = Instant::now();
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    let whole = began.elapsed();
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?} failed: {error}");
    let numbers: Vec<i64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let &[compile, ready, request, answer] = &numbers[..] else {
        return Err(format_err!("{command:?} printed {said:?} instead of four numbers"));
    };
    let time = |nanoseconds: i64| Duration::from_nanos(nanoseconds.unsigned_abs());
    Ok((Served { compile: time(compile), ready: time(ready), request: time(request), answer }, whole))
}
