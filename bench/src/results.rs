//! `Results`: all measurements of a run.

use serde::Serialize;

use crate::case::Case;

/// The name and the unit of a measured quantity.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
}

impl Metric {
    pub(crate) const fn nanoseconds(name: &'static str) -> Self {
        Self { name, unit: "ns" }
    }
}

/// The competitor that the others are compared with.
pub(crate) const SUBJECT: &str = "memsnap";
/// The same library with a logged view, to which the program reports what it writes.
pub(crate) const LOGGED: &str = "memsnap, logged";
/// The same library with a view that compares all pages, as on systems that do not list written pages.
pub(crate) const COMPARING: &str = "memsnap, comparing";
/// Copies of just the changed pages, plus 1 ns for each page-table entry.
pub(crate) const LIMIT: &str = "limit";
/// The limit without the time that it adds for page-table entries.
pub(crate) const COPIES: &str = "only the copies";
/// The system calls that do the work, without a library around them.
pub(crate) const SYSTEM_CALLS: &str = "bare system calls";
/// The bare system calls, with one call that discards all pages.
pub(crate) const ONE_CALL: &str = "bare system calls, one discard";
/// An earlier release of the library.
pub(crate) const OLD: &str = "memsnap 0.1.2";

pub(crate) struct Measurement {
    pub(crate) case: Case,
    pub(crate) competitor: String,
    pub(crate) metric: Metric,
    pub(crate) rounds: usize,
    pub(crate) median: f64,
    pub(crate) p99: f64,
}

/// A competitor that was not measured in some cases, and these cases.
pub(crate) struct Skipped {
    /// The workload, the competitor and the reason.
    pub(crate) what: String,
    pub(crate) cases: Vec<Case>,
}

#[derive(Default)]
pub(crate) struct Results {
    pub(crate) measurements: Vec<Measurement>,
    pub(crate) skipped: Vec<Skipped>,
    /// The share of the processors' time that other processes took, in percent.
    pub(crate) others: f64,
}

impl Results {
    pub(crate) fn add(&mut self, case: &Case, competitor: &str, metric: Metric, samples: &[f64]) {
        if samples.is_empty() {
            return;
        }
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        self.measurements.push(Measurement {
            case: case.clone(),
            competitor: competitor.to_owned(),
            metric,
            rounds: sorted.len(),
            median: quantile(&sorted, 500),
            p99: quantile(&sorted, 990),
        });
    }

    /// Records that a competitor was not measured, and the reason.
    ///
    /// Prints it to standard error when the reason is given for the first time in a workload.
    pub(crate) fn skip(&mut self, case: &Case, who: &str, reason: &str) {
        let what = format!("{}: {who}: {reason}", case.workload);
        match self.skipped.iter_mut().find(|skipped| skipped.what == what) {
            Some(skipped) => skipped.cases.push(case.clone()),
            None => {
                eprintln!("  skipped: {who}: {reason}");
                self.skipped.push(Skipped { what, cases: vec![case.clone()] });
            }
        }
    }

    pub(crate) fn get(&self, case: &Case, competitor: &str, metric: &str) -> Option<&Measurement> {
        self.measurements.iter().find(|measurement| {
            measurement.case == *case
                && measurement.competitor == competitor
                && measurement.metric.name == metric
        })
    }

    pub(crate) fn median(&self, case: &Case, competitor: &str, metric: &str) -> Option<f64> {
        Some(self.get(case, competitor, metric)?.median)
    }

    /// Returns the median of `over` divided by the median of `under`.
    pub(crate) fn ratio(&self, case: &Case, metric: &str, over: &str, under: &str) -> Option<f64> {
        Some(self.median(case, over, metric)? / self.median(case, under, metric)?)
    }

    /// Returns the median of a measurement divided by that of memsnap, or `None` for memsnap itself.
    pub(crate) fn ratio_to_subject(&self, measurement: &Measurement) -> Option<f64> {
        let subject = self.median(&measurement.case, SUBJECT, measurement.metric.name)?;
        (measurement.competitor != SUBJECT && subject > 0.0).then(|| measurement.median / subject)
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.measurements.iter().map(|measurement| Row::new(self, measurement))
    }
}

/// A collection of values of several cases and competitors, which can come in any order.
#[derive(Default)]
pub(crate) struct Samples(Vec<(Case, String, Metric, Vec<f64>)>);

impl Samples {
    pub(crate) fn record(&mut self, case: &Case, competitor: &str, metric: Metric, value: f64) {
        let known = self
            .0
            .iter_mut()
            .find(|(known, name, what, _)| known == case && name == competitor && *what == metric);
        match known {
            Some((.., values)) => values.push(value),
            None => self.0.push((case.clone(), competitor.to_owned(), metric, vec![value])),
        }
    }

    /// Adds the values to `results`, grouped by case.
    pub(crate) fn add_to(mut self, results: &mut Results) {
        let order: Vec<Case> = self.0.iter().map(|(case, ..)| case.clone()).collect();
        self.0.sort_by_key(|(case, ..)| order.iter().position(|known| known == case));
        for (case, competitor, metric, values) in &self.0 {
            results.add(case, competitor, *metric, values);
        }
    }
}

/// A line of `results.csv`.
#[derive(Serialize)]
pub(crate) struct Row<'a> {
    workload: &'a str,
    competitor: &'a str,
    size_bytes: usize,
    changed_pages: usize,
    pattern: Option<String>,
    residency: Option<String>,
    working_set: Option<String>,
    variant: &'a str,
    metric: &'a str,
    unit: &'a str,
    rounds: usize,
    median: f64,
    p99: f64,
    ratio_to_memsnap: Option<f64>,
}

impl<'a> Row<'a> {
    fn new(results: &Results, measurement: &'a Measurement) -> Self {
        let case = &measurement.case;
        Self {
            workload: case.workload,
            competitor: &measurement.competitor,
            size_bytes: case.bytes,
            changed_pages: case.changed,
            pattern: case.pattern.map(|pattern| pattern.to_string()),
            residency: case.residency.map(|residency| residency.to_string()),
            working_set: case.working_set.map(|set| set.to_string()),
            variant: &case.variant,
            metric: measurement.metric.name,
            unit: measurement.metric.unit,
            rounds: measurement.rounds,
            median: measurement.median,
            p99: measurement.p99,
            ratio_to_memsnap: results.ratio_to_subject(measurement),
        }
    }
}

/// Returns a quantile of ascending values, by the nearest rank.
pub(crate) fn quantile(sorted: &[f64], per_mille: usize) -> f64 {
    let rank = (sorted.len() * per_mille).div_ceil(1000);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
