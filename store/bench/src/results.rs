//! The measurements of a run.

use std::time::Duration;

use serde::Serialize;

/// The unit of a metric.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Unit {
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// A number without a unit.
    Number,
}

/// The values of one metric, for one way to do the work.
#[derive(Serialize)]
pub(crate) struct Measurement {
    pub(crate) workload: &'static str,
    pub(crate) place: &'static str,
    pub(crate) way: &'static str,
    pub(crate) metric: &'static str,
    pub(crate) unit: Unit,
    pub(crate) values: Vec<f64>,
}

impl Measurement {
    /// Returns the median. There is at least one value.
    pub(crate) fn median(&self) -> f64 {
        let values = self.sorted();
        let middle = values.len() / 2;
        if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        }
    }

    /// Returns the mean.
    pub(crate) fn mean(&self) -> f64 {
        self.values.iter().sum::<f64>() / self.values.len() as f64
    }

    /// Returns the greatest value.
    pub(crate) fn max(&self) -> f64 {
        self.values.iter().copied().fold(f64::MIN, f64::max)
    }

    fn sorted(&self) -> Vec<f64> {
        let mut values = self.values.clone();
        values.sort_by(f64::total_cmp);
        values
    }
}

/// All measurements of a run, and the reasons for missing ones.
#[derive(Default)]
pub(crate) struct Results {
    pub(crate) measurements: Vec<Measurement>,
    pub(crate) skipped: Vec<String>,
}

/// The name of the metric for times.
pub(crate) const TIME: &str = "time";
/// The name of the metric for the bytes that a repository or a file takes.
pub(crate) const STORED: &str = "stored";
/// The name of the metric for the bytes that a process wrote with system calls.
pub(crate) const WRITTEN: &str = "written";

impl Results {
    /// Adds a value of a metric.
    pub(crate) fn add(&mut self, [workload, place, way, metric]: [&'static str; 4], unit: Unit, value: f64) {
        let known = self
            .measurements
            .iter_mut()
            .find(|it| it.workload == workload && it.place == place && it.way == way && it.metric == metric);
        match known {
            Some(measurement) => measurement.values.push(value),
            None => {
                let values = vec![value];
                self.measurements.push(Measurement { workload, place, way, metric, unit, values });
            }
        }
    }

    /// Adds the time of a call.
    pub(crate) fn time(&mut self, [workload, place, way]: [&'static str; 3], time: Duration) {
        self.add([workload, place, way, TIME], Unit::Seconds, time.as_secs_f64());
    }

    /// Adds a number of bytes.
    pub(crate) fn bytes(&mut self, key: [&'static str; 4], bytes: u64) {
        self.add(key, Unit::Bytes, bytes as f64);
    }

    /// Finds a measurement.
    pub(crate) fn get(&self, [workload, place, way, metric]: [&str; 4]) -> Option<&Measurement> {
        self.measurements
            .iter()
            .find(|it| it.workload == workload && it.place == place && it.way == way && it.metric == metric)
    }

    /// Returns the median of a measurement.
    pub(crate) fn median(&self, key: [&str; 4]) -> Option<f64> {
        self.get(key).map(Measurement::median)
    }

    /// Adds the reason for a missing measurement, unless it was added before.
    pub(crate) fn skip(&mut self, reason: String) {
        if !self.skipped.contains(&reason) {
            self.skipped.push(reason);
        }
    }
}
