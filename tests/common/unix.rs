//! Functions for Unix: forked children, and limits of the process.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::{panic, thread};

use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus, getrlimit, kill_process,
    setrlimit, waitid, waitpid,
};

use super::skip;

/// The side of a fork on which the caller runs.
pub(crate) enum Fork {
    InParent(Child),
    InChild(Parent),
}

/// The parent's side: a socket to the child, and a socket on which the child reports a panic.
pub(crate) struct Child {
    pid: Pid,
    line: UnixStream,
    report: UnixStream,
    reaped: bool,
}

/// The child's side: a socket to the parent.
///
/// The child ends when this value does, so that it never returns to the test harness. `exit` ends it with
/// success. Dropping the value, as a panic does, ends it with failure.
pub(crate) struct Parent(UnixStream);

/// Forks the process.
///
/// The caller holds [`serial`](super::serial), so that no other thread uses memsnap. Only the test
/// `companion` forks while other threads use memsnap. Its children use only views that no thread is calling.
pub(crate) fn fork() -> Fork {
    let (line, childs_line) = UnixStream::pair().unwrap();
    let (report, reporter) = UnixStream::pair().unwrap();
    // SAFETY: the child needs no lock that another thread may hold: it prints nothing, the C library keeps
    // `malloc` usable, and no other thread is calling the views that the child uses.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", io::Error::last_os_error()),
        0 => {
            drop((line, report));
            // SAFETY: `alarm` touches no memory. Its signal ends a child that hangs.
            unsafe { libc::alarm(600) };
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

/// Returns the value. If io_uring is not available, skips the test and returns `None`.
///
/// The kernel may have no io_uring, or forbid it. For users other than root it may also limit the memory of a
/// ring, which it counts as locked memory, so any error skips the test.
#[track_caller]
pub(crate) fn of_ring<T>(test: &str, made: io::Result<T>) -> Option<T> {
    match made {
        Err(error)
            if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied)
                || !rustix::process::geteuid().is_root() =>
        {
            skip(test, format!("io_uring: {error}"));
            None
        }
        made => Some(made.unwrap()),
    }
}

/// Locks these bytes in memory.
///
/// Skips the test and returns `false` if a user other than root may not do this.
pub(crate) fn lock(test: &str, bytes: &[u8]) -> bool {
    // SAFETY: the bytes are mapped, and locking changes none of them.
    if unsafe { libc::mlock(bytes.as_ptr().cast(), bytes.len()) } == 0 {
        return true;
    }
    let error = io::Error::last_os_error();
    assert!(!rustix::process::geteuid().is_root(), "mlock: {error}");
    skip(test, format!("mlock: {error}"));
    false
}

pub(crate) fn is_closed_on_exec(number: RawFd) -> bool {
    // SAFETY: the call takes numbers only.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    assert!(flags >= 0, "{}", io::Error::last_os_error());
    flags & libc::FD_CLOEXEC != 0
}

/// Runs `script` in a forked child, and fails if the child fails.
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

impl Parent {
    pub(crate) fn signal(&mut self) {
        self.0.write_all(b".").expect("the parent has not ended");
    }

    /// Waits for a `signal` from the parent.
    pub(crate) fn wait(&mut self) {
        self.0.read_exact(&mut [0]).expect("the parent has not ended");
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

    /// Waits for a `signal` from the child.
    #[track_caller]
    pub(crate) fn wait(&mut self) {
        if self.line.read_exact(&mut [0]).is_err() {
            self.finish();
            panic!("the child has ended");
        }
    }

    /// Returns whether the child has ended, so that `join` does not have to wait.
    pub(crate) fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(self.pid), options).unwrap().is_some()
    }

    /// Waits for the child to end, and fails if the child failed.
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

/// A soft limit of the process, in force until the value is dropped.
pub(crate) struct Limit {
    resource: Resource,
    before: Rlimit,
    /// Files that use up the descriptors below the limit.
    fill: Vec<File>,
}

impl Limit {
    /// Prevents the process from opening any more descriptors.
    pub(crate) fn descriptors() -> Self {
        let mut limit = Self::set(Resource::Nofile, 64);
        limit.fill();
        limit
    }

    /// Limits the number of open descriptors to `most`.
    pub(crate) fn descriptors_to(most: u64) -> Self {
        Self::set(Resource::Nofile, most)
    }

    /// Uses up the descriptors that were closed since.
    pub(crate) fn fill(&mut self) {
        while let Ok(file) = File::open("/dev/null") {
            self.fill.push(file);
        }
    }

    pub(crate) fn set(resource: Resource, limit: u64) -> Self {
        let before = getrlimit(resource);
        setrlimit(resource, Rlimit { current: Some(limit), maximum: before.maximum }).unwrap();
        Self { resource, before, fill: Vec::with_capacity(64) }
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        setrlimit(self.resource, Rlimit { ..self.before }).unwrap();
    }
}

/// Returns the reading end of a pipe as a file. A thread writes `bytes` to the pipe.
pub(crate) fn pipe_of(bytes: Vec<u8>) -> File {
    File::from(OwnedFd::from(super::pipe_of(bytes)))
}
