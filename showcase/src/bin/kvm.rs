//! Measures resets of a virtual machine, and prints the record as Markdown.

use anyhow::Result;
use clap::Parser;

/// Puts a virtual machine back to a checkpoint, again and again, by memsnap and by other means.
#[derive(Parser)]
struct Options {
    /// Times that one machine goes back
    #[arg(long, default_value_t = 10_000)]
    resets: usize,
    /// Rounds in which the ways take turns
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
    println!("skipped: kvm: virtual machines of KVM are for Linux on x86-64");
    Ok(())
}
