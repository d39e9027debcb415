//! Measurements of resetting a database and of opening a new one, as tables.

use std::hint::black_box;
use std::ops::RangeInclusive;

use anyhow::{Context as _, Result, ensure};

use super::contender::Source;
use super::fixture::Snapshot;
use super::shop::{self, Change, Rows};
use crate::report::{self, Times};

/// Rounds of a source in a row, like in a program that resets its database repeatedly.
const TURN: u32 = 10;

/// Returns the numbers of the turns for at least this many rounds. Turn 0 comes before them and warms up.
fn turns(rounds: u32) -> RangeInclusive<u32> {
    0..=rounds.div_ceil(TURN)
}

/// Returns the changes that are undone, with their names in the tables.
#[must_use]
pub fn changes() -> [(&'static str, Change); 4] {
    [
        ("1 row", Change::Items(1)),
        ("100 rows", Change::Items(100)),
        ("10,000 rows", Change::Items(10_000)),
        ("`DROP TABLE`", Change::DropTable),
    ]
}

/// Changes a database, resets it and runs a query, at least `rounds` times for each source. The sources take turns.
///
/// # Errors
///
/// Returns errors of the databases, and an error if a database was not reset.
pub fn resets(snapshot: &Snapshot, rows: Rows, rounds: u32) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let sources = Source::all(snapshot, folder.path().to_owned())?;
    let before = shop::first_bill(&*snapshot.open()?)?;
    let mut lines = Vec::new();
    for (name, change) in changes() {
        eprintln!("resetting the database after {name}");
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
                    let database = slot.take().context("an earlier call for this database failed")?;
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
            let counts = shop::count(&*database.context("an earlier call for this database failed")?)?;
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
    let header = ["change: source", "change", "reset", "reset + query", "p99", "/ memsnap"];
    Ok(report::table(header, lines).to_string())
}

/// Opens a database and runs a query, at least `rounds` times for each source. The sources take turns.
///
/// # Errors
///
/// Returns errors of the databases.
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
    Ok(report::table(["source", "open + query", "p99", "/ memsnap"], lines).to_string())
}

/// Measures the memory of `copies` databases from the source at `index` of [`Source::all`], in bytes.
///
/// Changes 10 rows in each database and reads all of it. The memory of the source is not included.
///
/// A process may keep memory that it has freed, and use it again. So measure only one source in a process.
///
/// # Errors
///
/// Returns errors of the databases, and an error if the system does not report the memory of a process.
pub fn memory_of(index: usize, snapshot: &Snapshot, rows: Rows, copies: u32) -> Result<u64> {
    let folder = tempfile::tempdir()?;
    let sources = Source::all(snapshot, folder.path().to_owned())?;
    let source = sources.get(index).with_context(|| format!("there is no source with the number {index}"))?;
    let measured = || report::memory().context("this system does not report the memory of a process");
    let before = measured()?;
    let mut databases = Vec::new();
    for number in 0..copies {
        let database = source.open(number)?;
        source.change(&database, |sql| Change::Items(10).make(sql, rows))?;
        ensure!(shop::integrity(&database)? == "ok", "{}: the database is damaged", source.name());
        databases.push(database);
    }
    Ok(measured()?.saturating_sub(before))
}

/// Makes a table of the results of `memory_of` for each source; see [`memory_of`].
///
/// # Errors
///
/// Returns errors of `memory_of` and of the databases.
pub fn memory(snapshot: &Snapshot, copies: u32, memory_of: impl Fn(usize) -> Result<u64>) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let mut lines = Vec::new();
    let mut least = None;
    for (index, source) in Source::all(snapshot, folder.path().to_owned())?.iter().enumerate() {
        if matches!(source, Source::Rollback(_)) {
            continue; // the same as `Backup`
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
    Ok(report::table(["source", "memory", "of each database", "/ memsnap", "files"], lines).to_string())
}

fn mebibytes(bytes: f64) -> String {
    format!("{} MiB", report::three_digits(bytes / f64::from(1 << 20)))
}
