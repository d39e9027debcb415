//! A test fixture: one prepared dataset for 200 tests on all threads, each of which destroys its data.
//!
//! ```text
//! cargo run --release --example fixture
//! ```
//!
//! The dataset is a sorted table of 524,288 records, 32 MiB, which is prepared once. Each test calls `dataset` for a
//! fresh view of it, and can write to this view without affecting other tests. Before a test begins, all of its
//! data is compared with what was prepared. After all tests, the dataset is compared in the same way. Then all tests
//! run again, and each gets a copy of the dataset.
//!
//! The first column of the table is the median time after which a test has its data, without the first test of each
//! thread, which is a warm-up. The second column is the time of all tests, including the comparisons, which read all of
//! the data.

use std::array;
use std::io;
use std::num::NonZero;
use std::ops::DerefMut;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use comfy_table::{CellAlignment, Table, presets};
use memsnap::{CowView, Snapshot};
use xxhash_rust::xxh3::xxh3_64;

const RECORD: usize = 64;
const RECORDS: usize = 1 << 19;
const TESTS: usize = 200;

/// The dataset, which the first test that needs it prepares.
static DATASET: LazyLock<Snapshot> =
    LazyLock::new(|| Snapshot::from_slice(&prepare()).expect("enough memory for the dataset"));

/// Returns a view of the dataset. Writes to it do not change the dataset.
fn dataset() -> io::Result<CowView<'static>> {
    DATASET.view()
}

/// Prepares the table. A record has a key of eight bytes, and a value that repeats the key seven times.
fn prepare() -> Vec<u8> {
    let mut keys: Vec<u64> = (0..RECORDS as u64).map(|number| xxh3_64(&number.to_le_bytes())).collect();
    keys.sort_unstable();
    keys.into_iter().flat_map(|key| [key.to_be_bytes(); RECORD / 8]).flatten().collect()
}

/// Returns the number of the record with this key.
fn find(table: &[u8], key: [u8; 8]) -> Option<usize> {
    table.as_chunks::<RECORD>().0.binary_search_by(|record| record[..8].cmp(&key)).ok()
}

fn key(table: &[u8], record: usize) -> [u8; 8] {
    array::from_fn(|index| table[record * RECORD + index])
}

/// A test. It runs with many numbers, and damages another part of its data with each number.
type Test = fn(&mut [u8], usize) -> Result<()>;

const KINDS: [Test; 3] = [updates_values, deletes_a_record, loses_a_block];

fn updates_values(table: &mut [u8], number: usize) -> Result<()> {
    for record in (number..RECORDS).step_by(500) {
        table[record * RECORD + 8..][..RECORD - 8].fill(0);
        let key = key(table, record);
        ensure!(find(table, key) == Some(record), "record {record} is not found after its value was changed");
    }
    Ok(())
}

fn deletes_a_record(table: &mut [u8], number: usize) -> Result<()> {
    let deleted = key(table, number);
    table.copy_within((number + 1) * RECORD..RECORDS / 64 * RECORD, number * RECORD);
    ensure!(find(&table[..RECORDS / 64 * RECORD], deleted).is_none(), "the deleted record is found");
    Ok(())
}

fn loses_a_block(table: &mut [u8], number: usize) -> Result<()> {
    let lost = key(table, number);
    table[number * RECORD..][..1 << 20].fill(0);
    ensure!(find(table, lost).is_none(), "a record of the lost block is found");
    Ok(())
}

/// Runs all tests on all threads, with the data that `dataset` returns. Returns the times that `dataset` took, and the
/// time of all tests.
fn run_all<D: DerefMut<Target = [u8]>>(
    dataset: impl Fn() -> io::Result<D> + Sync,
    prepared: &[u8],
) -> Result<(Vec<Duration>, Duration)> {
    let begun = Instant::now();
    let next = AtomicUsize::new(0);
    let run_some = || -> Result<Vec<Duration>> {
        let mut times = Vec::new();
        loop {
            let test = next.fetch_add(1, Ordering::Relaxed);
            if test >= TESTS {
                return Ok(times);
            }
            let start = Instant::now();
            let mut data = dataset()?;
            times.push(start.elapsed());
            ensure!(*data == *prepared, "the data of test {test} differs from the prepared dataset");
            KINDS[test % KINDS.len()](&mut data, test).with_context(|| format!("test {test}"))?;
        }
    };
    let times: Result<Vec<_>> = thread::scope(|scope| {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(run_some)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic in a test")).collect()
    });
    let times = times?.into_iter().flat_map(|times| times.into_iter().skip(1)).collect();
    Ok((times, begun.elapsed()))
}

fn median(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    times.get(times.len() / 2).map_or("-".to_owned(), |median| format!("{median:.1?}"))
}

fn main() -> Result<()> {
    let start = Instant::now();
    let prepared = prepare();
    let preparing = start.elapsed();

    let (views, with_views) = run_all(dataset, &prepared)?;
    ensure!(*dataset()? == *prepared, "the tests have changed the dataset");
    let (copies, with_copies) = run_all(|| Ok(prepared.clone()), &prepared)?;

    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["data of a test", "time to get it", &format!("{TESTS} tests")]);
    for (name, get, all) in [
        ("a view", median(views), format!("{with_views:.2?}")),
        ("a copy", median(copies), format!("{with_copies:.2?}")),
        ("a dataset prepared anew", format!("{preparing:.1?}"), "not measured".to_owned()),
    ] {
        table.add_row([name.to_owned(), get, all]);
    }
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    println!("{table}");
    Ok(())
}
