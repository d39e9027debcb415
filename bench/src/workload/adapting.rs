//! Views that move their image into huge pages: the times of calls before, during and after this.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use memsnap::{ArcView, Snapshot, page_size};

use super::logged::Call;
use super::{Images, Scale};
use crate::case::Case;
use crate::competitor::{Competitor, Limit, Region};
use crate::harness::{Entry, Plan, Round, interleave, nanoseconds, open, time};
use crate::pages::read_all;
use crate::results::{Metric, Results, SUBJECT};
use crate::warm::warm_huge_pages;

/// The time of a take or of a restore after the view has adapted.
pub(crate) const CALL: Metric = Metric::nanoseconds("call");
/// The time of such a call before the view adapts.
const BEFORE: Metric = Metric::nanoseconds("call before");
/// The longest call while the view adapts, minus the median of [`BEFORE`].
pub(crate) const LONGEST: Metric = Metric::nanoseconds("longest call meanwhile, above the median before");
/// The 99th percentile of the calls while the view adapts, minus the same median.
const P99: Metric = Metric::nanoseconds("p99 meanwhile, above the median before");
/// The number of calls until the view has adapted.
const CALLS: Metric = Metric { name: "calls until then", unit: "" };
/// How much memory the view maps in huge pages after these calls.
const HUGE: Metric = Metric { name: "in huge pages", unit: "MiB" };

const NAME: &str = "adapting";

pub(crate) const CHANGED: [usize; 4] = [1, 16, 256, 4096];

/// The longest time to wait until the view has adapted. After that, the view is measured as it is.
const LONGEST_WAIT: Duration = Duration::from_secs(20);
/// The number of calls after which a view that has moved nothing is measured as it is.
const MOST_CALLS: usize = 5_000;

/// The number of calls before the view adapts.
///
/// The first half is not counted, because the view is being write-protected during these calls.
const CALLS_BEFORE: usize = 100;

/// The number of calls between two counts of the huge pages.
const INTERVAL: usize = 200;

/// The length of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// How many bytes are warmed before each call.
///
/// The kernel hands out the memory that was freed last.
const WARMED: usize = 4 * HUGE_PAGE;

/// Returns the case of a call on a gibibyte that was read in full.
pub(crate) fn case(call: Call, changed: usize) -> Case {
    Case::base(NAME).changed(changed).variant(call.name())
}

/// Returns a case in which no huge pages are warmed up.
fn not_warmed() -> Case {
    case(Call::Take, 16).variant("take, huge pages not warmed")
}

pub(crate) fn run(scale: Scale, results: &mut Results) -> Result<()> {
    let mut images = Images::default();
    for call in Call::ALL {
        for changed in CHANGED {
            one(call, &case(call, changed), true, scale, &mut images, results)?;
        }
    }
    one(Call::Take, &not_warmed(), false, scale, &mut images, results)
}

fn one(
    call: Call,
    case: &Case,
    warms: bool,
    scale: Scale,
    images: &mut Images,
    results: &mut Results,
) -> Result<()> {
    eprintln!("{case}");
    let image = images.get(case.bytes)?;
    let limit: [Box<dyn Competitor>; 1] = [Box::new(Limit::WithEntries)];
    let mut entries = open(case, call.operation(), image, &limit, results)?;
    let mut view = Arc::new(Snapshot::from_slice(image.bytes())?).view_arc()?;
    read_all(&view);
    adapt(call, case, warms, &mut view, results)?;
    entries.push(Entry::new(SUBJECT, Box::new(view)));
    let plan = Plan { rounds: scale.pick(100, 400), ..scale.plan(case) };
    interleave(case, plan, entries, results, |entry, round| {
        entry.write(round);
        let pause = call.by(entry, round)?;
        entry.record(CALL, nanoseconds(pause));
        Ok(())
    })
}

/// Writes and makes calls until the view has adapted, and records their times.
fn adapt(call: Call, case: &Case, warms: bool, view: &mut ArcView, results: &mut Results) -> Result<()> {
    let mut changes = case.changes();
    let mut taken = None;
    let (mut calls, mut number) = (Vec::new(), 0);
    let touched: BTreeSet<_> =
        case.changes().next_round().iter().map(|change| change.page * page_size() / HUGE_PAGE).collect();
    // A view has adapted if it maps 95 % of its image in huge pages. Huge pages with changed pages are not counted.
    let wanted = (case.bytes - touched.len() * HUGE_PAGE) / 20 * 19;
    let start = Instant::now();
    let huge = loop {
        if warms {
            warm_huge_pages(WARMED)?;
        }
        number += 1;
        let round = Round::new(number, changes.next_round());
        view.write(&round.changes, number as u64);
        let pause = match call {
            Call::Take => {
                let (snapshot, pause) = time(|| view.take_snapshot());
                taken = Some(snapshot?);
                pause
            }
            Call::Restore => {
                let (restored, pause) = time(|| view.restore());
                restored?;
                pause
            }
        };
        calls.push(nanoseconds(pause));
        if number % INTERVAL == 0 {
            let huge = view.stats().huge;
            let adapted = wanted > 0 && huge >= wanted;
            if adapted || (huge == 0 && number >= MOST_CALLS) || start.elapsed() > LONGEST_WAIT {
                break huge;
            }
        }
    };
    drop(taken);
    results.add(case, SUBJECT, BEFORE, &calls[CALLS_BEFORE / 2..CALLS_BEFORE]);
    let median = results.median(case, SUBJECT, BEFORE.name).unwrap_or(0.0);
    let mut above: Vec<f64> = calls[CALLS_BEFORE..].iter().map(|call| call - median).collect();
    above.sort_by(f64::total_cmp);
    results.add(case, SUBJECT, LONGEST, &above[above.len() - 1..]);
    results.add(case, SUBJECT, P99, &[above[above.len() * 99 / 100]]);
    results.add(case, SUBJECT, CALLS, &[number as f64]);
    results.add(case, SUBJECT, HUGE, &[huge as f64 / f64::from(1 << 20)]);
    Ok(())
}
