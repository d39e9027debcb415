//! `memsnap completions` and `memsnap manual`.

use std::fs;

use clap::CommandFactory;

use crate::args::{self, Cli};
use crate::failure::Failure;
use crate::output::Output;

pub(super) fn completions(args: &args::Completions, output: &mut Output) -> Result<(), Failure> {
    // `generate` panics if a write fails, so it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "memsnap", &mut script);
    output.bytes(&script)
}

pub(super) fn manual(args: &args::Manual, output: &mut Output) -> Result<(), Failure> {
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command())
            .render(&mut page)
            .map_err(|error| Failure::new(format!("cannot generate the manual page: {error}")))?;
        return output.bytes(&page);
    };
    fs::create_dir_all(dir).map_err(Failure::file("make the folder", dir))?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(Failure::file("write manual pages to", dir))
}
