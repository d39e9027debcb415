//! Requests per second with memsnap, and with other ways to give each request the same state.

use std::io::Write;
use std::time::Instant;

use wasmtime::{Config, Enabled, PoolingAllocationConfig, Result, ensure};

use crate::report::{self, Times, ratio, three_digits, time};
use crate::wasm::KV;
use crate::wasm::contenders::{Contender, Fresh, Rollback, initialised, pooling};
use crate::wasm::measure::{MEDIUM, Size};

/// Kinds of requests: name, number of operations, and the divisor of the number of requests in a turn.
const KINDS: [(&str, i32, usize); 3] = [("light", 4, 1), ("medium", MEDIUM, 1), ("heavy", 4096, 4)];

/// A contender, and its measurements of one kind of requests.
struct Contestant<'a> {
    name: &'a str,
    contender: &'a mut dyn Contender,
    /// Requests in each turn.
    requests: usize,
    times: Times,
}

/// Measures all ways, and writes the tables to `out`.
pub(crate) fn run(size: Size, rollback: &mut Rollback, out: &mut impl Write) -> Result<()> {
    eprintln!("building modules");
    let mut others = others(size.entries, rollback)?;
    writeln!(
        out,
        "## Requests per second\n\n\
         Each request sees the initialised store, and all ways gave the same answers. In each of {} rounds, each way takes \
         a turn. The first two requests of a turn are not measured.\n",
        size.rounds
    )?;
    let mut rollbacks = Vec::new();
    for (kind, operations, part) in KINDS {
        eprintln!("{kind} requests");
        rollback.rollbacks = Times::default();
        let requests = size.requests.div_ceil(part);
        let mut all = vec![Contestant {
            name: "memsnap: one instance, rolled back",
            contender: &mut *rollback,
            requests,
            times: Times::default(),
        }];
        all.extend(others.iter_mut().map(|(name, fresh)| Contestant {
            name,
            requests: if fresh.initialises() { requests.div_ceil(20) } else { requests },
            contender: fresh,
            times: Times::default(),
        }));
        rounds(size.rounds, operations, &mut all)?;
        let ours = all[0].times.median();
        let row = |Contestant { name, times, .. }: Contestant<'_>| {
            let (median, p99) = (times.median(), times.p99());
            [name.to_owned(), three_digits(times.per_second()), time(median), time(p99), ratio(median, ours)]
        };
        let rows: Vec<_> = all.into_iter().map(row).collect();
        let times = rollback.rollbacks.clone();
        let pages = written(rollback, operations)?;
        writeln!(
            out,
            "### {kind}: {operations} operations, {pages} pages of {} bytes written\n\n{}\n",
            memsnap::page_size(),
            report::table(["each request on", "requests/s", "median", "p99", "median / memsnap's"], rows)
        )?;
        rollbacks.push([kind.to_owned(), pages.to_string(), time(times.median()), time(times.p99())]);
    }
    writeln!(
        out,
        "### The rollback alone\n\n{}\n",
        report::table(["after a request", "pages written", "median", "p99"], rollbacks)
    )?;
    Ok(())
}

/// Returns the ways of Wasmtime itself.
fn others(entries: i32, rollback: &mut Rollback) -> Result<Vec<(String, Fresh)>> {
    let all = rollback.instance.memory().len();
    let image = initialised(&mut rollback.instance)?;
    let mut images = vec![
        (0, Enabled::No, "keeping 0"),
        (1 << 20, Enabled::No, "keeping 1 MiB"),
        (all, Enabled::No, "keeping all"),
    ];
    if PoolingAllocationConfig::is_pagemap_scan_available() {
        images.push((1 << 20, Enabled::Yes, "keeping 1 MiB, `PAGEMAP_SCAN`"));
        images.push((all, Enabled::Yes, "keeping all, `PAGEMAP_SCAN`"));
    }
    let plain = [("on demand", Config::new()), ("pooled", pooling(0, Enabled::No))].map(|(name, config)| {
        let fresh = Fresh::new(&config, KV.as_bytes(), Some(entries))?;
        Ok((format!("new instance, {name}, + `init`"), fresh))
    });
    let images = images.into_iter().map(|(keep, scan, name)| {
        let fresh = Fresh::new(&pooling(keep, scan), &image, None)?;
        Ok((format!("new instance, pooled, initialised image, {name}"), fresh))
    });
    plain.into_iter().chain(images).collect()
}

/// Sends the same requests to all contenders, in turns, and checks that their answers are the same.
fn rounds(rounds: usize, operations: i32, all: &mut [Contestant<'_>]) -> Result<()> {
    for round in 0..rounds {
        let mut answers = Vec::new();
        for Contestant { name, contender, requests, times } in &mut *all {
            for warm_up in 0..2 {
                contender.serve(-1 - warm_up, operations)?;
            }
            for request in 0..*requests {
                let seed = i64::try_from(round << 32 | request)?;
                let start = Instant::now();
                let answer = contender.serve(seed, operations)?;
                times.extend([start.elapsed()]);
                match answers.get(request) {
                    Some(&first) => ensure!(answer == first, "{name} answers {answer} instead of {first}"),
                    None => answers.push(answer),
                }
            }
        }
    }
    Ok(())
}

/// Returns how many pages such a request writes: the median of nine requests.
fn written(rollback: &mut Rollback, operations: i32) -> Result<usize> {
    let mut pages = Vec::new();
    for seed in 0..9 {
        rollback.request(seed, operations)?;
        let after = rollback.instance.take_snapshot()?;
        let differing = rollback.state.memory().diff(after.memory())?;
        let bytes: usize = differing.into_iter().map(|change| change.range().len()).sum();
        pages.push(bytes / memsnap::page_size());
        rollback.instance.restore_to(&rollback.state)?;
    }
    pages.sort_unstable();
    Ok(pages[pages.len() / 2])
}
