//! Measures memsnap-store, restic, zstd and cp on the same data, and checks the bars of the store.
//!
//! ```text
//! cargo run --release -p memsnap-store-bench -- [--quick] [--only first,child] [--out FOLDER]
//! ```
//!
//! Times are measured with repositories in two places: on a disk, and in memory (`/dev/shm`), where a sync costs
//! nothing. All programs save the same image and take turns. Each has a first round that is not counted. Before each
//! long call, the program writes the dirty pages of the system to its disks (`sync`). restic and zstd are skipped if
//! they are not installed.

// The files that need `unsafe` allow it.
#![deny(unsafe_code)]

#[cfg(target_os = "linux")]
mod bars;
#[cfg(target_os = "linux")]
mod changes;
#[cfg(target_os = "linux")]
mod image;
#[cfg(target_os = "linux")]
mod place;
#[cfg(target_os = "linux")]
mod report;
#[cfg(target_os = "linux")]
mod results;
#[cfg(target_os = "linux")]
mod run;
#[cfg(target_os = "linux")]
mod system;
#[cfg(target_os = "linux")]
mod tool;
#[cfg(target_os = "linux")]
mod workload;

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    run::run()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("skipped: this program needs Linux, because it reads counters in /proc");
}
