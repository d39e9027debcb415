//! `fork`, as Redis uses it: a mark is a process that shares the memory of the map copy-on-write.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::FromRawFd;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Change, Cloned, Contender, Map, Script};
use crate::measure::time;

/// The most marks that are kept at a time.
const KEPT: usize = 8;

/// A map in a process of its own, whose marks are child processes.
///
/// The process has no other memory than the map, which would make each `fork` slower. It makes the same changes as the
/// other contenders, because it has the same script.
pub struct Forked {
    orders: File,
    times: File,
    process: libc::pid_t,
}

impl Forked {
    /// Starts the process, and waits until it has made the map.
    ///
    /// Call it while this process has one thread and little memory.
    ///
    /// # Errors
    ///
    /// Those of `pipe` and `fork`.
    pub fn new(entries: u64) -> Result<Self> {
        let (orders_out, orders) = pipe()?;
        let (times, times_in) = pipe()?;
        // SAFETY: the child does not rely on other threads. The caller has one.
        let process = match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()).context("starting a process for the map"),
            0 => {
                drop((orders, times));
                let served = serve(entries, orders_out, times_in);
                // SAFETY: ends the child without destructors of the parent's values.
                unsafe { libc::_exit(i32::from(served.is_err())) }
            }
            process => process,
        };
        let mut forked = Self { orders, times, process };
        forked.answer().context("making a map in another process")?;
        Ok(forked)
    }

    fn answer(&mut self) -> Result<[Duration; 2]> {
        let mut times = [[0; 8]; 2];
        for time in &mut times {
            self.times.read_exact(time).context("the process of the map has ended")?;
        }
        Ok(times.map(|time| Duration::from_nanos(u64::from_le_bytes(time))))
    }
}

impl Contender for Forked {
    fn name(&self) -> &'static str {
        "fork"
    }

    fn step(&mut self, changes: &[Change]) -> Result<[Duration; 2]> {
        self.orders.write_all(&u64::try_from(changes.len())?.to_le_bytes())?;
        self.answer()
    }

    fn undo(&mut self, _changes: &[Change]) -> Result<Option<Duration>> {
        Ok(None)
    }

    fn read(&self, _keys: &[String]) -> Option<Duration> {
        None
    }

    fn hash(&self) -> Option<u64> {
        None
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        end(self.process);
    }
}

fn pipe() -> io::Result<(File, File)> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for two descriptors.
    if unsafe { libc::pipe(ends.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, so nothing else owns it.
    let reader = unsafe { File::from_raw_fd(ends[0]) };
    // SAFETY: as above.
    let writer = unsafe { File::from_raw_fd(ends[1]) };
    Ok((reader, writer))
}

/// Kills a child process, and waits for its end.
fn end(process: libc::pid_t) {
    // SAFETY: the call takes no pointers. Nothing has waited for the child, so the number still belongs to it.
    unsafe { libc::kill(process, libc::SIGKILL) };
    let mut status = 0;
    // SAFETY: the status is written to a live variable.
    unsafe { libc::waitpid(process, &raw mut status, 0) };
}

/// Makes a map, and changes and marks it as often as the pipe says.
///
/// A mark is a child that waits until its end of `life` is closed, which happens when this process ends.
fn serve(entries: u64, mut orders: File, mut times: File) -> Result<()> {
    let (mut map, mut script) = (Cloned::build(entries)?, Script::new(1, entries));
    let (mut life, kept) = pipe()?;
    let mut kept = Some(kept);
    let mut marks = VecDeque::new();
    let mut answer = |durations: [Duration; 2]| -> Result<()> {
        for duration in durations {
            times.write_all(&u64::try_from(duration.as_nanos())?.to_le_bytes())?;
        }
        Ok(())
    };
    answer([Duration::ZERO; 2])?;
    let mut count = [0; 8];
    while orders.read_exact(&mut count).is_ok() {
        let changes = script.changes(usize::try_from(u64::from_le_bytes(count))?);
        if marks.len() >= KEPT {
            marks.pop_front().into_iter().for_each(end);
        }
        let ((), changed) = time(|| map.change(&changes));
        // SAFETY: this process has one thread.
        let (process, marked) = time(|| unsafe { libc::fork() });
        match process {
            -1 => return Err(io::Error::last_os_error().into()),
            0 => {
                drop(kept.take());
                let _ = life.read(&mut [0]);
                // SAFETY: ends the child without destructors.
                unsafe { libc::_exit(0) }
            }
            process => marks.push_back(process),
        }
        answer([changed, marked])?;
    }
    Ok(())
}
