//! Taking snapshots of one region, with writes in between.

use anyhow::Result;

use super::{Images, Scale};
use crate::case::{Case, GIB, KIB, MIB};
use crate::competitor::Operation;
use crate::harness::{interleave, nanoseconds, open};
use crate::pages::Pattern;
use crate::results::{LIMIT, LOGGED, Metric, Results, SUBJECT};

/// The time of taking a snapshot.
pub(crate) const PAUSE: Metric = Metric::nanoseconds("pause");
/// The time of the snapshot and of the writes before it, which the previous snapshot can make slower.
pub(crate) const WITH_WRITES: Metric = Metric::nanoseconds("writes + pause");

pub(crate) const NAME: &str = "take";

pub(crate) const SIZES: [usize; 5] = [64 * KIB, MIB, 128 * MIB, GIB, 4 * GIB];
pub(crate) const CHANGED: [usize; 5] = [1, 16, 256, 4096, 65_536];
pub(crate) const DEPTHS: [usize; 4] = [1, 10, 100, 1000];

/// Returns the case in which `depth` snapshots are kept while others are taken.
pub(crate) fn at_depth(depth: usize) -> Case {
    Case::base(NAME).bytes(128 * MIB).changed(64).variant(&format!("{depth} kept"))
}

/// Returns the case of a small region with few changed pages. There is little work besides the copies.
pub(crate) fn small() -> Case {
    Case::base(NAME).bytes(MIB).changed(16)
}

/// Returns the cases, and how many snapshots each of them keeps.
fn cases(scale: Scale) -> Vec<(Case, usize)> {
    let base = Case::base(NAME);
    let mut cases = vec![base.clone(), base.clone().changed(1), base.clone().changed(4096)];
    if !scale.quick {
        cases.push(base.clone().sparse());
        cases.extend([16, 65_536].map(|changed| base.clone().changed(changed)));
        cases.push(base.clone().pattern(Pattern::Contiguous));
        cases.push(base.clone().moving());
    }
    let mut cases: Vec<_> = cases.into_iter().map(|case| (case, 1)).collect();
    if !scale.quick {
        cases.push((base.clone().variant("16 kept"), 16));
    }
    let sizes = SIZES.into_iter().filter(|&size| size != GIB && (size < GIB || !scale.quick));
    cases.extend(sizes.map(|size| (base.clone().bytes(size), 1)));
    cases.extend([(small(), 1), (small().moving(), 1)]);
    if !scale.quick {
        cases.extend(DEPTHS.map(|depth| (at_depth(depth), depth)));
    }
    cases
}

pub(crate) fn run(scale: Scale, results: &mut Results) -> Result<()> {
    let mut images = Images::default();
    for (case, kept) in cases(scale) {
        eprintln!("{case}");
        take(&case, kept, scale, &mut images, results)?;
    }
    Ok(())
}

fn take(case: &Case, kept: usize, scale: Scale, images: &mut Images, results: &mut Results) -> Result<()> {
    let image = images.get(case.bytes)?;
    let mut competitors = scale.competitors(case, results);
    if scale.quick && case.bytes >= GIB && *case != Case::base(NAME) {
        competitors.retain(|competitor| [SUBJECT, LOGGED, LIMIT].contains(&competitor.name()));
        results.skip(case, "all but memsnap, memsnap logged and the limit", "takes too long for --quick");
    }
    let entries = open(case, Operation::Take { kept }, image, &competitors, results)?;
    interleave(case, scale.plan(case), entries, results, |entry, round| {
        while round.is_first && entry.taken.len() < kept {
            entry.write(round);
            let (taken, _) = entry.take(round)?;
            entry.taken.push_back(taken);
        }
        // The kept snapshots still exist, so these writes must not change them.
        let writes = entry.write(round);
        entry.taken.pop_front();
        let (taken, pause) = entry.take(round)?;
        entry.taken.push_back(taken);
        entry.record(PAUSE, nanoseconds(pause));
        entry.record(WITH_WRITES, nanoseconds(writes + pause));
        Ok(())
    })
}
