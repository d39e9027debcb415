//! A run of the benchmark: options, image, workloads and record.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use crate::place::{DISK, MEMORY, Place};
use crate::results::Results;
use crate::workload::memory::Measure;
use crate::workload::{Bench, Workload};
use crate::{bars, image, report, system, tool};

/// Measures memsnap-store, restic, zstd and cp on the same data, and checks the bars of the store.
#[derive(Parser)]
struct Options {
    /// Use an image of 128 MiB and one round, which takes under a minute; the bars are those for 1 GiB
    #[arg(long)]
    quick: bool,
    /// Number of rounds of long calls, after a first one that is not counted
    #[arg(long, default_value_t = 3, default_value_if("quick", "true", "1"))]
    rounds: usize,
    /// Run only these workloads
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Workload>,
    /// Write the record to this folder
    #[arg(long, default_value = "store/record")]
    out: PathBuf,
    /// Folder on the disk to measure [default: the folder for temporary files]
    #[arg(long)]
    disk: Option<PathBuf>,
    #[command(flatten)]
    measure: Measure,
}

/// Runs the program.
pub(crate) fn run() -> Result<()> {
    let Options { quick, rounds, only, out, disk, measure } = Options::parse();
    if measure.run()? {
        return Ok(());
    }
    let start = Instant::now();
    let len = if quick { 128 << 20 } else { 1 << 30 };
    eprintln!("making an image of {} MiB", len >> 20);
    let (image, description) = image::build(len)?;
    let places = places(&image, disk.unwrap_or_else(env::temp_dir))?;
    let mut heading = heading(&description, &places)?;
    let bench = Bench::new(image, places, rounds, start)?;

    let mut results = Results::default();
    let workloads = if only.is_empty() { Workload::value_variants() } else { &only };
    for workload in workloads {
        workload.run(&bench, &mut results)?;
    }
    heading += &format!("- {} rounds of long calls, in {} s\n", rounds, start.elapsed().as_secs());
    report::write(&results, &heading, &out)?;
    println!("{}", report::table_of_bars(&bars::verdicts(&results)));
    bench.tell(&format!("the record is in {}", out.display()));
    Ok(())
}

/// Makes the places, and writes the image to a file in each.
fn places(image: &[u8], disk: PathBuf) -> Result<Vec<Place>> {
    let mut places = vec![Place::new(DISK, &disk)?];
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        places.push(Place::new(MEMORY, memory)?);
    } else {
        eprintln!("skipped: {}: there is no such folder", memory.display());
    }
    for place in &places {
        image::write(image, &place.image())?;
    }
    Ok(places)
}

/// Describes the machine, the versions, the image and the command, in lines of Markdown.
fn heading(image: &str, places: &[Place]) -> Result<String> {
    let mut text = system::description()?;
    for (program, argument) in tool::ALL {
        let version = tool::version(program, argument).unwrap_or_else(|| "not installed".to_owned());
        text += &format!("- {program}: {version}\n");
    }
    for place in places {
        text += &format!("- {}: {}\n", place.name, system::file_system(&place.path("")));
    }
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments = if arguments.is_empty() { String::new() } else { format!(" -- {}", arguments.join(" ")) };
    text +=
        &format!("- image: {image}\n- command: `cargo run --release -p memsnap-store-bench{arguments}`\n");
    Ok(text)
}
