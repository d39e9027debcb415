//! Writing and restoring in turn.

use anyhow::Result;

use super::{Images, Scale};
use crate::case::{Case, GIB, KIB, MIB};
use crate::competitor::Operation;
use crate::harness::{interleave, nanoseconds, open, time};
use crate::pages::{Pattern, random_changes, read, rng};
use crate::results::{Metric, Results};

/// The time of a restore.
pub(crate) const RESTORE: Metric = Metric::nanoseconds("restore");
/// The time of the writes, of the reads if there are any, and of the restore.
pub(crate) const LOOP: Metric = Metric::nanoseconds("loop");
/// One second divided by the median time of a loop.
const PER_SECOND: Metric = Metric { name: "resets per second", unit: "1/s" };

pub(crate) const NAME: &str = "restore";

/// The number of pages that each round reads in the case of [`reading`].
const READS: usize = 16_384;

/// Returns the case in which each round also reads other pages.
pub(crate) fn reading(changed: usize) -> Case {
    Case::base(NAME).changed(changed).sparse().variant("16,384 others read")
}

/// Returns the case of fifty runs of 16 KiB.
pub(crate) fn runs() -> Case {
    Case::base(NAME).bytes(128 * MIB).changed(200).pattern(Pattern::Runs(4))
}

/// Returns the cases of the bars in which memsnap is compared with the reset of Wasmtime.
pub(crate) fn against_wasmtime() -> Vec<Case> {
    let base = Case::base(NAME);
    let cells = [(MIB, 16), (MIB, 256), (128 * MIB, 16), (128 * MIB, 256), (128 * MIB, 4096)];
    let recurring = cells.map(|(bytes, changed)| base.clone().bytes(bytes).changed(changed));
    recurring.into_iter().flat_map(|case| [case.clone(), case.moving()]).collect()
}

fn cases(scale: Scale) -> Vec<Case> {
    let base = Case::base(NAME);
    let mut cases = Vec::new();
    for changed in [256, 4096] {
        let case = base.clone().changed(changed);
        cases.extend([case.clone().sparse(), case, reading(changed)]);
    }
    if !scale.quick {
        cases.extend([1, 16, 65_536].map(|changed| base.clone().changed(changed)));
        cases.extend([base.clone().pattern(Pattern::Contiguous), base.clone().moving()]);
    }
    cases.extend([runs(), base.clone().bytes(64 * KIB)]);
    cases.extend(against_wasmtime());
    if !scale.quick {
        cases.push(base.bytes(4 * GIB));
    }
    cases
}

pub(crate) fn run(scale: Scale, results: &mut Results) -> Result<()> {
    let mut images = Images::default();
    for case in cases(scale) {
        eprintln!("{case}");
        restore(&case, scale, &mut images, results)?;
    }
    Ok(())
}

fn restore(case: &Case, scale: Scale, images: &mut Images, results: &mut Results) -> Result<()> {
    let image = images.get(case.bytes)?;
    let competitors = scale.competitors(case, results);
    let entries = open(case, Operation::Restore, image, &competitors, results)?;
    let reads = *case == reading(case.changed);
    let mut rng = rng(READS);
    interleave(case, scale.plan(case), entries, results, |entry, round| {
        let others = if reads { random_changes(case.pages(), READS, &mut rng) } else { Vec::new() };
        let before = if round.is_first { entry.sample(round) } else { Vec::new() };
        let writes = entry.write(round);
        let (_, reading) = time(|| read(entry.region.bytes(), &others));
        let restore = entry.restore(round)?;
        if round.is_first {
            entry.check_restored(round, &before)?;
        }
        entry.record(RESTORE, nanoseconds(restore));
        entry.record(LOOP, nanoseconds(writes + reading + restore));
        Ok(())
    })?;
    for competitor in &competitors {
        if let Some(time) = results.median(case, competitor.name(), LOOP.name) {
            results.add(case, competitor.name(), PER_SECOND, &[1e9 / time]);
        }
    }
    Ok(())
}
