//! The measurements of a run.

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

/// All measurements of a run.
#[derive(Default)]
pub(crate) struct Results {
    pub(crate) measurements: Vec<Measurement>,
}

impl Results {
    /// Adds a value of a metric.
    pub(crate) fn add(&mut self, [workload, way, metric]: [&'static str; 3], unit: Unit, value: f64) {
        let known = self
            .measurements
            .iter_mut()
            .find(|it| it.workload == workload && it.way == way && it.metric == metric);
        match known {
            Some(measurement) => measurement.values.push(value),
            None => {
                let values = vec![value];
                self.measurements.push(Measurement { workload, way, metric, unit, values });
            }
        }
    }

    /// Adds a number of bytes.
    pub(crate) fn bytes(&mut self, key: [&'static str; 3], bytes: f64) {
        self.add(key, Unit::Bytes, bytes);
    }

    /// Finds a measurement.
    pub(crate) fn get(&self, [workload, way, metric]: [&str; 3]) -> Option<&Measurement> {
        self.measurements.iter().find(|it| it.workload == workload && it.way == way && it.metric == metric)
    }

    /// Returns the median of a measurement.
    pub(crate) fn median(&self, key: [&str; 3]) -> Option<f64> {
        self.get(key).map(Measurement::median)
    }
}
