//! Makes chosen calls into the operating system fail, for tests. Applies to the calling thread only.
//!
//! The backends decide which calls can fail: they announce each of these with [`call`](super::call).
// The initializer is const, but the lint does not recognize the expansion of the macro on Windows.
#![allow(clippy::missing_const_for_thread_local)]

use std::cell::Cell;
use std::io;

thread_local! {
    static PLAN: Cell<Plan> = const { Cell::new(Plan { calls: 0, fail_from: u64::MAX, fail_until: u64::MAX }) };
}

#[cfg(unix)]
thread_local! {
    static STRICT: Cell<bool> = const { Cell::new(false) };
}

/// The calls that fail: those with numbers in `fail_from..fail_until`, counted from 0.
#[derive(Clone, Copy)]
struct Plan {
    calls: u64,
    fail_from: u64,
    fail_until: u64,
}

/// Runs `script`, in which `failures` calls fail, beginning with call number `first`.
///
/// Returns the result of the script and the number of calls it made.
pub(crate) fn inject<T>(first: u64, failures: u64, script: impl FnOnce() -> T) -> (T, u64) {
    PLAN.set(Plan { calls: 0, fail_from: first, fail_until: first.saturating_add(failures) });
    let result = script();
    let calls = PLAN.get().calls;
    PLAN.set(Plan { calls: 0, fail_from: u64::MAX, fail_until: u64::MAX });
    (result, calls)
}

/// Runs `script` without failures and without counting its calls.
pub(crate) fn suspend<T>(script: impl FnOnce() -> T) -> T {
    let plan = PLAN.replace(Plan { calls: 0, fail_from: u64::MAX, fail_until: u64::MAX });
    let result = script();
    PLAN.set(plan);
    result
}

/// Runs `script` as if the system used strict overcommit accounting.
#[cfg(unix)]
pub(crate) fn commit_strictly<T>(script: impl FnOnce() -> T) -> T {
    STRICT.set(true);
    let result = script();
    STRICT.set(false);
    result
}

/// Returns whether the calling thread is inside [`commit_strictly`].
#[cfg(unix)]
pub(super) fn commits_strictly() -> bool {
    STRICT.get()
}

/// Counts a call, and returns an error if the plan makes it fail.
pub(super) fn check(name: &'static str) -> io::Result<()> {
    let mut plan = PLAN.get();
    let call = plan.calls;
    plan.calls += 1;
    PLAN.set(plan);
    if (plan.fail_from..plan.fail_until).contains(&call) {
        return Err(io::Error::new(io::ErrorKind::OutOfMemory, format!("injected failure of {name}")));
    }
    Ok(())
}
