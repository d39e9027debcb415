//! The tables: what it costs to have a database back, or another one.

use std::hint::black_box;
use std::ops::RangeInclusive;

use anyhow::{Context as _, Result, ensure};

use super::contender::Source;
use super::fixture::Snapshot;
use super::shop::{self, Change, Rows};
use crate::report::{self, Times};

/// How often one way is measured before it is the next one's turn: a program that has its database back does that again
/// and again.
const TURN: u32 = 10;

/// The turns of at least so many rounds; before the first one of these, turn 0 is for warming up.
fn turns(rounds: u32) -> RangeInclusive<u32> {
    0..=rounds.div_ceil(TURN)
}

/// The changes that are undone, by what the tables call them.
#[must_use]
pub fn changes() -> [(&'static str, Change); 4] {
    [
        ("1 row", Change::Items(1)),
        ("100 rows", Change::Items(100)),
        ("10,000 rows", Change::Items(10_000)),
        ("`DROP TABLE`", Change::DropTable),
    ]
}

/// Changes a database, has it as it was and asks it something, in each way in turn, at least `rounds` times.
///
/// # Errors
///
/// Those of the databases; one that says so, if a database is not as it was.
pub fn resets(snapshot: &Snapshot, rows: Rows, rounds: u32) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let sources = Source::all(snapshot, folder.path().to_owned())?;
    let before = shop::first_bill(&*snapshot.open()?)?;
    let mut lines = Vec::new();
    for (name, change) in changes() {
        eprintln!("having the database back after {name}");
        let mut databases =
            sources.iter().map(|source| source.open(0).map(Some)).collect::<Result<Vec<_>>>()?;
        let mut times = vec![<[Times; 3]>::default(); sources.len()];
        for turn in turns(rounds) {
            if turn == 1 {
                times.fill_with(Default::default);
            }
            for ((source, slot), [change_only, reset_only, reset_and_query]) in
                sources.iter().zip(&mut databases).zip(&mut times)
            {
                for _ in 0..TURN {
                    let database = slot.take().context("a database that failed")?;
                    change_only.time(|| source.change(&database, |sql| change.make(sql, rows)))?;
                    let (database, after) = reset_and_query.time(|| {
                        let database = reset_only.time(|| source.reset(database))?;
                        let after = shop::first_bill(&database)?;
                        anyhow::Ok((database, after))
                    })?;
                    ensure!(
                        after == before,
                        "{}: {after:?} instead of {before:?} after {name}",
                        source.name()
                    );
                    *slot = Some(database);
                }
            }
        }
        let own = times[0][2].median();
        for ((source, database), [change_only, reset_only, reset_and_query]) in
            sources.iter().zip(databases).zip(times)
        {
            let counts = shop::count(&*database.context("a database that failed")?)?;
            let expected = [rows.customers, rows.purchases, rows.items];
            ensure!(counts == expected, "{}: {counts:?} rows instead of {expected:?}", source.name());
            lines.push([
                format!("{name}: {}", source.name()),
                report::time(change_only.median()),
                report::time(reset_only.median()),
                report::time(reset_and_query.median()),
                report::time(reset_and_query.p99()),
                report::ratio(reset_and_query.median(), own),
            ]);
        }
    }
    let header = ["changed: way back", "change", "back", "back + query", "p99", "to memsnap"];
    Ok(report::table(header, lines).to_string())
}

/// Opens a database and asks it something, in each way in turn, at least `rounds` times.
///
/// # Errors
///
/// Those of the databases.
pub fn opens(snapshot: &Snapshot, rounds: u32) -> Result<String> {
    eprintln!("opening databases");
    let folder = tempfile::tempdir()?;
    let sources = Source::all(snapshot, folder.path().to_owned())?;
    let sources: Vec<_> = sources.iter().filter(|source| !matches!(source, Source::Rollback(_))).collect();
    let mut times = vec![Times::default(); sources.len()];
    for turn in turns(rounds) {
        if turn == 1 {
            times.fill_with(Times::default);
        }
        for (source, times) in sources.iter().zip(&mut times) {
            for _ in 0..TURN {
                let opened = times.time(|| {
                    let database = source.open(0)?;
                    black_box(shop::first_bill(&database)?);
                    anyhow::Ok(database)
                });
                drop(opened?);
            }
        }
    }
    let own = times[0].median();
    let lines = sources.iter().zip(&times).map(|(source, times)| {
        let (median, p99) = (times.median(), times.p99());
        [source.name().to_owned(), report::time(median), report::time(p99), report::ratio(median, own)]
    });
    Ok(report::table(["a new database from", "open + query", "p99", "to memsnap"], lines).to_string())
}

/// The memory in bytes that `copies` databases take from the source at `index` of [`Source::all`], once 10 rows were
/// changed in each and all was read; without the source itself.
///
/// What a process has freed it may keep, and use again: measure only one source in a process.
///
/// # Errors
///
/// Those of the databases; one that says so, where the system does not tell how much memory a process has.
pub fn memory_of(index: usize, snapshot: &Snapshot, rows: Rows, copies: u32) -> Result<u64> {
    let folder = tempfile::tempdir()?;
    let sources = Source::all(snapshot, folder.path().to_owned())?;
    let source = sources.get(index).with_context(|| format!("there is no source {index}"))?;
    let measured = || report::memory().context("this system does not tell how much memory a process has");
    let before = measured()?;
    let mut databases = Vec::new();
    for number in 0..copies {
        let database = source.open(number)?;
        source.change(&database, |sql| Change::Items(10).make(sql, rows))?;
        ensure!(shop::integrity(&database)? == "ok", "{}: a damaged database", source.name());
        databases.push(database);
    }
    Ok(measured()?.saturating_sub(before))
}

/// The table of what [`memory_of`] tells for each source.
///
/// # Errors
///
/// Those of `memory_of`, and those of the databases.
pub fn memory(snapshot: &Snapshot, copies: u32, memory_of: impl Fn(usize) -> Result<u64>) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let mut lines = Vec::new();
    let mut least = None;
    for (index, source) in Source::all(snapshot, folder.path().to_owned())?.iter().enumerate() {
        if matches!(source, Source::Rollback(_)) {
            continue; // as `Backup`
        }
        eprintln!("memory of {copies} databases: {}", source.name());
        let taken = memory_of(index)? as f64;
        let files = if matches!(source, Source::File(_)) { copies as usize * snapshot.size() } else { 0 };
        let ratio = taken / *least.get_or_insert(taken);
        lines.push([
            source.name().to_owned(),
            mebibytes(taken),
            mebibytes(taken / f64::from(copies)),
            format!("{} x", report::three_digits(ratio)),
            mebibytes(files as f64),
        ]);
    }
    Ok(report::table(["databases from", "memory", "each", "to memsnap", "files"], lines).to_string())
}

fn mebibytes(bytes: f64) -> String {
    format!("{} MiB", report::three_digits(bytes / f64::from(1 << 20)))
}
