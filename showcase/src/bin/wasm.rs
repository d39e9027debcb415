//! Rolls back instances of Wasmtime on memsnap's memory, and measures that beside other ways. See `src/wasm/README.md`.
//!
//! ```text
//! cargo run --release -p memsnap-showcase --bin wasm [-- --quick]
//! ```

use std::io;

use clap::Parser;
use memsnap_showcase::report;
use memsnap_showcase::wasm::measure::{self, Size};
use wasmtime::Result;

/// Rolls back instances of Wasmtime on memsnap's memory, and measures that beside other ways.
#[derive(Parser)]
struct Options {
    /// A small store, few rounds and branches: seconds in place of minutes
    #[arg(long)]
    quick: bool,
    /// Entries that the key-value store is initialised with, half a kilobyte each
    #[arg(long, default_value_t = 32768, default_value_if("quick", "true", "2048"))]
    entries: i32,
    /// Rounds, in each of which all ways have their turn
    #[arg(long, default_value_t = 20, default_value_if("quick", "true", "2"))]
    rounds: usize,
    /// Requests in each turn
    #[arg(long, default_value_t = 100, default_value_if("quick", "true", "20"))]
    requests: usize,
    /// Branches of one running instance
    #[arg(long, default_value_t = 1000, default_value_if("quick", "true", "100"))]
    branches: usize,
}

fn main() -> Result<()> {
    let Options { entries, rounds, requests, branches, .. } = Options::parse();
    println!("{}", report::heading("Wasmtime on memsnap's memory", "wasm"));
    measure::run(Size { entries, rounds, requests, branches }, &mut io::stdout().lock())
}
