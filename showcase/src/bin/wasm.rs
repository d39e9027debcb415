//! Measures rollbacks of Wasmtime instances whose memory is a view. See `src/wasm/README.md`.
//!
//! ```text
//! cargo run --release -p memsnap-showcase --bin wasm [-- --quick]
//! ```

use std::io;

use clap::Parser;
use memsnap_showcase::report;
use memsnap_showcase::wasm::measure::{self, Size};
use wasmtime::Result;

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
}

fn main() -> Result<()> {
    let Options { entries, rounds, requests, branches, .. } = Options::parse();
    println!("{}", report::heading("Wasmtime on memsnap's memory", "wasm"));
    measure::run(Size { entries, rounds, requests, branches }, &mut io::stdout().lock())
}
