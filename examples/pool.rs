//! A pool: 2,000 instances of one image, each of which serves requests and is reset after each.
//!
//! ```text
//! cargo run --release --example pool
//! ```
//!
//! The image is the memory of an instance after its start, 1 MiB. Each instance is a view of it. A request writes
//! twelve pages: four that every request writes, and eight that depend on the request. Before a request writes a page,
//! it compares the page with the image, so that nothing of an earlier request can be left. In the end, the whole memory
//! of each instance is compared with the image.
//!
//! The program does the same with instances that are copies of the image. It makes fewer of these, since each takes a
//! mebibyte.
//!
//! The table shows the mean time and memory of an instance. On Linux, the memory is the growth of the process, divided
//! by the number of instances: it includes kernel page tables, and counts shared memory once. On other systems, it is
//! the private memory that the views report. As a warm-up, a pool of 100 instances is opened, used and dropped before.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytesize::ByteSize;
use comfy_table::{CellAlignment, Table, presets};
use memsnap::{OwnedView, Snapshot, ViewOptions, page_size};

const IMAGE: usize = 1 << 20;
const INSTANCES: usize = 2_000;
const COPIES: usize = 200;
/// Requests of each instance after the first one.
const LATER: u32 = 5;
/// How much private memory an instance may keep when it is reset. Pages that it keeps need no page fault later.
const KEPT: usize = 64 << 10;

/// Starts an instance, which would take long in a real program, and returns its memory.
fn start() -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    (0..IMAGE).map(|_| next()).collect()
}

/// Serves a request in the memory of an instance, which must be as in the image.
fn serve(memory: &mut [u8], image: &[u8], request: usize) -> Result<()> {
    let page = page_size();
    let pages = IMAGE / page;
    let used = (0..4).chain((0..8).map(|index| 4 + (request * 31 + index * 17) % (pages - 4)));
    for number in used {
        let range = number * page..(number + 1) * page;
        let same = memory[range.clone()] == image[range.clone()];
        ensure!(same, "request {request} finds what an earlier request wrote to page {number}");
        memory[range].fill(0xee);
    }
    Ok(())
}

/// The times and the memory of a pool, each summed over its instances.
#[derive(Default)]
struct Report {
    instances: usize,
    open: Duration,
    first: Duration,
    later: Duration,
    reset: Duration,
    /// The memory after the last requests, and after the last reset.
    memory: [u64; 2],
}

/// Opens a pool. Each of its instances serves some requests, and is reset after each.
fn run<M: AsMut<[u8]>>(
    instances: usize,
    image: &[u8],
    open: impl Fn() -> io::Result<M>,
    reset: impl Fn(&mut M) -> io::Result<()>,
    private: impl Fn(&M) -> usize,
) -> Result<Report> {
    let before = memory_of_process();
    let memory = |pool: &[M]| {
        let grown = || memory_of_process()?.checked_sub(before?);
        grown().unwrap_or_else(|| pool.iter().map(&private).sum::<usize>() as u64)
    };
    let mut report = Report { instances, ..Report::default() };
    let start = Instant::now();
    let mut pool = (0..instances).map(|_| open()).collect::<io::Result<Vec<_>>>()?;
    report.open = start.elapsed();
    for round in 0..=LATER as usize {
        let start = Instant::now();
        for (number, instance) in pool.iter_mut().enumerate() {
            serve(instance.as_mut(), image, number + round)?;
        }
        *if round == 0 { &mut report.first } else { &mut report.later } += start.elapsed();
        report.memory[0] = memory(&pool);
        let start = Instant::now();
        pool.iter_mut().try_for_each(&reset)?;
        report.reset += start.elapsed();
        report.memory[1] = memory(&pool);
    }
    for (number, instance) in pool.iter_mut().enumerate() {
        let same = instance.as_mut()[..IMAGE] == *image;
        ensure!(same, "instance {number} differs from the image after its reset");
    }
    Ok(report)
}

/// Returns the memory of this process and of its kernel page tables. Memory that several mappings share is counted
/// once.
fn memory_of_process() -> Option<u64> {
    let kilobytes = |file, name| -> Option<u64> {
        let text = fs::read_to_string(file).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse().ok()
    };
    let resident = kilobytes("/proc/self/smaps_rollup", "Pss:")?;
    Some((resident + kilobytes("/proc/self/status", "VmPTE:")?) * 1024)
}

fn main() -> Result<()> {
    let image = start();
    let snapshot = Snapshot::from_slice(&image)?;
    let views = |instances| {
        let open = || snapshot.clone().into_view_with(ViewOptions::new().keep_resident(KEPT));
        run(instances, &image, open, OwnedView::restore, |view| view.stats().private)
    };
    views(100)?;
    let views = views(INSTANCES)?;
    let copies = |instances| {
        let reset = |memory: &mut Vec<u8>| {
            memory.copy_from_slice(&image);
            Ok(())
        };
        run(instances, &image, || Ok(image.clone()), reset, Vec::len)
    };
    copies(100)?;
    let copies = copies(COPIES)?;

    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        "",
        "open",
        "first request",
        "later requests",
        "reset",
        "memory in use",
        "after reset",
    ]);
    for (name, report) in [("views", views), ("copies", copies)] {
        let instances = u32::try_from(report.instances)?;
        let mean = |time: Duration, rounds: u32| format!("{:.1?}", time / instances / rounds);
        table.add_row([
            format!("{instances} {name}"),
            mean(report.open, 1),
            mean(report.first, 1),
            mean(report.later, LATER),
            mean(report.reset, LATER + 1),
            ByteSize(report.memory[0] / u64::from(instances)).to_string(),
            ByteSize(report.memory[1] / u64::from(instances)).to_string(),
        ]);
    }
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    println!("{table}");
    Ok(())
}
