//! The bars: the goals of the benchmark, and whether a run meets them.

use crate::changes;
use crate::place::{DISK, MEMORY};
use crate::results::{Measurement, Results, TIME, WRITTEN};
use crate::workload::{child, children, first, load, memory, push, sharing};

/// A bar, the measured value, and whether the bar is met.
pub(crate) struct Verdict {
    pub(crate) what: String,
    pub(crate) bar: String,
    /// The measured value with its unit, or `None` if it was not measured.
    pub(crate) measured: Option<String>,
    pub(crate) met: Option<bool>,
}

/// The condition that a value has to meet.
#[derive(Clone, Copy)]
enum Bar {
    AtMost(f64),
    AtLeast(f64),
    MoreThan(f64),
}

/// Returns all bars with the values of a run.
pub(crate) fn verdicts(results: &Results) -> Vec<Verdict> {
    let mut all = children_one_by_one(results);
    all.extend(first_saves(results));
    all.extend(sizes(results));
    all.extend(loads(results));
    all.extend(pushes(results));
    all.extend(peaks(results));
    all
}

fn verdict(what: impl Into<String>, bar: Bar, unit: &str, value: Option<f64>) -> Verdict {
    let (word, limit) = match bar {
        Bar::AtMost(limit) => ("at most", limit),
        Bar::AtLeast(limit) => ("at least", limit),
        Bar::MoreThan(limit) => ("more than", limit),
    };
    let met = |value: f64| match bar {
        Bar::AtMost(limit) => value <= limit,
        Bar::AtLeast(limit) => value >= limit,
        Bar::MoreThan(limit) => value > limit,
    };
    Verdict {
        what: what.into(),
        bar: format!("{word} {limit} {unit}").trim_end().to_owned(),
        measured: value.map(|value| format!("{} {unit}", number(value)).trim_end().to_owned()),
        met: value.map(met),
    }
}

/// Formats a number with three significant digits, and with all digits of its integer part.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Returns the median time of one way, divided by that of another.
fn ratio(results: &Results, workload: &str, place: &str, of: &str, to: &str) -> Option<f64> {
    let time = |way| results.median([workload, place, way, TIME]);
    Some(time(of)? / time(to)?)
}

fn milliseconds(results: &Results, place: &str, workload: &str, way: &str, metric: &str) -> Option<f64> {
    results.median([workload, place, way, metric]).map(|seconds| seconds * 1e3)
}

/// The places, and their names in the descriptions of bars.
const PLACES: [(&str, &str); 2] =
    [(MEMORY, "in memory, so without the cost of syncs"), (DISK, "on the disk, all syncs included")];

fn children_one_by_one(results: &Results) -> Vec<Verdict> {
    let mut all = Vec::new();
    let time = milliseconds(results, MEMORY, child::NAME, child::RANDOM, TIME);
    all.push(verdict(
        "save a child of 256 changed pages: time without the sync",
        Bar::AtMost(10.0),
        "ms",
        time,
    ));
    let written = results.get([child::NAME, DISK, child::RANDOM, WRITTEN]).map(Measurement::mean);
    let written = written.map(|bytes| bytes / changes::BYTES as f64);
    all.push(verdict(
        "the same: bytes written (mean, including the index) / bytes of the pages, which cannot be compressed",
        Bar::AtMost(1.25),
        "x",
        written,
    ));
    for (place, how) in PLACES {
        for program in [first::RESTIC, first::ZSTD] {
            let what = match program {
                first::RESTIC => "restic saving the changed file / the save",
                _ => "`zstd -1` of all of it / the save",
            };
            let ratio = ratio(results, child::NAME, place, program, child::RANDOM);
            all.push(verdict(format!("{what}; {how}"), Bar::AtLeast(100.0), "x", ratio));
        }
    }
    all
}

fn first_saves(results: &Results) -> Vec<Verdict> {
    let mut all = Vec::new();
    for (place, how) in PLACES {
        for (way, what) in [(first::SNAPSHOT, "a snapshot"), (first::FILE, "a file")] {
            let restic = ratio(results, first::NAME, place, first::RESTIC, way);
            let what = format!("first save of {what}: time of restic / its time; {how}");
            all.push(verdict(what, Bar::MoreThan(1.0), "x", restic));
        }
        for (way, what) in [(first::SNAPSHOT, "a snapshot"), (first::FILE, "a file")] {
            let zstd = ratio(results, first::NAME, place, first::ZSTD_2, way);
            let what = format!("first save of {what}: time of `zstd -1 -T2` / its time; {how}");
            all.push(verdict(what, Bar::AtLeast(0.7), "x", zstd));
        }
    }
    all
}

fn sizes(results: &Results) -> Vec<Verdict> {
    let mut all = Vec::new();
    for (way, _) in children::ALL {
        for metric in [children::OF_STREAMS, children::OF_FRAMES] {
            let value = results.median([children::NAME, DISK, way, metric]);
            let what = format!("100 children of 256 {way}: {metric}");
            all.push(verdict(what, Bar::AtMost(1.15), "x", value));
        }
    }
    let both = results.median([sharing::NAME, DISK, sharing::WAY, sharing::RATIO]);
    let what =
        "two images with 90 % of their pages in common, at other offsets: stored size of both / of one";
    all.push(verdict(what, Bar::AtMost(1.15), "x", both));
    all
}

fn loads(results: &Results) -> Vec<Verdict> {
    let mut all = Vec::new();
    for (place, how) in PLACES {
        let whole = ratio(results, load::NAME, place, first::RESTIC, load::WHOLE);
        all.push(verdict(
            format!("load whole: time of restic's restore / its time; {how}"),
            Bar::AtLeast(1.5),
            "x",
            whole,
        ));
    }
    let time = |way, metric| milliseconds(results, DISK, load::NAME, way, metric);
    let onto = time(load::ONTO, TIME);
    all.push(verdict(
        "load a child of 256 changed pages onto its parent in memory",
        Bar::AtMost(15.0),
        "ms",
        onto,
    ));
    let map = time(load::MAP, load::MAP_AND_TOUCH);
    all.push(verdict("`map` the second time and touch 1,000 pages", Bar::AtMost(10.0), "ms", map));
    all
}

/// The greatest number of requests of a push of 256 blocks.
///
/// One request for each block would be far more.
const REQUESTS: f64 = 64.0;

fn pushes(results: &Results) -> Vec<Verdict> {
    let mut all = Vec::new();
    for (way, _) in push::ALL {
        let measured = |metric| results.median([push::NAME, DISK, way, metric]);
        let what = format!("push of {way} to a bucket on loopback that has the parent");
        all.push(verdict(format!("{what}: {}", push::BYTES), Bar::AtMost(1.3), "x", measured(push::BYTES)));
        all.push(verdict(format!("{what}: requests"), Bar::AtMost(REQUESTS), "", measured(push::REQUESTS)));
    }
    all
}

/// The bar for memory: eight packs of 32 MiB, in MiB.
const PACKS: f64 = 256.0;

fn peaks(results: &Results) -> Vec<Verdict> {
    let peak = |call: &str| {
        let bytes = results.median([memory::NAME, DISK, call, memory::BESIDES[1]]);
        let what = format!("greatest memory besides the snapshot: `{call}`");
        verdict(what, Bar::AtMost(PACKS), "MiB", bytes.map(|bytes| bytes / f64::from(1 << 20)))
    };
    memory::CALLS.into_iter().map(peak).collect()
}
