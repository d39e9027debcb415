//! `memsnap`: saves memory files and disk images as deduplicated, incremental snapshots.
//!
//! `args` defines the arguments. Each command is a module of `commands`, which calls the crate `memsnap-store` and
//! passes the result to `output`. `source` opens the file to save, `remote` opens object stores, and `progress` shows
//! bars on a terminal.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod failure;
mod output;
mod progress;
mod remote;
mod source;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;
use crate::failure::Failure;
use crate::output::{Output, note};

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = cli.check() {
        error.exit();
    }
    let mut output = Output::new(cli.json);
    let done = commands::run(&cli.command, &mut output);
    // A command can print a result and then fail, as `verify` does with the problems that it found.
    let printed = output.finish();
    let failures: Vec<Failure> = [done, printed].into_iter().filter_map(Result::err).collect();
    failures.iter().for_each(|failure| note(&failure.to_string()));
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(Failure::EXIT_CODE) }
}
