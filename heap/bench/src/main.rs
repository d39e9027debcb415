//! Measures memsnap-heap beside clones, persistent collections, serialization and `fork`, and checks its bars.
//!
//! ```text
//! cargo run --release -p memsnap-heap-bench -- [--quick] [--only map,rapier2d] [--out FOLDER]
//! ```
//!
//! Ways to do the same work take turns in one process, so that each ratio compares times of the same minutes. The first
//! calls of each turn are not counted.

mod arena;
mod bars;
mod report;
mod results;
mod run;
mod system;
mod talc;
mod workload;

use memsnap_heap::Router;

/// The worlds of hecs and rapier2d are in realms. All other memory is that of the system's allocator.
#[global_allocator]
static ALLOCATOR: Router = Router::system();

fn main() -> anyhow::Result<()> {
    run::run()
}
