//! The random decisions of a script, and a record of its operations.

use std::io::{self, Write as _};

use crate::sys::fault;

/// The random numbers of a seed, and the operations so far.
pub(super) struct Chance {
    state: u64,
    print: bool,
    pub(super) step: usize,
    names: usize,
    /// The operations so far, with their results.
    pub(super) trace: Vec<String>,
    /// Whether a system call failed in the last operation.
    pub(super) failed: bool,
    /// The number of operations in which a system call failed.
    pub(super) failures: usize,
}

/// The system calls of an operation that fail.
#[derive(Clone, Copy)]
struct Plan {
    first: u64,
    calls: u64,
}

impl Chance {
    pub(super) fn new(seed: u64, print: bool) -> Self {
        Self { state: seed, print, step: 0, names: 0, trace: Vec::new(), failed: false, failures: 0 }
    }

    /// Returns the next number of SplitMix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `limit`, which must not be 0.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap_or(0)
    }

    /// Returns true in one of `times` cases.
    pub(super) fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub(super) fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// Picks an item. The probability of each item is proportional to its weight.
    pub(super) fn weighted<T: Copy>(&mut self, items: &[(usize, T)]) -> T {
        let mut left = self.below(items.iter().map(|(weight, _)| weight).sum());
        for &(weight, item) in items {
            if left < weight {
                return item;
            }
            left -= weight;
        }
        unreachable!("the weights add up")
    }

    /// Returns a new name that starts with `kind`.
    pub(super) fn name(&mut self, kind: char) -> String {
        self.names += 1;
        format!("{kind}{}", self.names)
    }

    fn plan(&mut self) -> Option<Plan> {
        if self.one_in(2) {
            return None;
        }
        // Most operations make few system calls.
        let few = self.pick(&[0, 0, 1, 1, 1, 2, 2, 3, 3]);
        let some = self.below(12);
        let many = self.below(50);
        let first = self.pick(&[few, few, few, few, some, many]) as u64;
        Some(Plan { first, calls: self.pick(&[1, 1, 5, u64::MAX]) })
    }

    /// Adds a line to the record.
    pub(super) fn note(&mut self, line: String) {
        if self.print {
            let _ = writeln!(io::stderr(), "{line}");
        }
        self.trace.push(line);
    }

    /// Runs `operation`, in which system calls may fail. Sets `self.failed` if one did.
    pub(super) fn call<T>(&mut self, what: &str, operation: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let plan = self.plan();
        let Plan { first, calls } = plan.unwrap_or(Plan { first: u64::MAX, calls: 0 });
        let how = match plan {
            None => String::new(),
            Some(Plan { calls: u64::MAX, .. }) => format!(", calls from {first} on fail"),
            Some(Plan { calls: 1, .. }) => format!(", call {first} fails"),
            Some(_) => format!(", {calls} calls from {first} on fail"),
        };
        let step = self.step;
        self.note(format!("{step}: {what}{how}"));
        let (result, made) = fault::inject(first, calls, operation);
        self.failed = calls > 0 && made > first;
        self.failures += usize::from(self.failed);
        let failed = if self.failed { "" } else { " (no call failed)" };
        match &result {
            Err(error) => self.note(format!("    error{failed}: {error}")),
            Ok(_) if plan.is_some() => self.note(format!("    ok{failed}")),
            Ok(_) => {}
        }
        result
    }

    /// Drops `value`. System calls may fail meanwhile.
    pub(super) fn drop<T>(&mut self, name: &str, value: T) {
        let dropped = self.call(&format!("drop {name}"), || {
            drop(value);
            Ok(())
        });
        debug_assert!(dropped.is_ok());
    }
}
