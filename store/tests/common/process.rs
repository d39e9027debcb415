//! Processes that save, read, collect and push.
//!
//! Each runs the test binary with other environment variables.
//!
//! A process prints a line after each operation that was acknowledged, and a line before each operation that removes
//! something. The bytes of a snapshot follow from its labels, so any process can check a snapshot that it loads.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use memsnap::Snapshot;
use memsnap_store::{Collect, Depth, Error, Id, Remote, Repository, Result, Saved};
use rand::RngExt;

use super::{Machine, change, changed, content, noise, random};

const ROLE: &str = "MEMSNAP_STORE_ROLE";
const FOLDER: &str = "MEMSNAP_STORE_FOLDER";
const SEED: &str = "MEMSNAP_STORE_SEED";
const SECONDS: &str = "MEMSNAP_STORE_SECONDS";
const REMOTE: &str = "MEMSNAP_STORE_REMOTE";

/// The number of snapshots that a process does not remove.
const KEPT: usize = 2;

/// Opens the remote of a process, which is given by environment variables.
pub type OpenRemote = fn(&str) -> Result<Remote>;

/// Starts a process of the test binary that runs the test `entry`, which calls [`run`].
pub fn start(entry: &str, role: &str, folder: &Path, seed: u64, time: Duration, remote: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", entry, "--ignored", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(FOLDER, folder)
        .env(SEED, seed.to_string())
        .env(SECONDS, time.as_secs().to_string())
        .env(REMOTE, remote)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The bytes of the snapshot number `step` of a series.
pub fn bytes(seed: u64, step: u64) -> Vec<u8> {
    let mut bytes = noise(seed, 48);
    bytes[..8 * super::BLOCK].fill(1);
    for number in 1..=step {
        change(&mut bytes, seed.wrapping_mul(1_000_003).wrapping_add(number), 5);
    }
    bytes
}

/// The output of a process.
#[derive(Default, Debug)]
pub struct Told {
    /// The series and the step of each snapshot that has to be in the repository.
    pub saved: BTreeMap<Id, (u64, u64)>,
    /// The same for the remote.
    pub pushed: BTreeMap<Id, (u64, u64)>,
    /// The number of operations.
    pub count: usize,
}

impl Told {
    /// Adds the output of a process. Ignores a last line that was cut off.
    pub fn add(&mut self, output: &[u8]) {
        let text = String::from_utf8_lossy(output);
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let words: Vec<&str> = line.trim_end().split(' ').collect();
            let id = || words[1].parse::<Id>().unwrap();
            let state = || (words[2].parse().unwrap(), words[3].parse().unwrap());
            self.count += 1;
            match words[0] {
                "saved" => drop(self.saved.insert(id(), state())),
                "pushed" => drop(self.pushed.insert(id(), state())),
                "removing" => drop(self.saved.remove(&id())),
                "unlisting" => drop(self.pushed.remove(&id())),
                "collected" | "read" => {}
                "failed" => panic!("a process {line}"),
                _ => self.count -= 1, // What the test harness prints.
            }
        }
    }

    /// Checks that a repository has all acknowledged snapshots.
    pub fn check(&self, repository: &Repository) {
        check(repository, &self.saved);
    }

    /// Checks that a repository has all snapshots that are in the remote.
    pub fn check_pushed(&self, repository: &Repository) {
        check(repository, &self.pushed);
    }
}

fn check(repository: &Repository, snapshots: &BTreeMap<Id, (u64, u64)>) {
    for (id, (seed, step)) in snapshots {
        let loaded = repository.load(*id).run().unwrap_or_else(|error| panic!("{id} is missing: {error}"));
        assert!(content(loaded.snapshot()) == bytes(*seed, *step), "{id} has other bytes");
    }
}

/// Waits for processes, each of which has to succeed. Returns their output.
pub fn wait(processes: Vec<Child>) -> Vec<Told> {
    let outputs: Vec<_> = processes.into_iter().map(|process| process.wait_with_output().unwrap()).collect();
    let told = |output: &std::process::Output| {
        let mut told = Told::default();
        told.add(&output.stdout);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}: {text}", output.status);
        told
    };
    outputs.iter().map(told).collect()
}

/// Two machines push to a remote and pull from it while a third one collects it.
pub fn machines_share_a_remote(entry: &str, url: &str, open: OpenRemote) {
    let machines = [Machine::new(), Machine::new(), Machine::new()];
    open(url).unwrap();
    // The third machine continues after the others, so that there is something to collect.
    let roles = [("push", 8), ("push", 8), ("collect remote", 10)];
    let processes = machines.iter().zip(roles).zip(1..).map(|((machine, (role, seconds)), seed)| {
        start(entry, role, &machine.path(), seed, Duration::from_secs(seconds), url)
    });
    let told = wait(processes.collect());
    let counts: Vec<usize> = told.iter().map(|told| told.count).collect();
    println!("lines that each process told: {counts:?}");
    let remote = open(url).unwrap();
    for (machine, told) in machines.iter().zip(&told) {
        machine.check();
        told.check(&machine.repository);
        let third = Machine::new();
        for (id, (seed, step)) in &told.pushed {
            third.repository.pull(&remote, *id).run().unwrap();
            assert!(third.bytes(*id) == bytes(*seed, *step));
        }
        third.check();
    }
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

fn tell(line: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    // The first line break ends a line of the test harness.
    out.write_all(format!("\n{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Runs the operations that environment variables select.
pub fn run(open_remote: OpenRemote) {
    let Ok(role) = std::env::var(ROLE) else { return }; // This process was started to run all ignored tests.
    let variable = |name| std::env::var(name).unwrap();
    let process = Process {
        repository: Repository::open(variable(FOLDER)).unwrap(),
        seed: variable(SEED).parse().unwrap(),
        end: Instant::now() + Duration::from_secs(variable(SECONDS).parse().unwrap()),
    };
    let remote = || open_remote(&variable(REMOTE));
    let result = match &*role {
        "save" => process.save(),
        "read" => process.read(),
        "collect" => process.collect(),
        "verify" => process.verify(),
        "save and collect" => process.save_and_collect(),
        "push" => remote().and_then(|remote| process.push(&remote, false)),
        "push and collect" => remote().and_then(|remote| process.push(&remote, true)),
        "collect remote" => remote().and_then(|remote| process.collect_remote(&remote)),
        other => panic!("{other}"),
    };
    if let Err(error) = result {
        tell(format_args!("failed: {role}: {error:?}: {error}"));
        std::process::exit(1);
    }
}

struct Process {
    repository: Repository,
    seed: u64,
    end: Instant,
}

/// A snapshot in a series.
struct Step {
    seed: u64,
    step: u64,
    saved: Saved,
}

/// Returns `None` if others held a lock for too long. Other errors end the process.
fn unless_busy<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::Busy { .. } | Error::Conflict { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns `None` if there is no such snapshot any more, because another process has removed it.
fn unless_removed<T>(result: Result<Option<T>>) -> Result<Option<T>> {
    match result {
        Err(Error::NotFound { kind: "snapshot", .. }) => Ok(None),
        result => result,
    }
}

impl Process {
    fn is_time_left(&self) -> bool {
        Instant::now() < self.end
    }

    fn pause(&self, milliseconds: u64) {
        let time = random(self.seed ^ std::process::id() as u64).random_range(0..milliseconds);
        std::thread::sleep(Duration::from_millis(time));
    }

    /// Saves the next step of a series, or the first one of a new series.
    fn save_step(&self, last: Option<Step>) -> Result<Option<Step>> {
        let next = last.as_ref().filter(|last| last.step < 3);
        let (seed, step) = next.map_or_else(|| (rand::random(), 0), |last| (last.seed, last.step + 1));
        let bytes = bytes(seed, step);
        let snapshot = match next {
            Some(last) => changed(last.saved.snapshot(), &bytes),
            None => Snapshot::from_slice(&bytes).unwrap(),
        };
        let mut save = self.repository.save(&snapshot).name(format!("saver-{}", self.seed));
        if let Some(last) = next {
            save = save.parent(&last.saved);
        }
        let saved = save.label("seed", seed.to_string()).label("step", step.to_string()).run();
        let Some(saved) = unless_busy(saved)? else { return Ok(last) };
        tell(format_args!("saved {} {seed} {step}", saved.id()));
        Ok(Some(Step { seed, step, saved }))
    }

    /// Removes all but the last snapshots of a list, which was saved by this process.
    fn remove_old(&self, own: &mut Vec<Id>) -> Result<()> {
        while own.len() > KEPT {
            tell(format_args!("removing {}", own[0]));
            if unless_busy(self.repository.remove(own[0]))?.is_some() {
                own.remove(0);
            }
        }
        Ok(())
    }

    fn save(&self) -> Result<()> {
        self.save_and(|| Ok(()))
    }

    /// Saves and removes snapshots, and calls `after` each time.
    fn save_and(&self, after: impl Fn() -> Result<()>) -> Result<()> {
        let (mut last, mut own) = (None, Vec::new());
        while self.is_time_left() {
            last = self.save_step(last)?;
            own.extend(last.as_ref().map(|step| step.saved.id()));
            own.dedup();
            self.remove_old(&mut own)?;
            after()?;
        }
        Ok(())
    }

    fn collect_once(&self) -> Result<()> {
        let collect = Collect::new().grace(Duration::ZERO).cache(rand::random());
        if unless_busy(self.repository.collect(&collect))?.is_some() {
            tell(format_args!("collected"));
        }
        Ok(())
    }

    fn collect(&self) -> Result<()> {
        while self.is_time_left() {
            self.collect_once()?;
            self.pause(30);
        }
        Ok(())
    }

    fn verify(&self) -> Result<()> {
        while self.is_time_left() {
            if let Some(verified) = unless_busy(self.repository.verify(Depth::Data))? {
                assert_eq!(verified.problems, [""; 0]);
                tell(format_args!("read"));
            }
            // Otherwise, a collection would wait for its end too often.
            self.pause(50);
        }
        Ok(())
    }

    fn save_and_collect(&self) -> Result<()> {
        self.save_and(|| self.collect_once())
    }

    /// Loads a snapshot and compares it with the bytes that follow from its labels.
    fn check(&self, id: Id) -> Result<()> {
        let Some(manifest) = unless_removed(unless_busy(self.repository.manifest(id)))? else {
            return Ok(());
        };
        let number = |label: &str| manifest.labels[label].parse::<u64>().unwrap();
        let expected = bytes(number("seed"), number("step"));
        let Some(loaded) = unless_removed(unless_busy(self.repository.load(id).run()))? else {
            return Ok(());
        };
        assert!(content(loaded.snapshot()) == expected, "{id} has other bytes");
        tell(format_args!("read"));
        Ok(())
    }

    fn read(&self) -> Result<()> {
        let mut random = random(self.seed);
        while self.is_time_left() {
            let Some(listed) = unless_busy(self.repository.list())? else { continue };
            if !listed.is_empty() {
                self.check(listed[random.random_range(0..listed.len())].id)?;
            }
        }
        Ok(())
    }
}

impl Process {
    fn push(&self, remote: &Remote, collects: bool) -> Result<()> {
        let mut random = random(self.seed ^ rand::random::<u64>());
        let (mut last, mut own, mut pushed) = (None, Vec::new(), Vec::new());
        while self.is_time_left() {
            last = self.save_step(last)?;
            let Some(step) = &last else { continue };
            let id = step.saved.id();
            own.push(id);
            own.dedup();
            if unless_busy(self.repository.push(remote, id).name(format!("machine-{}", self.seed)).run())?
                .is_some()
            {
                tell(format_args!("pushed {id} {} {}", step.seed, step.step));
                pushed.push(id);
                pushed.dedup();
            }
            self.remove_old(&mut own)?;
            while pushed.len() > KEPT {
                tell(format_args!("unlisting {}", pushed[0]));
                remote.remove(pushed[0])?;
                pushed.remove(0);
            }
            if random.random_ratio(1, 3) {
                let listed = remote.list()?;
                let other = listed[random.random_range(0..listed.len())].id;
                let pulled = unless_removed(unless_busy(self.repository.pull(remote, other).run()))?;
                if pulled.is_some() {
                    self.check(other)?;
                }
            }
            if random.random_ratio(1, 4) {
                self.collect_once()?;
            }
            if collects && random.random_ratio(1, 3) {
                self.collect_remote_once(remote)?;
            }
            self.pause(40);
        }
        Ok(())
    }

    fn collect_remote_once(&self, remote: &Remote) -> Result<()> {
        if unless_busy(remote.collect(&Collect::new().grace(Duration::ZERO)))?
            .is_some_and(|done| done.bytes > 0)
        {
            tell(format_args!("collected"));
        }
        Ok(())
    }

    fn collect_remote(&self, remote: &Remote) -> Result<()> {
        while self.is_time_left() {
            self.collect_remote_once(remote)?;
            self.pause(50);
        }
        Ok(())
    }
}
