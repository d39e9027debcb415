//! Measures resets of a virtual machine to a checkpoint, and prints the record as Markdown.

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
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() -> Result<()> {
    use memsnap_showcase::kvm;

    let Options { resets, rounds } = Options::parse();
    if let Some(reason) = kvm::unavailable() {
        println!("skipped: kvm: {reason}");
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
