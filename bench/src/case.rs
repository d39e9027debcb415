//! `Case`: the parameters of a measurement, without the competitor.

use std::fmt;

use crate::pages::{Changes, Pattern, Residency, WorkingSet};

pub(crate) const KIB: usize = 1 << 10;
pub(crate) const MIB: usize = 1 << 20;
pub(crate) const GIB: usize = 1 << 30;
pub(crate) const TIB: usize = 1 << 40;

/// One set of parameters. A parameter that does not apply is `None`, 0 or empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Case {
    pub(crate) workload: &'static str,
    pub(crate) bytes: usize,
    pub(crate) changed: usize,
    pub(crate) pattern: Option<Pattern>,
    pub(crate) residency: Option<Residency>,
    pub(crate) working_set: Option<WorkingSet>,
    pub(crate) variant: String,
}

impl Case {
    /// Returns the base case of a workload. Most of its other cases differ from this one in one parameter.
    pub(crate) fn base(workload: &'static str) -> Self {
        Self {
            workload,
            bytes: GIB,
            changed: 256,
            pattern: Some(Pattern::Random),
            residency: Some(Residency::Resident),
            working_set: Some(WorkingSet::Recurring),
            variant: String::new(),
        }
    }

    /// Returns a case that has only a size and a variant.
    pub(crate) fn of_size(workload: &'static str, bytes: usize, variant: &str) -> Self {
        Self {
            workload,
            bytes,
            changed: 0,
            pattern: None,
            residency: None,
            working_set: None,
            variant: variant.to_owned(),
        }
    }

    pub(crate) fn bytes(self, bytes: usize) -> Self {
        let changed = self.changed.min(bytes / memsnap::page_size());
        Self { bytes, changed, ..self }
    }

    pub(crate) fn changed(self, changed: usize) -> Self {
        Self { changed, ..self }
    }

    pub(crate) fn pattern(self, pattern: Pattern) -> Self {
        Self { pattern: Some(pattern), ..self }
    }

    pub(crate) fn sparse(self) -> Self {
        Self { residency: Some(Residency::Sparse), ..self }
    }

    pub(crate) fn moving(self) -> Self {
        Self { working_set: Some(WorkingSet::Moving), ..self }
    }

    pub(crate) fn variant(self, variant: &str) -> Self {
        Self { variant: variant.to_owned(), ..self }
    }

    pub(crate) fn pages(&self) -> usize {
        self.bytes / memsnap::page_size()
    }

    pub(crate) fn is_resident(&self) -> bool {
        self.residency == Some(Residency::Resident)
    }

    pub(crate) fn changes(&self) -> Changes {
        let pattern = self.pattern.unwrap_or(Pattern::Random);
        let working_set = self.working_set.unwrap_or(WorkingSet::Recurring);
        Changes::new(self.pages(), self.changed, pattern, working_set)
    }

    /// Returns all parameters except the workload, as text.
    pub(crate) fn parameters(&self) -> String {
        let mut parts = vec![size(self.bytes)];
        if self.changed > 0 {
            parts.push(format!("{} changed", self.changed));
        }
        parts.extend(self.pattern.map(|pattern| pattern.to_string()));
        parts.extend(self.residency.map(|residency| residency.to_string()));
        parts.extend(self.working_set.map(|set| set.to_string()));
        if !self.variant.is_empty() {
            parts.push(self.variant.clone());
        }
        parts.join(", ")
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.workload, self.parameters())
    }
}

/// Formats a size in the largest unit of which it is a whole number, or in KiB.
pub(crate) fn size(bytes: usize) -> String {
    match bytes {
        TIB.. if bytes.is_multiple_of(TIB) => format!("{} TiB", bytes / TIB),
        GIB.. if bytes.is_multiple_of(GIB) => format!("{} GiB", bytes / GIB),
        MIB.. if bytes.is_multiple_of(MIB) => format!("{} MiB", bytes / MIB),
        _ => format!("{} KiB", bytes / KIB),
    }
}
