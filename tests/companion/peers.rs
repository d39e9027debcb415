//! Other processes: two that write to this process's memory, and one that reads it all the time.
//!
//! They are forked before this process uses memsnap, and do not use it themselves.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use memsnap::page_size;
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, set_parent_process_death_signal};

use crate::account::{Kind, count, done, has, is_active, is_over, refused, somewhere};
use crate::common::script::Random;
use crate::common::unix::{Child, Fork, fork};
use crate::raw;

/// A process that writes the bytes that this process sends it to this process's memory.
pub(crate) struct Writer {
    line: Mutex<UnixStream>,
    child: Child,
}

/// A function that writes to the memory of another process.
pub(crate) type WriteTo = fn(Pid, usize, &[u8]) -> io::Result<()>;

pub(crate) fn by_vm_write(pid: Pid, address: usize, bytes: &[u8]) -> io::Result<()> {
    raw::vm_write(pid.as_raw_nonzero().get(), address, bytes)
}

pub(crate) fn by_mem(pid: Pid, address: usize, bytes: &[u8]) -> io::Result<()> {
    let memory = OpenOptions::new().write(true).open(format!("/proc/{}/mem", pid.as_raw_nonzero()))?;
    memory.write_all_at(bytes, address as u64)
}

/// Forks a child that may write to the memory of this process, and that ends when this process ends.
fn fork_peer() -> (Pid, Fork) {
    let pid = getpid();
    // SAFETY: the call takes numbers only. If the Yama module is active, the call lets children trace this
    // process. Without Yama, they may do so anyway.
    let _ = unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
    let fork = fork();
    if let Fork::InChild(_) = fork {
        // SAFETY: the call takes a number only. It cancels the alarm.
        unsafe { libc::alarm(0) };
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
    }
    (pid, fork)
}

impl Writer {
    /// Starts the process, and makes it try one write.
    pub(crate) fn start(kind: Kind, write: WriteTo) -> Self {
        let (line, theirs) = UnixStream::pair().unwrap();
        let child = match fork_peer() {
            (parent, Fork::InChild(this)) => {
                drop(line);
                let _ = serve(theirs, parent, write);
                this.exit()
            }
            (_, Fork::InParent(child)) => child,
        };
        drop(theirs);
        let writer = Self { line: Mutex::new(line), child };
        let target = [0_u8; 100];
        if let Err(error) = writer.write(target.as_ptr().expose_provenance(), &target) {
            refused(kind, &error);
        }
        writer
    }

    /// Makes the process write `bytes` at `address`. Nobody may use these bytes meanwhile.
    pub(crate) fn write(&self, address: usize, bytes: &[u8]) -> io::Result<()> {
        let mut line = self.line.lock().unwrap();
        line.write_all(&address.to_ne_bytes())?;
        line.write_all(&bytes.len().to_ne_bytes())?;
        line.write_all(bytes)?;
        let mut errno = [0; 4];
        line.read_exact(&mut errno)?;
        match i32::from_ne_bytes(errno) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    pub(crate) fn join(self) {
        // Dropping the socket is not enough, since the peers that were forked later have it open too.
        self.line.lock().unwrap().shutdown(Shutdown::Both).unwrap();
        self.child.join();
    }
}

/// Performs the requested writes until the socket is shut down.
fn serve(mut line: UnixStream, parent: Pid, write: WriteTo) -> io::Result<()> {
    loop {
        let mut number = [0; size_of::<usize>()];
        line.read_exact(&mut number)?;
        let address = usize::from_ne_bytes(number);
        line.read_exact(&mut number)?;
        let mut bytes = vec![0; usize::from_ne_bytes(number)];
        line.read_exact(&mut bytes)?;
        let errno = match write(parent, address, &bytes) {
            Ok(()) => 0,
            Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
        };
        line.write_all(&errno.to_ne_bytes())?;
    }
}

/// Starts a process that reads this process's memory and gives advice on it until the test ends.
pub(crate) fn watch(seed: u64) -> Child {
    let (mut line, mut theirs) = UnixStream::pair().unwrap();
    let child = match fork_peer() {
        (parent, Fork::InChild(this)) => {
            drop(line);
            // The parent has this page too, since this process is a fork of it.
            let page = vec![1_u8; 3 * page_size()];
            let start = page.as_ptr().expose_provenance().next_multiple_of(page_size());
            let probe = start..start + page_size();
            let errno =
                |result: io::Result<()>| result.err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO));
            let pidfd = pidfd_open(parent, PidfdFlags::empty()).map_err(io::Error::from);
            let read = raw::vm_read(parent.as_raw_nonzero().get(), &probe);
            let advised = match &pidfd {
                Ok(pidfd) => raw::advise_other(pidfd.as_fd(), &probe, libc::MADV_COLD),
                Err(error) => Err(io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO))),
            };
            for result in [read, advised] {
                theirs.write_all(&errno(result).to_ne_bytes()).unwrap();
            }
            let mut random = Random(seed);
            while !is_over() {
                thread::sleep(Duration::from_micros(random.below(400) as u64));
                let Some(range) = somewhere(&mut random) else { continue };
                match [Kind::PeerVmRead, Kind::PeerAdvice][random.below(2)] {
                    kind if !is_active(kind) => {}
                    Kind::PeerVmRead => {
                        // This fails if the view is gone.
                        let _ = raw::vm_read(parent.as_raw_nonzero().get(), &range);
                        done(Kind::PeerVmRead);
                    }
                    kind => {
                        let advice =
                            [libc::MADV_PAGEOUT, libc::MADV_COLD, libc::MADV_WILLNEED][random.below(3)];
                        if let Ok(pidfd) = &pidfd {
                            let _ = raw::advise_other(pidfd.as_fd(), &range, advice);
                            done(kind);
                        }
                    }
                }
            }
            this.exit()
        }
        (_, Fork::InParent(child)) => child,
    };
    drop(theirs);
    for kind in [Kind::PeerVmRead, Kind::PeerAdvice] {
        let mut errno = [0; 4];
        line.read_exact(&mut errno).unwrap();
        match i32::from_ne_bytes(errno) {
            0 => assert!(has(kind) && count(kind) == 0),
            errno => refused(kind, &io::Error::from_raw_os_error(errno)),
        }
    }
    child
}
