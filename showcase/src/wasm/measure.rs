//! The measurements, as Markdown.

use std::fs;
use std::io::Write;
use std::time::Instant;

use wasmtime::{Config, Linker, Result, Val, ensure};

use crate::report::{self, Times, time};
use crate::wasm::contenders::{Contender, Rollback};
use crate::wasm::{KV, Program, requests};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Entries that the key-value store is initialised with.
    pub entries: i32,
    /// Rounds, in each of which all ways have their turn.
    pub rounds: usize,
    /// Requests in each turn; a quarter of them where they are heavy, and a twentieth for those ways that initialise
    /// the store each time.
    pub requests: usize,
    /// Branches of one running instance.
    pub branches: usize,
}

/// Operations of a request, where one kind is enough.
pub(crate) const MEDIUM: i32 = 128;

pub(crate) const MIB: f64 = (1 << 20) as f64;

/// Measures, and writes the tables to `out`.
///
/// # Errors
///
/// Those of Wasmtime, of memsnap and of writing; an answer of one way that is not that of the others; state that
/// should have gone back and did not.
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
        "## State goes back\n\n{}\n\n\
         Rolled back, a load from the page that was written trapped, and after growing again it gave 0.\n",
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

fn branches(size: Size, mut rollback: Rollback, out: &mut impl Write) -> Result<()> {
    eprintln!("branches");
    for seed in 0..100 {
        rollback.request(-seed, MEDIUM)?; // state that no initialisation makes
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
        ensure!(answer == alone, "branch {seed} answers {answer}, and {alone} when alone");
    }
    for (seed, (branch, request)) in (0..).zip(&mut branches) {
        seconds.time(|| request.call(branch.store_mut(), (seed, MEDIUM)))?;
        let requests = branch.global("requests");
        ensure!(matches!(requests, Some(Val::I64(102))), "a branch counts its requests as {requests:?}");
    }
    let after = report::memory();
    let all = size.branches * state.memory().len();
    let each = |total: f64| total / size.branches as f64;
    let mut rows = vec![
        ["branches".to_owned(), branches.len().to_string()],
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
        "## Branches of one running instance\n\n\
         The instance had served 100 requests when the snapshot was taken. Each branch is an instance of its own, and \
         served two requests of {MEDIUM} operations; each first answer was what the instance itself answers when it is \
         rolled back to the snapshot.\n\n{}",
        report::table(["what", "measured"], rows)
    )?;
    Ok(())
}

/// The mappings of this process; none where the system does not tell.
fn mappings() -> Option<usize> {
    Some(fs::read_to_string("/proc/self/maps").ok()?.lines().count())
}
