//! The measurements of rollbacks and branches, as Markdown.

use std::fs;
use std::io::Write;
use std::time::Instant;

use wasmtime::{Config, Linker, Result, Val, ensure};

use crate::report::{self, Times, time};
use crate::wasm::contenders::{Contender, Rollback};
use crate::wasm::{KV, Program, requests};

/// The numbers of entries, rounds, requests and branches.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Entries that the key-value store is initialised with.
    pub entries: i32,
    /// Rounds, in each of which all ways take a turn.
    pub rounds: usize,
    /// Requests in each turn. A turn has a quarter of them for heavy requests, and a twentieth for ways that initialise
    /// the store for each request.
    pub requests: usize,
    /// Branches of one running instance.
    pub branches: usize,
}

/// Operations of a medium request, which is used if one kind of request is enough.
pub(crate) const MEDIUM: i32 = 128;

pub(crate) const MIB: f64 = (1 << 20) as f64;

/// Measures everything, and writes the tables to `out`.
///
/// # Errors
///
/// Returns errors of Wasmtime, of memsnap and of `out`. Also fails if two ways give different answers, or if state was
/// not restored.
pub fn run(size: Size, out: &mut impl Write) -> Result<()> {
    let mut rollback = Rollback::new(&Program::new(Config::new(), KV)?, size.entries)?;
    writeln!(
        out,
        "The key-value store of `kv.wat`, initialised with {} entries: {:.1} MiB of linear memory.\n",
        size.entries,
        rollback.instance.memory().len() as f64 / MIB
    )?;
    state(&mut rollback, out)?;
    requests::run(size, &mut rollback, out)?;
    branches(size, rollback, out)
}

/// Checks that a rollback restores all state, and writes a table of the steps.
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
    ensure!(trap.is_err(), "the bytes that the memory grew by can be read after a rollback");

    let trap = crash.call(rollback.instance.store_mut(), (2, 4096));
    ensure!(trap.is_err(), "the request did not trap");
    rows.push(observe("after a trap in the middle of a request", rollback)?);
    rollback.instance.restore_to(&rollback.state)?;
    rows.push(observe("rolled back", rollback)?);
    grow.call(rollback.instance.store_mut(), 256)?;
    let byte = peek.call(rollback.instance.store_mut(), end + 5)?;
    ensure!(byte == 0, "the memory grew by pages that are not zero");
    rollback.instance.restore_to(&rollback.state)?;

    ensure!(
        rows[0][1..] == rows[3][1..] && rows[0][1..] == rows[5][1..],
        "a rollback did not restore the state"
    );
    writeln!(
        out,
        "## Rollbacks restore all state\n\n{}\n\n\
         After the first rollback, a load from the added page that had been written trapped. After the second one, when \
         the memory had grown again, the load returned 0.\n",
        report::table(
            ["state", "global `requests`", "global `top`", "`memory.size`", "entries", "hash of the memory"],
            rows
        )
    )?;
    Ok(())
}

/// Returns a row with the state of the instance.
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

/// Computes a multiplicative hash of the words and of the length.
fn hash(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().fold(bytes.len() as u64, |hash, word| {
        (hash ^ u64::from_le_bytes(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    })
}

/// Measures branches of an instance that has served requests, and writes a table.
fn branches(size: Size, mut rollback: Rollback, out: &mut impl Write) -> Result<()> {
    eprintln!("branches");
    for seed in 0..100 {
        rollback.request(-seed, MEDIUM)?; // makes a state that `init` cannot make
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
    for (seed, (branch, request)) in (0..).zip(&mut branches) {
        let answer = firsts.time(|| request.call(branch.store_mut(), (seed, MEDIUM)))?;
        let alone = rollback.serve(seed, MEDIUM)?;
        ensure!(answer == alone, "branch {seed} answers {answer}, but the instance itself answers {alone}");
    }
    for (seed, (branch, request)) in (0..).zip(&mut branches) {
        seconds.time(|| request.call(branch.store_mut(), (seed, MEDIUM)))?;
        let requests = branch.global("requests");
        ensure!(
            matches!(requests, Some(Val::I64(102))),
            "a branch counted its requests as {requests:?} instead of 102"
        );
    }
    let after = report::memory();
    let all = size.branches * state.memory().len();
    let each = |total: f64| total / size.branches as f64;
    let mut rows = vec![
        ["branches".to_owned(), branches.len().to_string()],
        ["time to open one, median".to_owned(), time(opens.median())],
        ["time to open one, p99".to_owned(), time(opens.p99())],
        ["time to open all".to_owned(), time(opened)],
        ["first request in each, median".to_owned(), time(firsts.median())],
        ["second request in each, median".to_owned(), time(seconds.median())],
        ["linear memory of all together".to_owned(), format!("{:.0} MiB", all as f64 / MIB)],
    ];
    if let (Some(before), Some(after)) = (memory, after) {
        let added = after.saturating_sub(before) as f64;
        rows.push([
            "memory that all take after two requests in each".to_owned(),
            format!("{:.0} MiB", added / MIB),
        ]);
        rows.push(["memory that each takes".to_owned(), format!("{:.2} MiB", each(added / MIB))]);
    }
    if let (Some(before), Some(after)) = (mappings, self::mappings()) {
        rows.push([
            "mappings of each".to_owned(),
            format!("{:.1}", each(after.saturating_sub(before) as f64)),
        ]);
    }
    let start = Instant::now();
    drop(branches);
    rows.push(["time to drop all".to_owned(), time(start.elapsed())]);
    writeln!(
        out,
        "## Branches of one running instance\n\n\
         The instance had served 100 requests when the snapshot was taken. Each branch is an instance of its own and \
         served two requests of {MEDIUM} operations. Each first answer was the same as that of the instance itself after a \
         rollback to the snapshot.\n\n{}",
        report::table(["what", "measured"], rows)
    )?;
    Ok(())
}

/// Counts the mappings of this process. Returns `None` if the system does not list them.
fn mappings() -> Option<usize> {
    Some(fs::read_to_string("/proc/self/maps").ok()?.lines().count())
}
