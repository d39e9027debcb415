//! The memory that a hundred snapshots hold in addition to the image.
#![allow(unsafe_code)]

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::Result;
use memsnap::{Snapshot, page_size};

use super::Scale;
use crate::case::Case;
use crate::competitor::{Competitor, Crumbles, Fork, Region, Taken, private_pages};
use crate::image::Image;
use crate::pages::write;
use crate::results::{Metric, OLD, Results, SUBJECT};
use crate::system::kib;

/// The memory as the kernel counts it: anonymous memory and memory files, without the view's private pages.
pub(crate) const KERNEL: Metric = Metric { name: "held, by the kernel", unit: "bytes" };
/// The memory as memsnap counts it.
pub(crate) const STATS: Metric = Metric { name: "held, by stats()", unit: "bytes" };
const COMPUTED: Metric = Metric { name: "held, computed: a copy each", unit: "bytes" };

const SNAPSHOTS: usize = 100;

pub(crate) fn case() -> Case {
    Case::base("memory").sparse().moving().variant("100 snapshots")
}

/// Returns the number of bytes in all changed pages.
pub(crate) fn changed() -> usize {
    SNAPSHOTS * case().changed * page_size()
}

pub(crate) fn run(scale: Scale, results: &mut Results) -> Result<()> {
    let case = case();
    eprintln!("{case}");
    let image = Image::new(case.bytes)?;
    memsnap(&case, &image, results)?;
    crumbles(&case, &image, results)?;
    if scale.quick {
        results.skip(&case, "fork", "takes too long for --quick");
    } else {
        fork(&case, &image, results)?;
    }
    for copying in [OLD, "memmap2", "plain copy"] {
        results.add(&case, copying, COMPUTED, &[(SNAPSHOTS * case.bytes) as f64]);
    }
    Ok(())
}

fn memsnap(case: &Case, image: &Image, results: &mut Results) -> Result<()> {
    let root = Snapshot::from_slice(image.bytes())?;
    let mut view = root.view()?;
    let before = held()?;
    let mut changes = case.changes();
    let mut taken = Vec::new();
    for value in 1..=SNAPSHOTS as u64 {
        write(&mut view, &changes.next_round(), value);
        taken.push(view.take_snapshot()?);
    }
    let kernel = growth(before, &view)?;
    let stats = taken[SNAPSHOTS - 1].stats();
    let stats = (stats.store.live + stats.store.recyclable) as f64 + stats.flat as f64;
    results.add(case, SUBJECT, KERNEL, &[kernel]);
    results.add(case, SUBJECT, STATS, &[stats]);
    Ok(())
}

fn crumbles(case: &Case, image: &Image, results: &mut Results) -> Result<()> {
    let mut region = Crumbles.open(image, case)?;
    let before = held()?;
    let _taken = take_all(case, region.as_mut())?;
    let kernel = growth(before, region.bytes())?;
    results.add(case, "crumbles", KERNEL, &[kernel]);
    Ok(())
}

/// Measures the memory of `fork`.
///
/// Children share pages with the parent and with each other. So this adds the proportional parts of all processes, and
/// the kernel page tables of the children.
fn fork(case: &Case, image: &Image, results: &mut Results) -> Result<()> {
    let resident = Case::base(case.workload);
    let mut region = Fork.open(image, &resident)?;
    let before = held()?;
    let taken = take_all(case, region.as_mut())?;
    let mut after = held()?;
    let children = fs::read_to_string("/proc/thread-self/children")?;
    for child in children.split_whitespace() {
        let status = fs::read_to_string(format!("/proc/{child}/status"))?;
        after += anonymous(child)? + kib(&status, "VmPTE:")?;
    }
    drop(taken);
    results.add(case, "fork", KERNEL, &[after as f64 - before as f64]);
    Ok(())
}

fn take_all(case: &Case, region: &mut dyn Region) -> Result<Vec<Taken>> {
    let mut changes = case.changes();
    let take = |value| {
        write(region.bytes(), &changes.next_round(), value);
        region.prepare()?;
        region.take(&[])
    };
    (1..=SNAPSHOTS as u64).map(take).collect()
}

/// Returns the anonymous memory of a process, with its proportional part of the pages that it shares with others.
fn anonymous(process: &str) -> Result<usize> {
    kib(&fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?, "Pss_Anon:")
}

/// Returns the anonymous memory and the memory files that this process holds.
fn held() -> Result<usize> {
    // SAFETY: the call takes no pointers. It returns only memory that no allocation uses.
    unsafe { libc::malloc_trim(0) };
    Ok(anonymous("self")? + memory_files()?)
}

/// Returns the memory that this process holds in addition to `before`, without the private pages of `region`.
fn growth(before: usize, region: &[u8]) -> Result<f64> {
    let private = private_pages(region)? * page_size();
    Ok(held()? as f64 - before as f64 - private as f64)
}

/// Returns the size of memsnap's memory files in this process.
fn memory_files() -> Result<usize> {
    let mut bytes = 0;
    for entry in fs::read_dir("/proc/self/fd")? {
        let path = entry?.path();
        // The list also contains the descriptor of the folder itself, which is closed by now.
        let target = fs::read_link(&path).unwrap_or_default();
        if target.to_string_lossy().starts_with("/memfd:memsnap") {
            bytes += usize::try_from(fs::metadata(&path)?.blocks())? * 512;
        }
    }
    Ok(bytes)
}
