//! Measures resets of a virtual machine to a checkpoint, and prints the record as Markdown. With `--folder`, continues a
//! machine that another process has saved.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

/// Measures resets of a virtual machine to a checkpoint, with memsnap and in other ways
#[derive(Parser)]
struct Options {
    /// Number of resets of one machine
    #[arg(long, default_value_t = 10_000)]
    resets: usize,
    /// Number of rounds in which all ways take turns
    #[arg(long, default_value_t = 200)]
    rounds: usize,
    /// Instead, continue the machine in the repository in this folder, or boot one and save it there
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Number of steps that the machine in the folder runs before it is saved again
    #[arg(long, default_value_t = 1000, requires = "folder", value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() -> Result<()> {
    use memsnap_showcase::kvm;

    let Options { resets, rounds, folder, steps } = Options::parse();
    if let Some(reason) = kvm::unavailable() {
        println!("skipped: kvm: {reason}");
        return Ok(());
    }
    if let Some(folder) = folder {
        println!("{}", kvm::saved::advance(&folder, usize::try_from(steps)?)?);
        return Ok(());
    }
    println!("{}", kvm::measure::record(resets, rounds)?);
    Ok(())
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() -> Result<()> {
    Options::parse();
    println!("skipped: kvm: this program needs Linux on x86-64");
    Ok(())
}
