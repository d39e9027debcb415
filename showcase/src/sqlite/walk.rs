//! A walk through the uses of a database in a view, and of many databases on its snapshot. Each step is checked.

use anyhow::{Result, ensure};
use rusqlite::Connection;

use super::fixture::Snapshot;
use super::isolation;
use super::shop::{self, Rows};
use crate::report::{self, Times};

const PURCHASES: u32 = 1_000;

/// Runs the steps with a database that has these `rows` and can have up to `capacity` bytes.
///
/// Returns the snapshot of the database before the changes, and a table of the steps.
///
/// # Errors
///
/// Returns errors of the databases, and an error if a database does not have the expected content.
pub fn run(rows: Rows, capacity: usize, copies: u32, threads: u32) -> Result<(Snapshot, String)> {
    let mut lines = Vec::new();
    let mut step = |name: &str, times: Times, [customers, purchases, items]: [u32; 3]| {
        eprintln!("{name}");
        let counts = [customers, purchases, items].map(|count| count.to_string());
        let [customers, purchases, items] = counts;
        lines.push([name.to_owned(), report::time(times.median()), customers, purchases, items]);
    };
    let at_first = [rows.customers, rows.purchases, rows.items];

    let mut times = Times::default();
    let snapshot = times.time(|| Snapshot::build(capacity, |sql| rows.create(sql)))?;
    step("`Snapshot::build`", times, at_first);

    let mut times = Times::default();
    let mut database = times.time(|| snapshot.open())?;
    step("`open`", times, whole(&database, at_first)?);

    let mut times = Times::default();
    times.time(|| shop::buy(&database, PURCHASES))?;
    let more = [rows.customers, rows.purchases + PURCHASES, rows.items + PURCHASES];
    step("`INSERT` of 1,000 purchases and their items", times, whole(&database, more)?);

    let mut times = Times::default();
    let live = times.time(|| database.take_snapshot())?;
    step("`take_snapshot`", times, whole(&database, more)?);

    let mut times = Times::default();
    times.time(|| {
        database
            .execute_batch("DELETE FROM customer WHERE id % 2 = 0; DELETE FROM item WHERE id % 3 = 0; VACUUM")
    })?;
    let fewer = shop::count(&database)?;
    ensure!(fewer.iter().zip(more).all(|(fewer, more)| *fewer < more), "{fewer:?} rows are left of {more:?}");
    step("`DELETE` of more than half, `VACUUM`", times, whole(&database, fewer)?);

    let mut times = Times::default();
    times.time(|| database.restore_to(&live))?;
    step("`restore_to` the snapshot taken", times, whole(&database, more)?);

    let mut times = Times::default();
    times.time(|| database.restore())?;
    step("`restore`", times, whole(&database, at_first)?);

    let mut times = Times::default();
    let databases = times.time(|| isolation::open(&snapshot, copies, threads))?;
    step(
        &format!("`open` and SQL in {copies} databases on {threads} threads"),
        times,
        whole(&database, at_first)?,
    );

    let mut times = Times::default();
    drop(times.time(|| isolation::check(&snapshot, databases, threads))?);
    step("check that each is intact and has its own rows", times, whole(&database, at_first)?);

    Ok((snapshot, report::table(["step", "time", "customers", "purchases", "items"], lines).to_string()))
}

/// Returns the numbers of rows. Fails if they are not as expected or if the database is damaged.
fn whole(sql: &Connection, expected: [u32; 3]) -> Result<[u32; 3]> {
    let counts = shop::count(sql)?;
    ensure!(counts == expected, "{counts:?} rows instead of {expected:?}");
    let damage = shop::integrity(sql)?;
    ensure!(damage == "ok", "{damage}");
    Ok(counts)
}
