//! Instances that are warmed up once, saved, and continued by the next process.
#![allow(unsafe_code)]

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use memsnap_store::Repository;
use wasmtime::{Config, Linker, Result, ensure};

use crate::report::{self, Times, ratio, time};
use crate::wasm::measure::{MEDIUM, MIB};
use crate::wasm::{Instance, KV, Program};

/// The name of the warm state.
const WARM: &str = "warm";

/// A way to get an initialised instance in a new process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Start {
    /// Instantiate the module and initialise it.
    Cold,
    /// Load the saved state into memory.
    Loaded,
    /// Map the saved state from the cache of the repository.
    Mapped,
}

impl Start {
    /// All ways, the one without memsnap first.
    pub const ALL: [Self; 3] = [Self::Cold, Self::Loaded, Self::Mapped];

    fn description(self) -> &'static str {
        match self {
            Self::Cold => "cold: instantiated, + `init`",
            Self::Loaded => "saved state, loaded",
            Self::Mapped => "saved state, mapped",
        }
    }
}

/// What a process that starts in one of the ways reports.
#[derive(Clone, Copy)]
pub struct Served {
    /// The time to compile the module, which all ways do.
    pub compile: Duration,
    /// The time from then until the instance can serve requests.
    pub ready: Duration,
    /// The time of the first request.
    pub request: Duration,
    /// The answer to the first request.
    pub answer: i64,
}

/// Makes a repository in a folder, and saves the state of an instance that has been initialised with `entries` entries.
///
/// Returns the length of its memory in bytes, the bytes that were stored, and the time that saving it took.
///
/// # Errors
///
/// Returns the errors of Wasmtime, memsnap and the store.
pub fn save(folder: &Path, entries: i32) -> Result<(usize, u64, Duration)> {
    let program = Program::new(Config::new(), KV)?;
    let state = cold(&program, entries)?.take_snapshot()?;
    let repository = Repository::create(folder)?;
    let start = Instant::now();
    let saved = state.save(&repository, WARM)?;
    let time = start.elapsed();
    Ok((state.memory().len(), repository.manifest(&saved)?.stored, time))
}

/// Starts in one of the ways, and serves one request.
///
/// # Errors
///
/// Returns the errors of Wasmtime, memsnap and the store.
pub fn serve(folder: &Path, start: Start, entries: i32) -> Result<Served> {
    let began = Instant::now();
    let program = Program::new(Config::new(), KV)?;
    let compile = began.elapsed();
    let mut instance = match start {
        Start::Cold => cold(&program, entries)?,
        Start::Loaded | Start::Mapped => warm(&program, folder, start)?,
    };
    let ready = began.elapsed() - compile;
    let request = instance.function::<(i64, i32), i64>("request")?;
    let began = Instant::now();
    let answer = request.call(instance.store_mut(), (1, MEDIUM))?;
    Ok(Served { compile, ready, request: began.elapsed(), answer })
}

fn cold(program: &Program, entries: i32) -> Result<Instance<()>> {
    let mut instance = program.instantiate(&Linker::new(program.engine()), ())?;
    let init = instance.function::<i32, ()>("init")?;
    init.call(instance.store_mut(), entries)?;
    Ok(instance)
}

fn warm(program: &Program, folder: &Path, start: Start) -> Result<Instance<()>> {
    let repository = Repository::open(folder)?;
    let saved = if start == Start::Mapped {
        // SAFETY: the folder belongs to this program, and only the store changes the files in its cache.
        unsafe { repository.map(WARM) }?
    } else {
        repository.load(WARM).run()?
    };
    let state = program.state_of(&repository, &saved)?;
    program.branch(&Linker::new(program.engine()), (), &state)
}

/// Measures starts of processes, in turns, and returns the record as Markdown.
///
/// `run` runs [`serve`] in a new process. It returns what that reports, and the time from the start of the process to its
/// end.
///
/// # Errors
///
/// Fails if two ways answer differently. Returns the errors of Wasmtime, memsnap, the store and `run`.
pub fn record(
    folder: &Path,
    entries: i32,
    rounds: usize,
    mut run: impl FnMut(Start) -> Result<(Served, Duration)>,
) -> Result<String> {
    let (len, stored, saving) = save(folder, entries)?;
    let mut times = vec![<[Times; 4]>::default(); Start::ALL.len()];
    let mut expected = None;
    for round in 0..=rounds {
        for (start, times) in Start::ALL.into_iter().zip(&mut times) {
            let (served, whole) = run(start)?;
            let first = *expected.get_or_insert(served.answer);
            ensure!(served.answer == first, "{start:?} answers {} instead of {first}", served.answer);
            // The first round fills the cache of the repository.
            if round > 0 {
                let parts = [whole, served.compile, served.ready, served.request];
                times.iter_mut().zip(parts).for_each(|(times, part)| times.extend([part]));
            }
        }
    }
    let cold = times[0][2].median();
    let rows = Start::ALL.into_iter().zip(&times).map(|(start, [whole, compile, ready, request])| {
        let [whole, compile, request] = [whole, compile, request].map(|times| time(times.median()));
        let ready = ready.median();
        [start.description().to_owned(), whole, compile, time(ready), request, ratio(ready, cold)]
    });
    let header = ["process", "in all", "compiling", "instance ready", "first request", "ready / cold"];
    let mut text = report::heading("Instances that the next process continues", "wasm");
    writeln!(
        text,
        "\nAn instance of `kv.wat` was initialised with {entries} entries, {:.1} MiB of linear memory. Its state was saved \
         once, in {} and {:.1} MiB. New processes then started in each way, {rounds} times in turns, and served one medium \
         request. All answered the same. Times are medians.\n\n{}",
        len as f64 / MIB,
        time(saving),
        stored as f64 / MIB,
        report::table(header, rows)
    )?;
    Ok(text)
}
