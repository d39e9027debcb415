//! A random script of all operations, in which system calls fail at random.
//!
//! A seed determines the whole script: the snapshots and views, the operations on them, and the calls that
//! fail. One call may fail, or five, or all from one on. About half of the operations run without a failure.
//! After each operation, byte vectors are used to check what the documentation guarantees:
//!
//! - a failed call leaves all snapshots as they were;
//! - a failed call leaves a view as it was, except for a failed restore, after which the view may show any
//!   bytes. A snapshot of it then holds exactly these bytes, and the next restore is exact. On Windows, after a
//!   failed restore or `zero`, the view may have no bytes until a restore;
//! - bytes that are excluded from a restore stay, even if the restore fails;
//! - if the end of a mutable view fails, nothing is lost, and the error is reported once.
//!
//! | environment variable | effect |
//! |---|---|
//! | none | runs the first seeds, which takes about ten seconds |
//! | `MEMSNAP_SCRIPT_SECONDS=600` | runs seeds for this time |
//! | `MEMSNAP_SCRIPT_SEED=7` | runs this seed only, and prints each operation before it runs |
//! | both | runs seeds from this one on, for this time |

mod chance;
mod held;
mod opening;
mod script;
mod watched;

use std::any::Any;
use std::env;
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use chance::Chance;
use script::Script;

/// The number of seeds that run by default.
const SEEDS: u64 = 300;

/// The longest time for these seeds on a slow machine, such as an emulated one.
const AT_MOST: Duration = Duration::from_secs(30);

/// The number of operations of a seed.
const STEPS: usize = 60;

/// The number of seeds after which a long run reports its progress.
const REPORT: u64 = 200;

#[test]
fn a_random_script_with_failures_keeps_every_promise() {
    let (seed, seconds) = (number("MEMSNAP_SCRIPT_SEED"), number("MEMSNAP_SCRIPT_SECONDS"));
    let first = seed.unwrap_or(0);
    let (last, time, print) = match (seed, seconds) {
        (Some(seed), None) => (seed, Duration::MAX, true),
        (_, Some(seconds)) => (u64::MAX, Duration::from_secs(seconds), false),
        (None, None) => (SEEDS - 1, AT_MOST, false),
    };
    let start = Instant::now();
    let mut failed = 0;
    for seed in first..=last {
        failed += run(seed, print);
        let over = seed == last || start.elapsed() >= time;
        if over || (seed - first + 1).is_multiple_of(REPORT) {
            // This is printed even if the output of tests is captured.
            let _ = writeln!(
                io::stderr(),
                "\nfault_script: seeds {first} to {seed} passed, in which {failed} operations met a failure"
            );
        }
        if over {
            break;
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    let value = env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is not a number")))
}

/// Runs the script of one seed. Returns the number of operations that met a failure.
fn run(seed: u64, print: bool) -> usize {
    let mut script = Script::new(Chance::new(seed, print));
    let ended = catch_unwind(AssertUnwindSafe(|| {
        for _ in 0..STEPS {
            script.step();
        }
        script.finish();
    }));
    if let Err(panic) = ended {
        let chance = script.chance();
        let (step, trace) = (chance.step, chance.trace.join("\n"));
        // The values in the script may be in a state in which their destructors fail too.
        std::mem::forget(script);
        panic!(
            "seed {seed} failed in step {step}: {}\nrun it alone with MEMSNAP_SCRIPT_SEED={seed} cargo test --lib \
             fault_script (and the same MEMSNAP_TIER and RUSTFLAGS, if any)\n{trace}",
            message(&*panic)
        );
    }
    script.chance().failures
}

fn message(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(message), _) => message,
        (None, Some(message)) => message,
        (None, None) => "a panic without a message",
    }
}
