//! The life of one database, and of many opened on its snapshot: every step is checked.

use anyhow::{Result, ensure};
use rusqlite::Connection;

use super::fixture::Snapshot;
use super::isolation;
use super::shop::{self, Rows};
use crate::report::{self, Times};

const PURCHASES: u32 = 1_000;

/// Goes through the steps with a database of so many `rows` that can take up to `capacity` bytes.
///
/// Returns the database as it was at first, and a table of the steps.
///
/// # Errors
///
/// Those of the databases; one that tells what was found, if a database has not what it should have.
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
    step("check that each is whole and has its own", times, whole(&database, at_first)?);

    Ok((snapshot, report::table(["step", "time", "customers", "purchases", "items"], lines).to_string()))
}

/// The rows that there are, if they are as many as expected and the database is in order.
fn whole(sql: &Connection, expected: [u32; 3]) -> Result<[u32; 3]> {
    let counts = shop::count(sql)?;
    ensure!(counts == expected, "{counts:?} rows instead of {expected:?}");
    let damage = shop::integrity(sql)?;
    ensure!(damage == "ok", "{damage}");
    Ok(counts)
}
