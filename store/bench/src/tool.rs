//! Runs the other programs: restic, zstd and cp.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// The other programs, with the arguments that print their versions.
pub(crate) const ALL: [(&str, &str); 3] = [("restic", "version"), ("zstd", "--version"), ("cp", "--version")];

/// Returns the version line of a program, or `None` if the program is not installed.
pub(crate) fn version(program: &str, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(text.lines().next()?.trim().to_owned())
}

/// Runs a command. Returns the time that it took.
pub(crate) fn run(command: &mut Command) -> Result<Duration> {
    let start = Instant::now();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    let time = start.elapsed();
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {}", error.trim());
    Ok(time)
}

/// Returns a command of restic for a repository.
///
/// The command uses no cache, because the repository is on this machine.
fn restic(repository: &Path) -> Command {
    let mut command = Command::new("restic");
    command.env("RESTIC_PASSWORD", "bench").args(["--quiet", "--no-cache", "--repo"]).arg(repository);
    command
}

/// Makes a restic repository.
pub(crate) fn restic_init(repository: &Path) -> Result<()> {
    run(restic(repository).arg("init")).map(drop)
}

/// Saves a file with restic, which reads all of the file if its time has changed.
pub(crate) fn restic_backup(repository: &Path, file: &Path) -> Result<Duration> {
    run(restic(repository).arg("backup").arg(file))
}

/// Restores the last snapshot with restic.
pub(crate) fn restic_restore(repository: &Path, to: &Path) -> Result<Duration> {
    run(restic(repository).args(["restore", "latest", "--target"]).arg(to))
}

/// Compresses a file with `zstd -1` in `threads` threads.
pub(crate) fn zstd(threads: u32, file: &Path, to: &Path) -> Result<Duration> {
    let mut command = Command::new("zstd");
    run(command.args(["-1", "-q", "-f", &format!("-T{threads}"), "-o"]).arg(to).arg(file))
}

/// Decompresses a file with `zstd -d`.
pub(crate) fn unzstd(file: &Path, to: &Path) -> Result<Duration> {
    run(Command::new("zstd").args(["-d", "-q", "-f", "-o"]).arg(to).arg(file))
}

/// Copies a file with `cp --reflink=auto`.
pub(crate) fn cp(file: &Path, to: &Path) -> Result<Duration> {
    run(Command::new("cp").arg("--reflink=auto").arg(file).arg(to))
}

/// Writes all dirty pages of the system to its disks.
///
/// So no program pays for the writes of another one.
pub(crate) fn sync() -> Result<()> {
    run(&mut Command::new("sync")).map(drop)
}
