//! The measurements, as Markdown.

use std::fs;
use std::io::Write;
use std::time::Instant;

use wasmtime::{Config, Enabled, Linker, PoolingAllocationConfig, Result, Val, ensure};

use crate::report::{self, Times, ratio, three_digits, time};
use crate::wasm::contenders::{Contender, Fresh, Rollback, initialised, pooling};
use crate::wasm::{KV, Program};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Entries that the key-value store is initialised with.
    pub entries: i32,
    /// Rounds, in each of which all ways have their turn.
    pub rounds: usize,
    /// Requests in each turn, but for those ways that initialise the store each time: these have a twentieth.
    pub requests: usize,
    /// Branches of one running instance.
    pub branches: usize,
}

/// What a request does: a name, and how many operations.
const KINDS: [(&str, i32); 3] = [("light", 4), ("medium", 128), ("heavy", 4096)];

const MIB: f64 = (1 << 20) as f64;

/// Measures, and writes the tables to `out`.
///
/// # Errors
///
/// Those of Wasmtime, of memsnap and of writing; and if one way gives another answer than the others, or state that should
/// have gone back did not.
pub fn run(size: Size, out: &mut impl Write) -> Result<()> {
    let mut rollback = Rollback::new(&Program::new(Config::new(), KV)?, size.entries)?;
    writeln!(
        out,
        "The key-value store of `kv.wat`, initialised with {} entries: {:.1} MiB of linear memory.\n",
        size.entries,
        rollback.instance.memory().len() as f64 / MIB
    )?;
    state(&mut rollback, out)?;
    requests(size, &mut rollback, out)?;
    branches(size, rollback, out)
}

/// Shows that all state goes back.
fn state(rollback: &mut Rollback, out: &mut impl Write) -> Result<()> {
    eprintln!("state");
    let grow = rollback.instance.function::<i32, i32>("grow")?;
    let poke = rollback.instance.function::<(i32, i32), ()>("poke")?;
    let peek = rollback.instance.function::<i32, i32>("peek")?;
    let crash = rollback.instance.function::<(i64, i32), ()>("crash")?;
    let mut rows = vec![observe("initialised, snapshot taken", rollback)?];

    rollback.request(1, 4096)?;
    rows.push(observe("after a request", rollback)?);
    let end = i32::try_from(rollback.instance.memory().len())?;
    grow.call(rollback.instance.store_mut(), 256)?;
    poke.call(rollback.instance.store_mut(), (end + 5, 77))?;
    rows.push(observe("grown by 16 MiB, a byte written there", rollback)?);
    rollback.instance.restore_to(&rollback.state)?;
    rows.push(observe("rolled back", rollback)?);
    let trap = peek.call(rollback.instance.store_mut(), end + 5);
    ensure!(trap.is_err(), "what the memory grew by can be read after a rollback");

    let trap = crash.call(rollback.instance.store_mut(), (2, 4096));
    ensure!(trap.is_err(), "no trap");
    rows.push(observe("after a trap in the middle of a request", rollback)?);
    rollback.instance.restore_to(&rollback.state)?;
    rows.push(observe("rolled back", rollback)?);
    grow.call(rollback.instance.store_mut(), 256)?;
    let byte = peek.call(rollback.instance.store_mut(), end + 5)?;
    ensure!(byte == 0, "the memory grew by pages that are not zero");
    rollback.instance.restore_to(&rollback.state)?;

    ensure!(rows[0][1..] == rows[3][1..] && rows[0][1..] == rows[5][1..], "state did not go back");
    writeln!(
        out,
        "## State goes back\n\n{}\n\nRolled back, a load from the page that was written trapped, and after growing again \
         it gave 0.\n",
        report::table(
            ["state", "global `requests`", "global `top`", "`memory.size`", "entries", "hash of the memory"],
            rows
        )
    )?;
    Ok(())
}

fn observe(what: &str, rollback: &mut Rollback) -> Result<[String; 6]> {
    let instance = &mut rollback.instance;
    let [size, entries] = ["size", "entries"].map(|name| {
        let function = instance.function::<(), i32>(name)?;
        function.call(instance.store_mut(), ())
    });
    let [requests, top] = ["requests", "top"].map(|name| match instance.global(name) {
        Some(Val::I32(value)) => value.to_string(),
        Some(Val::I64(value)) => value.to_string(),
        _ => String::new(),
    });
    let hash = hash(instance.memory());
    Ok([what.to_owned(), requests, top, size?.to_string(), entries?.to_string(), format!("{hash:016x}")])
}

/// Of all bytes and their number: a multiplicative hash of words.
fn hash(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().fold(bytes.len() as u64, |hash, word| {
        (hash ^ u64::from_le_bytes(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    })
}

struct Measured<'a> {
    name: String,
    contender: &'a mut dyn Contender,
    /// Requests in each turn.
    requests: usize,
    times: Times,
}

fn requests(size: Size, rollback: &mut Rollback, out: &mut impl Write) -> Result<()> {
    eprintln!("building modules");
    let module = initialised(&mut rollback.instance)?;
    let all = rollback.instance.memory().len();
    let entries = Some(size.entries);
    let mut fresh: Vec<(String, Fresh)> = vec![
        ("new instance, on demand, + `init`".into(), Fresh::new(&Config::new(), KV.as_bytes(), entries)?),
        (
            "new instance, pooled, + `init`".into(),
            Fresh::new(&pooling(0, Enabled::No), KV.as_bytes(), entries)?,
        ),
    ];
    let mut keeps = vec![
        (0, Enabled::No, "keeping 0"),
        (1 << 20, Enabled::No, "keeping 1 MiB"),
        (all, Enabled::No, "keeping all"),
    ];
    if PoolingAllocationConfig::is_pagemap_scan_available() {
        keeps.push((1 << 20, Enabled::Yes, "keeping 1 MiB, `PAGEMAP_SCAN`"));
        keeps.push((all, Enabled::Yes, "keeping all, `PAGEMAP_SCAN`"));
    }
    for (keep, scan, name) in keeps {
        let fresh_one = Fresh::new(&pooling(keep, scan), &module, None)?;
        fresh.push((format!("new instance, pooled, initialised image, {name}"), fresh_one));
    }
    drop(module);

    writeln!(
        out,
        "## Requests per second\n\nEach request sees the initialised store, and all ways gave the same answers. They have their \
         turns in each of {} rounds, the first two requests of a turn untimed.\n",
        size.rounds
    )?;
    let mut pauses = Vec::new();
    for (kind, operations) in KINDS {
        eprintln!("{kind} requests");
        rollback.rollbacks = Times::default();
        let mut all = vec![Measured {
            name: "memsnap: one instance, rolled back".into(),
            contender: &mut *rollback,
            requests: size.requests,
            times: Times::default(),
        }];
        all.extend(fresh.iter_mut().enumerate().map(|(at, (name, fresh))| Measured {
            name: name.clone(),
            contender: fresh,
            requests: if at < 2 { size.requests.div_ceil(20) } else { size.requests },
            times: Times::default(),
        }));
        rounds(size.rounds, operations, &mut all)?;
        let ours = all[0].times.clone();
        let rows: Vec<_> = all
            .into_iter()
            .map(|Measured { name, times, .. }| {
                [
                    name,
                    three_digits(times.per_second()),
                    time(times.median()),
                    time(times.p99()),
                    ratio(times.median(), ours.median()),
                ]
            })
            .collect();
        let pages = changed(rollback, operations)?;
        writeln!(
            out,
            "### {kind}: {operations} operations, {pages} pages of {} bytes written\n\n{}\n",
            memsnap::page_size(),
            report::table(["each request on", "requests/s", "median", "p99", "median / memsnap's"], rows)
        )?;
        let times = &rollback.rollbacks;
        pauses.push([kind.to_owned(), pages.to_string(), time(times.median()), time(times.p99())]);
    }
    writeln!(
        out,
        "### The rollback alone\n\n{}\n",
        report::table(["after a request", "pages written", "median", "p99"], pauses)
    )?;
    Ok(())
}

/// Has all take turns with the same requests, whose answers have to be the same.
fn rounds(rounds: usize, operations: i32, all: &mut [Measured<'_>]) -> Result<()> {
    for round in 0..rounds {
        let mut answers = Vec::new();
        for Measured { name, contender, requests, times } in &mut *all {
            for warm_up in 0..2 {
                contender.serve(-1 - warm_up, operations)?;
            }
            for request in 0..*requests {
                let seed = i64::try_from(round << 32 | request)?;
                let start = Instant::now();
                let answer = contender.serve(seed, operations)?;
                times.extend([start.elapsed()]);
                match answers.get(request) {
                    Some(&first) => ensure!(answer == first, "{name}: {answer} is the answer, not {first}"),
                    None => answers.push(answer),
                }
            }
        }
    }
    Ok(())
}

/// The pages that such a request writes, in the middle of a few.
fn changed(rollback: &mut Rollback, operations: i32) -> Result<usize> {
    let mut pages = Vec::new();
    for seed in 0..9 {
        rollback.request(seed, operations)?;
        let after = rollback.instance.take_snapshot()?;
        let differing = rollback.state.memory().diff(after.memory())?;
        pages.push(
            differing.into_iter().map(|change| change.range().len()).sum::<usize>() / memsnap::page_size(),
        );
        rollback.instance.restore_to(&rollback.state)?;
    }
    pages.sort_unstable();
    Ok(pages[pages.len() / 2])
}

fn branches(size: Size, mut rollback: Rollback, out: &mut impl Write) -> Result<()> {
    eprintln!("branches");
    let (_, operations) = KINDS[1];
    for seed in 0..100 {
        rollback.request(-seed, operations)?; // state that no initialisation makes
    }
    rollback.state = rollback.instance.take_snapshot()?;
    let state = rollback.state.clone();
    let program = rollback.instance.program().clone();
    let linker = Linker::new(program.engine());

    let (memory, mappings) = (report::memory(), mappings());
    let start = Instant::now();
    let (mut opens, mut firsts, mut seconds) = (Times::default(), Times::default(), Times::default());
    let mut branches = Vec::with_capacity(size.branches);
    for _ in 0..size.branches {
        let mut branch = opens.time(|| program.branch(&linker, (), &state))?;
        let request = branch.function::<(i64, i32), i64>("request")?;
        branches.push((branch, request));
    }
    let opened = start.elapsed();
    for times in [&mut firsts, &mut seconds] {
        for (seed, (branch, request)) in (0..).zip(&mut branches) {
            let answer = times.time(|| request.call(branch.store_mut(), (seed, operations)))?;
            let last = branch.global("requests");
            ensure!(matches!(last, Some(Val::I64(101 | 102))), "a branch counts its requests as {last:?}");
            if matches!(last, Some(Val::I64(101))) {
                let alone = rollback.serve(seed, operations)?;
                ensure!(answer == alone, "branch {seed} answers {answer}, and {alone} when alone");
            }
        }
    }
    let after = report::memory();
    let all = size.branches * state.memory().len();
    let each = |total: f64| total / size.branches as f64;
    let mut rows = vec![
        ["branches of one running instance".to_owned(), branches.len().to_string()],
        ["to open one: median".to_owned(), time(opens.median())],
        ["to open one: p99".to_owned(), time(opens.p99())],
        ["to open them all".to_owned(), time(opened)],
        ["first request in each: median".to_owned(), time(firsts.median())],
        ["second request in each: median".to_owned(), time(seconds.median())],
        ["memory that they show".to_owned(), format!("{:.0} MiB", all as f64 / MIB)],
    ];
    if let (Some(before), Some(after)) = (memory, after) {
        let added = after.saturating_sub(before) as f64;
        rows.push([
            "memory that they take, after two requests in each".to_owned(),
            format!("{:.0} MiB", added / MIB),
        ]);
        rows.push(["of which for each".to_owned(), format!("{:.2} MiB", each(added / MIB))]);
    }
    if let (Some(before), Some(after)) = (mappings, self::mappings()) {
        rows.push([
            "mappings for each".to_owned(),
            format!("{:.1}", each(after.saturating_sub(before) as f64)),
        ]);
    }
    let start = Instant::now();
    drop(branches);
    rows.push(["to drop them all".to_owned(), time(start.elapsed())]);
    writeln!(
        out,
        "## A thousand branches\n\nThe instance had served 100 requests when the snapshot was taken. Each branch is an instance of \
         its own, and served two requests of {operations} operations; each first answer was what the instance itself answers when \
         it is rolled back to the snapshot.\n\n{}",
        report::table(["what", "measured"], rows)
    )?;
    Ok(())
}

/// The mappings of this process; none where the system does not tell.
fn mappings() -> Option<usize> {
    Some(fs::read_to_string("/proc/self/maps").ok()?.lines().count())
}
