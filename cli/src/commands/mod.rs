//! The commands, one module each. `push` and `pull` share one, and so do `completions` and `manual`.

mod diff;
mod extract;
mod gc;
mod generate;
mod init;
mod list;
mod name;
mod remove;
mod repair;
mod save;
mod show;
mod transfer;
mod verify;

use crate::args::Command;
use crate::failure::Failure;
use crate::output::Output;

/// Runs a command.
pub(crate) fn run(command: &Command, output: &mut Output) -> Result<(), Failure> {
    match command {
        Command::Init(args) => init::run(args, output),
        Command::Save(args) => save::run(args, output),
        Command::List(args) => list::run(args, output),
        Command::Show(args) => show::run(args, output),
        Command::Diff(args) => diff::run(args, output),
        Command::Extract(args) => extract::run(args, output),
        Command::Name(args) => name::run(args, output),
        Command::Remove(args) => remove::run(args, output),
        Command::Verify(args) => verify::run(args, output),
        Command::Repair(args) => repair::run(args, output),
        Command::Gc(args) => gc::run(args, output),
        Command::Push(args) => transfer::push(args, output),
        Command::Pull(args) => transfer::pull(args, output),
        Command::Completions(args) => generate::completions(args, output),
        Command::Manual(args) => generate::manual(args, output),
    }
}
