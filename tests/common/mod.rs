//! What several test files share: forked children, patterns of bytes, and how a test says that it was
//! skipped.
#![allow(dead_code)] // Each test file uses its part.

pub(crate) mod kinds;
pub(crate) mod maps;
pub(crate) mod script;
pub(crate) mod seccomp;

use std::fmt::Display;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::panic;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use memsnap::page_size;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};

/// Says why a test cannot run here, in lines that CI counts. Not through `eprintln!`, which is captured.
pub(crate) fn skip(test: &str, reason: impl Display) {
    let _ = writeln!(io::stderr(), "\nskipped: {test}: {reason}");
}

/// Lets only one test of the file run until the guard is dropped.
pub(crate) fn serial() -> MutexGuard<'static, ()> {
    static SERIAL: Mutex<()> = Mutex::new(());
    SERIAL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `pages` pages that are told from each other, and from those of another `seed`, by each byte.
pub(crate) fn pattern(pages: usize, seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; pages * page_size()];
    for (page, bytes) in bytes.chunks_exact_mut(page_size()).enumerate() {
        bytes.fill(page.to_le_bytes()[0].wrapping_mul(16).wrapping_add(seed));
        bytes[..8].copy_from_slice(&(page as u64).to_le_bytes());
    }
    bytes
}

/// Compares without printing megabytes.
#[track_caller]
pub(crate) fn assert_same(what: &str, real: &[u8], expected: &[u8]) {
    assert_eq!(real.len(), expected.len(), "{what}: length");
    if real != expected {
        let at = real.iter().zip(expected).position(|(real, expected)| real != expected).unwrap_or(0);
        // Read again: a page that is torn may look different now.
        let (page, real, expected) = (at / page_size(), real[at], expected[at]);
        panic!("{what}: byte {at} (page {page}) is {real}, expected {expected}");
    }
}

/// The side of a fork on which the caller finds itself.
pub(crate) enum Fork {
    InParent(Child),
    InChild(Parent),
}

/// What the parent holds: a line to the child, and where it reports a panic.
pub(crate) struct Child {
    pid: Pid,
    line: UnixStream,
    report: UnixStream,
    reaped: bool,
}

/// What the child holds: a line to the parent. The child ends with it: well by `exit`, badly when it
/// is dropped, as a panic does on its way out, so that a child never returns to the test harness.
pub(crate) struct Parent(UnixStream);

/// Forks. The caller holds [`serial`], so that no other thread is using memsnap.
pub(crate) fn fork() -> Fork {
    let (line, childs_line) = UnixStream::pair().unwrap();
    let (report, reporter) = UnixStream::pair().unwrap();
    // SAFETY: the other threads of the process are the harness and tests that wait in `serial`. The child
    // needs none of the locks that they may hold: it prints nothing, and glibc keeps `malloc` usable.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", io::Error::last_os_error()),
        0 => {
            drop((line, report));
            // SAFETY: `alarm` touches no memory; the signal ends a child that hangs.
            unsafe { libc::alarm(100) };
            panic::set_hook(Box::new(move |info| {
                let _ = writeln!(&reporter, "{info}");
            }));
            Fork::InChild(Parent(childs_line))
        }
        pid => {
            let pid = Pid::from_raw(pid).unwrap();
            Fork::InParent(Child { pid, line, report, reaped: false })
        }
    }
}

/// Runs `script` in a forked child, and fails if it does.
#[track_caller]
pub(crate) fn run_in_child(script: impl FnOnce()) {
    match fork() {
        Fork::InChild(parent) => {
            script();
            parent.exit()
        }
        Fork::InParent(child) => child.join(),
    }
}

/// Whether a forked child that runs `script` is stopped by the system for an access that is not allowed. The caller
/// holds [`serial`].
#[track_caller]
pub(crate) fn is_stopped(script: impl FnOnce()) -> bool {
    match fork() {
        Fork::InChild(parent) => {
            script();
            parent.exit()
        }
        Fork::InParent(mut child) => {
            let status = child.reap().expect("a child that was not waited for");
            match (status.terminating_signal(), status.exit_status()) {
                (Some(signal), _) if signal == libc::SIGSEGV => true,
                (None, Some(0)) => false,
                other => panic!("the child ended with {other:?}"),
            }
        }
    }
}

impl Parent {
    pub(crate) fn signal(&mut self) {
        self.0.write_all(b".").expect("the parent is there");
    }

    /// Waits for a `signal` of the parent.
    pub(crate) fn wait(&mut self) {
        self.0.read_exact(&mut [0]).expect("the parent is there");
    }

    pub(crate) fn exit(self) -> ! {
        // SAFETY: `_exit` ends the process at once, without destructors or exit handlers of the harness.
        unsafe { libc::_exit(0) }
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        // SAFETY: as in `exit`.
        unsafe { libc::_exit(if thread::panicking() { 101 } else { 102 }) }
    }
}

impl Child {
    #[track_caller]
    pub(crate) fn signal(&mut self) {
        if self.line.write_all(b".").is_err() {
            self.finish();
            panic!("the child has ended");
        }
    }

    /// Waits for a `signal` of the child.
    #[track_caller]
    pub(crate) fn wait(&mut self) {
        if self.line.read_exact(&mut [0]).is_err() {
            self.finish();
            panic!("the child has ended");
        }
    }

    /// Waits for the end of the child, and fails if it failed.
    #[track_caller]
    pub(crate) fn join(mut self) {
        self.finish();
    }

    #[track_caller]
    fn finish(&mut self) {
        let mut message = String::new();
        let _ = self.report.read_to_string(&mut message);
        let status = self.reap();
        let code = status.and_then(WaitStatus::exit_status);
        let signal = status.and_then(WaitStatus::terminating_signal);
        assert!(code == Some(0), "the child failed (exit {code:?}, signal {signal:?}): {message}");
    }

    fn reap(&mut self) -> Option<WaitStatus> {
        self.reaped = true;
        waitpid(Some(self.pid), WaitOptions::empty()).ok().flatten().map(|(_, status)| status)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.line.shutdown(Shutdown::Both);
            let _ = kill_process(self.pid, Signal::KILL);
            self.reap();
        }
    }
}
