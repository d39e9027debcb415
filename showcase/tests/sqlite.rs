//! Databases in views: a restore must also reset the state that SQLite keeps outside of the memory.

use std::fs;
use std::mem;

use memsnap_showcase::sqlite::fixture::{Database, Error, Snapshot};
use memsnap_showcase::sqlite::shop::{self, Change, Rows};
use memsnap_showcase::sqlite::{isolation, walk};
use rusqlite::backup::Backup;
use rusqlite::{Connection, ErrorCode, MAIN_DB, ffi};

const CAPACITY: usize = 4 << 20;

type Outcome = anyhow::Result<()>;

/// Makes a snapshot of a database with a table of two rows.
fn small() -> anyhow::Result<Snapshot> {
    let two = "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT); INSERT INTO t (v) VALUES ('one'), ('two')";
    Ok(Snapshot::build(CAPACITY, |sql| sql.execute_batch(two))?)
}

fn values(sql: &Connection) -> rusqlite::Result<String> {
    sql.prepare_cached("SELECT group_concat(v, ' ') FROM t")?.query_row([], |row| row.get(0))
}

fn pragma(sql: &Connection, name: &str) -> rusqlite::Result<i64> {
    sql.pragma_query_value(None, name, |row| row.get(0))
}

/// Asserts that the database is intact, and has the same bytes as `snapshot`.
fn assert_same(database: &Database, snapshot: &Snapshot) -> Outcome {
    assert_eq!(shop::integrity(database)?, "ok");
    let taken = database.take_snapshot()?;
    assert_eq!(taken.size(), snapshot.size());
    assert!(taken.memory().diff(snapshot.memory())?.is_empty());
    Ok(())
}

/// Runs a test with a connection that reads pages in place, and with one that reads copies in its cache.
fn in_both_ways(test: impl Fn(Database) -> Outcome) -> Outcome {
    test(small()?.open()?)?;
    let copied = small()?.open()?;
    copied.pragma_update(None, "mmap_size", 0)?;
    test(copied)
}

/// Returns the size of the connection's cache of pages.
fn cached(sql: &Connection) -> i32 {
    let (mut bytes, mut highest) = (0, 0);
    // SAFETY: the handle is used for the next call only, during which the connection stays open.
    let handle = unsafe { sql.handle() };
    // SAFETY: the connection is open, and the pointers to both numbers are valid for writes.
    let code = unsafe {
        ffi::sqlite3_db_status(handle, ffi::SQLITE_DBSTATUS_CACHE_USED, &raw mut bytes, &raw mut highest, 0)
    };
    assert_eq!(code, ffi::SQLITE_OK);
    bytes
}

#[test]
fn pages_are_read_in_place() -> Outcome {
    let rows = Rows::share_out(5_000);
    let mut database = Snapshot::build(CAPACITY, |sql| rows.create(sql))?.open()?;
    for _ in 0..2 {
        assert_eq!(shop::integrity(&database)?, "ok");
        assert!(cached(&database) < 20_000, "{}", cached(&database));
        database.restore()?;
    }
    database.pragma_update(None, "mmap_size", 0)?;
    assert_eq!(shop::integrity(&database)?, "ok");
    assert!(cached(&database) > 100_000, "{}", cached(&database));
    Ok(())
}

/// Reads the counter of changes, by which connections detect writes of others, and the counter of the schema.
fn counters(snapshot: &Snapshot) -> anyhow::Result<[[u8; 4]; 2]> {
    let mut header = [0; 44];
    snapshot.memory().read_at(&mut header, 0)?;
    Ok([header[24..28].try_into()?, header[40..44].try_into()?])
}

#[test]
fn steps_of_the_demonstration() -> Outcome {
    let rows = Rows::share_out(5_000);
    let (snapshot, table) = walk::run(rows, CAPACITY, 4, 2)?;
    assert!(table.contains("take_snapshot"));
    assert_eq!(shop::count(&*snapshot.open()?)?, [500, 1_500, 3_000]);
    Ok(())
}

#[test]
fn a_hundred_databases_on_eight_threads_see_only_their_own() -> Outcome {
    let rows = Rows::share_out(2_000);
    let snapshot = Snapshot::build(CAPACITY, |sql| rows.create(sql))?;
    let databases = isolation::open(&snapshot, 100, 8)?;
    let mut databases = isolation::check(&snapshot, databases, 8)?;
    assert_eq!(databases.len(), 100);
    databases.rotate_left(1);
    assert!(
        isolation::check(&snapshot, vec![databases.remove(0)], 1).is_err(),
        "the check accepts a database with another number"
    );
    for database in &mut databases {
        database.restore()?;
        assert_same(database, &snapshot)?;
    }
    Ok(())
}

#[test]
fn every_change_is_undone() -> Outcome {
    let rows = Rows::share_out(5_000);
    let snapshot = Snapshot::build(CAPACITY, |sql| rows.create(sql))?;
    let mut database = snapshot.open()?;
    let bill = shop::first_bill(&database)?;
    for change in [Change::Items(1), Change::Items(100), Change::Items(10_000), Change::DropTable] {
        change.make(&database, rows)?;
        assert!(!database.take_snapshot()?.memory().diff(snapshot.memory())?.is_empty());
        database.restore()?;
        assert_eq!(shop::first_bill(&database)?, bill);
        assert_same(&database, &snapshot)?;
    }
    Ok(())
}

#[test]
fn branches_with_equal_change_counters() -> Outcome {
    in_both_ways(|mut database| {
        database.execute_batch("UPDATE t SET v = 'left' WHERE id = 1")?;
        let left = database.take_snapshot()?;
        database.restore()?;
        database.execute_batch("UPDATE t SET v = 'right' WHERE id = 1")?;
        let right = database.take_snapshot()?;
        assert_eq!(counters(&left)?, counters(&right)?);

        for _ in 0..2 {
            assert_eq!(values(&database)?, "right two");
            database.restore_to(&left)?;
            assert_eq!(values(&database)?, "left two");
            database.restore_to(&right)?;
        }
        Ok(())
    })
}

#[test]
fn branches_with_equal_schema_cookies() -> Outcome {
    in_both_ways(|mut database| {
        database.execute_batch("CREATE TABLE x (a)")?;
        let left = database.take_snapshot()?;
        database.restore()?;
        database.execute_batch("CREATE TABLE x (b, c)")?;
        let right = database.take_snapshot()?;
        assert_eq!(counters(&left)?, counters(&right)?);

        let columns =
            |sql: &Connection| sql.prepare("SELECT * FROM x").map(|statement| statement.column_count());
        assert_eq!(columns(&database)?, 2);
        database.restore_to(&left)?;
        database.execute("INSERT INTO x (a) VALUES (1)", [])?;
        assert!(database.execute("INSERT INTO x (b) VALUES (1)", []).is_err());
        assert_eq!(columns(&database)?, 1);
        Ok(())
    })
}

#[test]
fn a_database_that_grew() -> Outcome {
    in_both_ways(|mut database| {
        let pages = pragma(&database, "page_count")?;
        database.execute_batch("UPDATE t SET v = hex(randomblob(300000))")?;
        let large = database.take_snapshot()?;
        assert!(large.size() > 1 << 20);

        database.restore()?;
        assert_eq!(pragma(&database, "page_count")?, pages);
        assert_eq!(values(&database)?, "one two");
        database.execute_batch("INSERT INTO t (v) VALUES (zeroblob(100000))")?; // writes where the large database was
        assert_eq!(shop::integrity(&database)?, "ok");

        database.restore_to(&large)?;
        assert_eq!(values(&database)?.len(), 1_200_001);
        assert_same(&database, &large)
    })
}

#[test]
fn a_database_that_shrank() -> Outcome {
    let rows = Rows::share_out(5_000);
    let snapshot = Snapshot::build(CAPACITY, |sql| rows.create(sql))?;
    let mut database = snapshot.open()?;
    database.execute_batch("DELETE FROM customer; VACUUM")?;
    let little = database.take_snapshot()?;
    assert!(little.size() < snapshot.size() / 2);

    database.restore()?;
    assert_same(&database, &snapshot)?;
    database.restore_to(&little)?;
    assert_eq!(shop::count(&database)?, [0; 3]);
    assert_same(&database, &little)
}

#[test]
fn pages_of_another_size() -> Outcome {
    let large = Snapshot::build(CAPACITY, |sql| {
        sql.execute_batch("PRAGMA page_size = 16384; CREATE TABLE t (v); INSERT INTO t VALUES ('large')")
    })?;
    in_both_ways(|mut database| {
        for _ in 0..2 {
            assert_eq!((values(&database)?.as_str(), pragma(&database, "page_size")?), ("one two", 4096));
            database.restore_to(&large)?;
            assert_eq!((values(&database)?.as_str(), pragma(&database, "page_size")?), ("large", 16384));
            database.execute_batch("UPDATE t SET v = 'changed'")?;
            database.restore()?;
        }
        Ok(())
    })
}

#[test]
fn prepared_statements_go_on() -> Outcome {
    in_both_ways(|mut database| {
        assert_eq!(values(&database)?, "one two"); // this statement is prepared and cached
        database.execute_batch(
            "ALTER TABLE t RENAME TO u; CREATE TABLE t (w, v); INSERT INTO t VALUES (0, 'three')",
        )?;
        assert_eq!(values(&database)?, "three");
        database.restore()?;
        assert_eq!(values(&database)?, "one two");
        Ok(())
    })
}

#[test]
fn a_locked_database_is_restored_too() -> Outcome {
    in_both_ways(|mut database| {
        // In this mode, the connection uses its cache without checking any counter.
        database.execute_batch("PRAGMA locking_mode = exclusive; UPDATE t SET v = 'changed'")?;
        database.restore()?;
        assert_eq!(values(&database)?, "one two");
        Ok(())
    })
}

#[test]
fn all_that_is_committed_is_in_the_memory() -> Outcome {
    in_both_ways(|database| {
        for mode in ["wal", "off", "memory"] {
            database.execute_batch("PRAGMA locking_mode = exclusive")?;
            let set: String =
                database.query_row(&format!("PRAGMA journal_mode = {mode}"), [], |row| row.get(0))?;
            assert_ne!(set, "wal");
            database.execute("UPDATE t SET v = ?1 WHERE id = 1", [mode])?;
            assert_eq!(values(&*database.take_snapshot()?.open()?)?, format!("{mode} two"));
        }
        Ok(())
    })
}

#[test]
fn an_open_transaction_is_not_pulled_away() -> Outcome {
    let snapshot = small()?;
    let mut database = snapshot.open()?;
    for begin in ["BEGIN", "BEGIN IMMEDIATE", "SAVEPOINT s", "BEGIN; SELECT * FROM t"] {
        database.execute_batch(begin)?;
        assert!(matches!(database.restore(), Err(Error::InUse(_))), "{begin}");
        assert!(matches!(database.restore_to(&snapshot), Err(Error::InUse(_))), "{begin}");
        database.execute_batch("UPDATE t SET v = 'changed'")?;
        assert!(matches!(database.take_snapshot(), Err(Error::InUse(_))), "{begin}");
        database.execute_batch("COMMIT")?;
        assert_eq!(values(&database)?, "changed changed");
        database.restore()?;
        assert_eq!(values(&database)?, "one two");
    }

    let transaction = database.transaction()?;
    transaction.execute_batch("DROP TABLE t")?;
    drop(transaction); // rolled back
    assert_same(&database, &snapshot)
}

#[test]
fn a_snapshot_can_be_taken_while_a_statement_reads() -> Outcome {
    let snapshot = small()?;
    let database = snapshot.open()?;
    let mut statement = database.prepare("SELECT v FROM t")?;
    let mut rows = statement.query([])?;
    assert!(rows.next()?.is_some());
    assert!(database.take_snapshot()?.memory().diff(snapshot.memory())?.is_empty());
    Ok(())
}

#[test]
fn what_was_leaked_keeps_a_database_from_being_restored() -> Outcome {
    let mut database = small()?.open()?;
    {
        let mut statement = database.prepare("SELECT v FROM t")?;
        let mut rows = statement.query([])?;
        assert!(rows.next()?.is_some());
        mem::forget(rows);
        mem::forget(statement);
    }
    assert!(matches!(database.restore(), Err(Error::InUse(_))));
    drop(database);

    let mut database = small()?.open()?;
    let mut copy = Connection::open_in_memory()?;
    let backup = Backup::new(&database, &mut copy)?;
    backup.step(1)?;
    mem::forget(backup);
    assert!(matches!(database.restore(), Err(Error::InUse(_))));
    assert_eq!(values(&database)?, "one two");
    Ok(())
}

#[test]
fn a_full_database_says_so_and_stays_whole() -> Outcome {
    let full = |result: rusqlite::Result<()>| {
        assert_eq!(result.map_err(|error| error.sqlite_error_code()), Err(Some(ErrorCode::DiskFull)));
    };
    in_both_ways(|mut database| {
        let mut grown = 0;
        while database.execute("INSERT INTO t (v) VALUES (zeroblob(100000))", []).is_ok() {
            grown += 1;
        }
        assert!((30..42).contains(&grown), "{grown} x 100,000 bytes in {CAPACITY}");
        full(database.execute_batch("INSERT INTO t (v) VALUES (zeroblob(100000))"));
        assert_eq!(shop::integrity(&database)?, "ok");
        assert!(database.take_snapshot()?.size() <= CAPACITY);
        database.restore()?;
        assert_eq!(values(&database)?, "one two");
        Ok(())
    })?;

    let empty = Snapshot::build(0, |_| Ok(()))?;
    assert_eq!((empty.size(), empty.capacity()), (0, 0));
    full(empty.open()?.execute_batch("CREATE TABLE t (v)"));
    Ok(())
}

#[test]
fn a_snapshot_of_another_capacity_is_refused() -> Outcome {
    let mut database = small()?.open()?;
    database.execute_batch("UPDATE t SET v = 'changed'")?;
    for capacity in [CAPACITY / 2, CAPACITY * 2] {
        let other = Snapshot::build(capacity, |sql| sql.execute_batch("CREATE TABLE other (v)"))?;
        assert!(matches!(database.restore_to(&other), Err(Error::Capacity { .. })));
        assert_eq!(values(&database)?, "changed changed");
    }
    let same = Snapshot::build(CAPACITY, |sql| {
        sql.execute_batch("CREATE TABLE t (v); INSERT INTO t VALUES ('same')")
    })?;
    database.restore_to(&same)?;
    assert_eq!(values(&database)?, "same");
    Ok(())
}

#[test]
fn a_damaged_schema_is_restored() -> Outcome {
    in_both_ways(|mut database| {
        database.execute_batch("ATTACH ':memory:' AS other; CREATE TABLE other.o (v)")?;
        database.execute_batch(
            "PRAGMA writable_schema = on; UPDATE sqlite_schema SET sql = 'CREATE TABEL'; PRAGMA writable_schema = reset",
        )?;
        assert!(values(&database).is_err());
        database.restore()?;
        assert_eq!(values(&database)?, "one two");
        assert_eq!(database.execute("INSERT INTO other.o VALUES (1)", [])?, 1);
        Ok(())
    })
}

#[test]
fn what_belongs_to_the_connection_stays() -> Outcome {
    let mut database = small()?.open()?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("other.db");
    database.execute("ATTACH ?1 AS other", [file.to_str()])?;
    database.execute_batch("CREATE TABLE other.o (v); CREATE TEMP TABLE p (v); PRAGMA foreign_keys = off")?;
    assert!(database.execute_batch("DETACH main").is_err());
    database.restore()?;
    database.execute_batch("INSERT INTO other.o VALUES (1); INSERT INTO p VALUES (1)")?;
    assert_eq!(pragma(&database, "foreign_keys")?, 0);
    assert_eq!(values(&database)?, "one two");
    Ok(())
}

#[test]
fn the_first_bytes_of_a_snapshot_are_a_database_file() -> Outcome {
    let snapshot = small()?;
    let mut bytes = vec![0; snapshot.size()];
    snapshot.memory().read_at(&mut bytes, 0)?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("small.db");
    fs::write(&file, &bytes)?;
    assert_eq!(values(&Connection::open(file)?)?, "one two");

    let mut plain = Connection::open_in_memory()?;
    plain.deserialize_read_exact(MAIN_DB, bytes.as_slice(), bytes.len(), true)?;
    assert_eq!(values(&plain)?, "one two");
    Ok(())
}

#[test]
fn a_database_that_cannot_be_built() {
    let build = |sql| Snapshot::build(CAPACITY, |connection| connection.execute_batch(sql));
    assert!(matches!(build("CREATE TABEL t"), Err(Error::Sqlite(_))));
    assert!(matches!(build("BEGIN; CREATE TABLE t (v)"), Err(Error::InUse(_))));
    assert!(matches!(
        Snapshot::build(8192, |sql| sql.execute_batch("CREATE TABLE t (v); INSERT INTO t VALUES (zeroblob(9000))")),
        Err(Error::Sqlite(error)) if error.sqlite_error_code() == Some(ErrorCode::DiskFull)
    ));
    assert!(matches!(Snapshot::build(usize::MAX, |_| Ok(())), Err(Error::Memory(_))));
}

#[test]
fn snapshots_and_databases_outlive_each_other() -> Outcome {
    fn goes_to_threads(_: &(impl Send + 'static)) {}
    fn is_shared_by_threads(_: &(impl Sync + 'static)) {}

    let database = small()?.open()?; // drops the snapshot
    goes_to_threads(&database);
    database.execute_batch("INSERT INTO t (v) VALUES ('three')")?;
    let taken = database.take_snapshot()?;
    goes_to_threads(&taken);
    is_shared_by_threads(&taken);
    drop(database);
    assert_eq!(values(&*taken.clone().open()?)?, "one two three");
    Ok(())
}
