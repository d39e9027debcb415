//! Measures memsnap-store beside restic, zstd and cp, and compares it with its bars.
//!
//! ```text
//! cargo run --release -p memsnap-store-bench -- [--quick] [--only first,child] [--out FOLDER]
//! ```
//!
//! Everything is measured twice, unless only its size counts: with repositories on a disk, and in memory (`/dev/shm`),
//! where a sync costs nothing. All programs save the same image, take turns, and have a round to warm up that is not
//! counted. Before a long call, the dirty pages of the system are written to its disks. restic and zstd are skipped if
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
    eprintln!("skipped: this program needs Linux, because it reads what the kernel counts in /proc");
}
