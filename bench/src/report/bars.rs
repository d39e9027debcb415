//! The bars: bounds that memsnap has to meet, and the values that one run measured.

use crate::case::{Case, GIB, MIB};
use crate::pages::{Residency, WorkingSet};
use crate::results::{
    COMPARING, COPIES, LIMIT, LOGGED, Measurement, OLD, ONE_CALL, Results, SUBJECT, SYSTEM_CALLS,
};
use crate::workload::logged::{self, Call};
use crate::workload::{adapting, create, memory, restore, sparse, take, threads, tree, view};

const WASMTIME: [&str; 2] = ["wasmtime-style, keep all", "wasmtime-style, keep 1 MiB"];

/// The bound of a measured value.
#[derive(Clone, Copy)]
pub(crate) enum Bar {
    AtLeast(f64),
    AtMost(f64),
}
use Bar::{AtLeast, AtMost};

/// A bar and the measured value, if it was measured.
pub(crate) struct Verdict {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) bar: Bar,
    pub(crate) measured: Option<f64>,
}

impl Verdict {
    fn ratio(what: impl Into<String>, bar: Bar, measured: Option<f64>) -> Self {
        Self { what: what.into(), unit: "x", bar, measured }
    }

    pub(crate) fn is_met(&self) -> Option<bool> {
        self.measured.map(|measured| match self.bar {
            AtLeast(bar) => measured >= bar,
            AtMost(bar) => measured <= bar,
        })
    }
}

/// Returns all bars, with the values of this run.
pub(crate) fn verdicts(results: &Results) -> Vec<Verdict> {
    let parts = [
        take_bars,
        small_take_bars,
        restore_bars,
        wasmtime_bars,
        runs_bars,
        view_bars,
        create_bars,
        memory_bars,
        tree_bars,
        threads_bars,
        adapting_bars,
        logged_bars,
        sparse_bars,
    ];
    parts.iter().flat_map(|part| part(results)).collect()
}

fn take_bars(results: &Results) -> Vec<Verdict> {
    let base = Case::base(take::NAME);
    let (one, many) = (base.clone().changed(1), base.clone().changed(4096));
    let slower = |other| results.ratio(&base, take::PAUSE.name, other, SUBJECT);
    let above_limit = |case| results.ratio(case, take::PAUSE.name, SUBJECT, LIMIT);
    vec![
        Verdict::ratio("take, 1 GiB, 256 pages: faster than 0.1.2", AtLeast(500.0), slower(OLD)),
        Verdict::ratio("take, 1 GiB, 256 pages: shorter than fork's pause", AtLeast(20.0), slower("fork")),
        Verdict::ratio("take, 1 GiB, 1 page: times the limit", AtMost(1.5), above_limit(&one)),
        Verdict::ratio("take, 1 GiB, 256 pages: times the limit", AtMost(1.5), above_limit(&base)),
        Verdict::ratio("take, 1 GiB, 4,096 pages: times the limit", AtMost(1.3), above_limit(&many)),
    ]
}

/// Returns the bars for snapshots of a small region.
///
/// They are for a machine that copies a page in 0.3 µs. On a faster machine, each bar is lowered by the time that the
/// copies save. The rest of the bar is for system calls.
fn small_take_bars(results: &Results) -> Vec<Verdict> {
    let copy = page_copy(results);
    let bar = |case: Case, name, microseconds: f64| {
        let median = |competitor| results.median(&case, competitor, take::PAUSE.name);
        let measured = median(SUBJECT);
        let ratio = measured
            .zip(median(LIMIT))
            .map_or(String::new(), |(measured, limit)| format!("; {:.1} x the limit", measured / limit));
        let spared = copy.map_or(0.0, |copy| (0.3 - copy).max(0.0) * case.changed as f64);
        let scaled = microseconds - spared;
        let what =
            format!("take, 1 MiB, 16 {name} pages ({microseconds} µs, if a page is copied in 0.3 µs{ratio})");
        Verdict { what, unit: "µs", bar: AtMost(scaled), measured: measured.map(|ns| ns / 1000.0) }
    };
    vec![bar(take::small(), "recurring", 6.0), bar(take::small().moving(), "moving", 10.0)]
}

/// Returns the microseconds in which the limit copies a page, in a region of 1 MiB.
fn page_copy(results: &Results) -> Option<f64> {
    let case = Case::base(take::NAME).bytes(MIB);
    let limit = results.median(&case, LIMIT, take::PAUSE.name)?;
    // The limit includes 1 ns for each page of the region, which is not time for copies.
    Some((limit - case.pages() as f64) / case.changed as f64 / 1000.0)
}

fn restore_bars(results: &Results) -> Vec<Verdict> {
    let of = |changed, name: &str| {
        let base = Case::base(restore::NAME).changed(changed);
        let variants = [
            ("never read in full", base.clone().sparse(), 3.0),
            ("read in full once", base, 2.0),
            ("16,384 others read each round", restore::reading(changed), 4.0),
        ];
        variants.map(|(variant, case, bar)| {
            let what = format!("write + restore, 1 GiB, {name} pages, {variant}: faster than 0.1.2");
            Verdict::ratio(what, AtLeast(bar), results.ratio(&case, restore::LOOP.name, OLD, SUBJECT))
        })
    };
    [of(256, "256"), of(4096, "4,096")].into_iter().flatten().collect()
}

fn wasmtime_bars(results: &Results) -> Vec<Verdict> {
    let bar = |other: &str| {
        let faster = |case| results.ratio(case, restore::LOOP.name, other, SUBJECT);
        let faster: Vec<f64> = restore::against_wasmtime().iter().filter_map(faster).collect();
        let what = format!("write + restore, 1 and 128 MiB: faster than {other}");
        let least = faster.iter().copied().reduce(f64::min);
        let most = faster.iter().copied().reduce(f64::max);
        [
            Verdict::ratio(format!("{what}: in the worst case"), AtLeast(1.0), least),
            Verdict::ratio(format!("{what}: in the best case"), AtLeast(1.5), most),
        ]
    };
    WASMTIME.into_iter().flat_map(bar).collect()
}

fn runs_bars(results: &Results) -> Vec<Verdict> {
    let bar = |name, of: fn(&Measurement) -> f64, microseconds: f64| {
        let get = |competitor| {
            results.get(&restore::runs(), competitor, restore::RESTORE.name).map(|it| of(it) / 1000.0)
        };
        let limit = get(LIMIT).map_or(0.0, |limit| 1.5 * limit);
        let what =
            format!("restore, 128 MiB, 50 runs of 16 KiB: {name} ({microseconds} µs, or 1.5 x the limit)");
        Verdict { what, unit: "µs", bar: AtMost(microseconds.max(limit)), measured: get(SUBJECT) }
    };
    vec![bar("median", |it| it.median, 36.0), bar("p99", |it| it.p99, 60.0)]
}

fn view_bars(results: &Results) -> Vec<Verdict> {
    let flat = results.median(&view::flat(), SUBJECT, view::HUNDREDTH.name);
    let changed = results.median(&view::changed(65_536), SUBJECT, view::HUNDREDTH.name);
    let old = results.ratio(&view::flat(), view::HUNDREDTH.name, SUBJECT, OLD);
    let to_flat = changed.zip(flat).map(|(changed, flat)| changed / flat);
    vec![
        Verdict::ratio("view of a flat snapshot: times that of 0.1.2", AtMost(1.05), old),
        Verdict::ratio(
            "hundredth view, 65,536 changed pages: times that of a flat one",
            AtMost(2.0),
            to_flat,
        ),
    ]
}

fn create_bars(results: &Results) -> Vec<Verdict> {
    let ratio = |how, over, under| results.ratio(&create::case(how, GIB), create::TIME.name, over, under);
    // With `--quick`, the file has another size. So the case is found by its variant.
    let cloned = |how| {
        let case = results.measurements.iter().map(|it| &it.case).find(|case| case.variant == how);
        results.ratio(case?, create::TIME.name, LIMIT, SUBJECT)
    };
    vec![
        Verdict::ratio(
            "from_slice, 1 GiB: faster than 0.1.2",
            AtLeast(1.8),
            ratio(create::FROM_SLICE, OLD, SUBJECT),
        ),
        Verdict::ratio(
            "zeroed and filled, 1 GiB: times 0.1.2",
            AtMost(1.0),
            ratio(create::FILL, SUBJECT, OLD),
        ),
        Verdict::ratio(
            "from_file, 1 GiB in the page cache: times a copy by pwrite",
            AtMost(1.2),
            ratio(create::FROM_FILE, SUBJECT, LIMIT),
        ),
        Verdict::ratio("from_file on XFS: faster than that copy", AtLeast(20.0), cloned(create::ON_XFS)),
        Verdict::ratio("from_file on Btrfs: faster than that copy", AtLeast(20.0), cloned(create::ON_BTRFS)),
        Verdict::ratio(
            "map_file, 1 GiB, then all read: times from_file of 0.1.2, then all read",
            AtMost(1.05),
            ratio(create::READ_MAPPED, SUBJECT, OLD),
        ),
    ]
}

fn memory_bars(results: &Results) -> Vec<Verdict> {
    let metrics = [memory::KERNEL, memory::STATS];
    let held = metrics.map(|metric| results.median(&memory::case(), SUBJECT, metric.name));
    let most = held.into_iter().flatten().reduce(f64::max);
    let percent = most.map(|most| most / memory::changed() as f64 * 100.0);
    let what =
        "memory of 100 snapshots beyond the base, in percent of the changed pages (the larger of two counts)";
    vec![Verdict { what: what.to_owned(), unit: "%", bar: AtMost(115.0), measured: percent }]
}

fn tree_bars(results: &Results) -> Vec<Verdict> {
    let of = |residency, name| {
        let jump = tree::neighbours(residency);
        let slope = slope(results, residency);
        [
            Verdict {
                what: format!("restore_to, 1 GiB {name}: growth with the difference (slope, log-log)"),
                unit: "",
                bar: AtMost(1.1),
                measured: slope,
            },
            Verdict::ratio(
                format!("restore_to, 1 GiB {name}, between parent and child: times the limit"),
                AtMost(2.0),
                results.ratio(&jump, tree::JUMP.name, SUBJECT, LIMIT),
            ),
        ]
    };
    let all = [of(Residency::Sparse, "never read in full"), of(Residency::Resident, "read in full")];
    all.into_iter().flatten().collect()
}

fn threads_bars(results: &Results) -> Vec<Verdict> {
    let gains = threads::ROWS.iter().map(|row| {
        let case = row.case();
        let gain = |competitor| results.median(&case, competitor, threads::GAIN.name);
        let what = format!("two threads / one, {}", case.parameters());
        if row.working_set == WorkingSet::Recurring {
            return Verdict::ratio(what, AtLeast(row.bar), gain(SUBJECT));
        }
        let bare = [SYSTEM_CALLS, ONE_CALL].into_iter().filter_map(gain).reduce(f64::max);
        let bar = bare.map_or(row.bar, |bare| bare.min(row.bar));
        let what = format!("{what} ({} x, or what bare system calls reach)", row.bar);
        Verdict::ratio(what, AtLeast(bar), gain(SUBJECT))
    });
    let views = [
        (SUBJECT, "a view opened, 16 pages written, the view dropped"),
        (threads::RESTORED, "16 pages written, the view restored"),
    ];
    let views = views.map(|(competitor, loops)| {
        let ratio = results.ratio(&threads::opening(), threads::TWO.name, competitor, SYSTEM_CALLS);
        let what = format!("two threads, 1 MiB, {loops}: loops a second, times mmap + 16 writes + munmap");
        Verdict::ratio(what, AtLeast(1.0), ratio)
    });
    gains.chain(views).collect()
}

fn adapting_bars(results: &Results) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for call in Call::ALL {
        let name = call.name();
        for (changed, bar) in adapting::CHANGED.into_iter().zip([0.2, 0.25, 1.0, 1.2]) {
            let case = adapting::case(call, changed);
            let ratio = results.ratio(&case, adapting::CALL.name, SUBJECT, LIMIT);
            let what = format!("{name}, adapted, 1 GiB, {changed} pages: times the limit");
            verdicts.push(Verdict::ratio(what, AtMost(bar), ratio));
        }
        let longest =
            |changed| results.median(&adapting::case(call, changed), SUBJECT, adapting::LONGEST.name);
        // With more pages, the view moves nothing, and the longest call only depends on the load of the machine.
        let longest = adapting::CHANGED[..3].iter().copied().filter_map(longest).reduce(f64::max);
        verdicts.push(Verdict {
            what: format!("{name}, while a view adapts: the longest call above the median before"),
            unit: "ms",
            bar: AtMost(2.0),
            measured: longest.map(|ns| ns / 1e6),
        });
    }
    verdicts
}

fn logged_bars(results: &Results) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for call in Call::ALL {
        let what = format!("{}, logged", call.name());
        for (changed, bar) in logged::CHANGED.into_iter().zip([2.0, 1.5, 1.3]) {
            let case = logged::beside_copies(call, changed);
            verdicts.push(Verdict::ratio(
                format!("{what}, 1 GiB, {changed} pages: times the copies of these pages"),
                AtMost(bar),
                results.ratio(&case, logged::CALL.name, LOGGED, COPIES),
            ));
        }
        let median = |bytes| results.median(&logged::of_zeroes(call, bytes), LOGGED, logged::CALL.name);
        let medians: Option<Vec<f64>> = logged::SIZES.into_iter().map(median).collect();
        let spread = medians.map(|all| {
            all.iter().copied().fold(0.0, f64::max) / all.iter().copied().fold(f64::INFINITY, f64::min)
        });
        verdicts.push(Verdict::ratio(
            format!("{what}, 16 pages of 1 MiB, 1 GiB and 1 TiB: slowest / fastest"),
            AtMost(1.2),
            spread,
        ));
        let case = logged::beside_comparing(call);
        verdicts.push(Verdict::ratio(
            format!("{what}, 16 pages of 256 MiB: faster than a view all of which is compared"),
            AtLeast(1000.0),
            results.ratio(&case, logged::CALL.name, COMPARING, LOGGED),
        ));
    }
    verdicts.extend([1, 16].map(|changed| {
        let case = logged::beside_copies(Call::Take, changed);
        let ratio = results.ratio(&case, logged::WITH_WRITES.name, "crumbles", LOGGED);
        let what = format!("write + take, logged, 1 GiB, {changed} pages: faster than crumbles");
        Verdict::ratio(what, AtLeast(1.0), ratio)
    }));
    verdicts
}

fn sparse_bars(results: &Results) -> Vec<Verdict> {
    let what = "256 MiB in use of 64 GiB, armed";
    let tables = Verdict::ratio(
        format!("{what}: page tables, times those of a bare mapping with the same pages"),
        AtMost(3.0),
        results.ratio(
            &sparse::case(sparse::LARGE, WorkingSet::Recurring),
            sparse::PAGE_TABLES.name,
            SUBJECT,
            SYSTEM_CALLS,
        ),
    );
    let takes = [WorkingSet::Recurring, WorkingSet::Moving].map(|working_set| {
        let take = |bytes| results.median(&sparse::case(bytes, working_set), SUBJECT, sparse::TAKE.name);
        let ratio = take(sparse::LARGE).zip(take(sparse::SMALL)).map(|(large, small)| large / small);
        let what =
            format!("{what}: take of 2,000 {working_set} pages, times that with the same in use of 1 GiB");
        Verdict::ratio(what, AtMost(1.3), ratio)
    });
    [tables].into_iter().chain(takes).collect()
}

/// Returns the slope of the time against the number of differing pages, on logarithmic axes.
///
/// The slope is fitted by least squares. 1 is linear growth, and a larger slope is worse.
fn slope(results: &Results, residency: Residency) -> Option<f64> {
    let point = |size: usize| {
        let median = results.median(&tree::anywhere(size, residency), SUBJECT, tree::JUMP.name)?;
        Some(((size as f64).ln(), median.ln()))
    };
    let points: Vec<_> = tree::buckets().filter_map(point).collect();
    let count = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0 / count, y + point.1 / count));
    let covariance: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let variance: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    (points.len() > 2).then(|| covariance / variance)
}
