//! Many databases on one snapshot, which several threads open and use with different SQL.

use std::thread;

use anyhow::{Context as _, Result, ensure};
use rusqlite::Connection;

use super::fixture::{Database, Snapshot};
use super::shop;

/// Opens databases on `snapshot` and runs SQL in each of them, on several threads. All stay open.
///
/// # Errors
///
/// Returns errors of the databases.
pub fn open(snapshot: &Snapshot, copies: u32, threads: u32) -> Result<Vec<Database>> {
    on_threads(threads, (0..copies).collect(), |number| {
        let database = snapshot.open()?;
        write(&database, number).with_context(|| format!("SQL in database {number}"))?;
        Ok(database)
    })
}

/// Checks the databases that [`open`] returned, on several threads.
///
/// Each database must be intact, and contain what was written to it and nothing that was written to another one.
///
/// # Errors
///
/// Returns errors of the databases, and an error with the difference if a database does not have the expected rows.
pub fn check(snapshot: &Snapshot, databases: Vec<Database>, threads: u32) -> Result<Vec<Database>> {
    let before = shop::count(&*snapshot.open()?)?;
    let numbered = (0..).zip(databases).collect();
    on_threads(threads, numbered, |(number, database)| {
        has_its_own(&database, number, before).with_context(|| format!("database {number}"))?;
        Ok(database)
    })
}

/// Writes rows that depend on the number of the database.
fn write(sql: &Connection, number: u32) -> rusqlite::Result<()> {
    sql.execute("INSERT INTO customer (email, name, city) VALUES (?1 || '@copy', 'Copy', ?1)", [number])?;
    let transaction = sql.unchecked_transaction()?;
    sql.execute("DELETE FROM purchase WHERE id = ?1", [number + 1])?;
    sql.execute("UPDATE customer SET name = 'Copy ' || ?1 WHERE id <= 10", [number])?;
    transaction.commit()?;
    sql.execute_batch(&format!("CREATE TABLE copy_{number} AS SELECT * FROM customer WHERE id <= 100"))?;
    if number.is_multiple_of(10) {
        sql.execute_batch("DROP INDEX item_product; VACUUM")?;
    }
    Ok(())
}

/// Fails if a database does not have the rows that [`write`] wrote to it.
fn has_its_own(sql: &Connection, number: u32, before: [u32; 3]) -> Result<()> {
    let damage = shop::integrity(sql)?;
    ensure!(damage == "ok", "{damage}");

    let text = |query| sql.query_row(query, [], |row| row.get::<_, Option<String>>(0));
    let emails = text("SELECT group_concat(email) FROM customer WHERE email LIKE '%@copy'")?;
    ensure!(emails == Some(format!("{number}@copy")), "wrong customers were added: {emails:?}");
    let names =
        text("SELECT group_concat(DISTINCT name) FROM customer WHERE name LIKE 'Copy _%' AND id <= 10")?;
    ensure!(names == Some(format!("Copy {number}")), "wrong names of customers: {names:?}");
    let tables = text("SELECT group_concat(name) FROM sqlite_schema WHERE name LIKE 'copy%'")?;
    ensure!(tables == Some(format!("copy_{number}")), "wrong tables were created: {tables:?}");

    let missing = text(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < (SELECT max(id) FROM purchase))
         SELECT group_concat(i) FROM n WHERE i NOT IN (SELECT id FROM purchase)",
    )?;
    ensure!(missing == Some((number + 1).to_string()), "wrong purchases were deleted: {missing:?}");
    let [customers, purchases, _] = shop::count(sql)?;
    ensure!(
        (customers, purchases) == (before[0] + 1, before[1] - 1),
        "wrong numbers of rows: {customers} customers, {purchases} purchases"
    );
    Ok(())
}

/// Distributes the work to `threads` threads. Returns the results in the order of the work.
fn on_threads<T: Send, U: Send>(
    threads: u32,
    work: Vec<T>,
    job: impl Fn(T) -> Result<U> + Sync,
) -> Result<Vec<U>> {
    let mut parts: Vec<Vec<T>> = Vec::new();
    let most = work.len().div_ceil(threads.max(1) as usize).max(1);
    let mut work = work.into_iter().peekable();
    while work.peek().is_some() {
        parts.push(work.by_ref().take(most).collect());
    }
    let job = &job;
    thread::scope(|scope| {
        let threads: Vec<_> = parts
            .into_iter()
            .map(|part| scope.spawn(move || part.into_iter().map(job).collect::<Result<Vec<U>>>()))
            .collect();
        let mut done = Vec::new();
        for thread in threads {
            done.extend(thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??);
        }
        Ok(done)
    })
}
