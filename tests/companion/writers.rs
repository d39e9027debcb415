//! Threads that write to views at the same time, in every way that the test knows.

use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;
use std::time::Duration;

use memsnap::page_size;
use rustix::process::getpid;

use crate::account::{Kind, done, has, is_over, refused};
use crate::peers::Writer;
use crate::raw;
use crate::ring::Ring;

/// A write. Only the thread that has the job uses the bytes at `address` until the job is done.
pub(crate) struct Job {
    pub(crate) kind: Kind,
    pub(crate) address: usize,
    pub(crate) bytes: Vec<u8>,
}

/// Threads that perform jobs.
pub(crate) struct Lanes {
    jobs: Vec<Sender<Job>>,
    done: Receiver<Result<(), String>>,
}

/// Other processes that write in their own ways.
pub(crate) struct Peers {
    pub(crate) by_vm_write: Writer,
    pub(crate) by_mem: Writer,
}

impl Lanes {
    pub(crate) fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        lanes: usize,
        peers: &'scope Peers,
    ) -> Self {
        let (report, done) = channel();
        let start = |_| {
            let (sender, jobs) = channel::<Job>();
            let report = report.clone();
            scope.spawn(move || {
                let mut tools = Tools::new();
                for job in jobs {
                    let result = tools.write(&job, peers);
                    let result = result.map_err(|error| {
                        format!("{} of {} bytes: {error}", job.kind.name(), job.bytes.len())
                    });
                    if report.send(result).is_err() {
                        break;
                    }
                }
            });
            sender
        };
        Self { jobs: (0..lanes).map(start).collect(), done }
    }

    /// Performs all these writes at the same time, and calls `meanwhile` while they run.
    pub(crate) fn write(&self, jobs: Vec<Job>, meanwhile: impl FnOnce()) {
        let count = jobs.len();
        for (i, job) in jobs.into_iter().enumerate() {
            self.jobs[i % self.jobs.len()].send(job).expect("the thread has not ended");
        }
        meanwhile();
        for _ in 0..count {
            let done = loop {
                match self.done.recv_timeout(Duration::from_millis(100)) {
                    Ok(done) => break done,
                    Err(_) => assert!(!is_over(), "another thread has failed"),
                }
            };
            done.unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

/// The files and sockets with which one thread writes.
struct Tools {
    file: File,
    own_memory: File,
    /// A file to write to, and the same file opened with `O_DIRECT` for reading.
    direct: Option<(File, File)>,
    pipe: (PipeReader, PipeWriter),
    sockets: (UnixStream, UnixStream),
    ring: Option<Ring>,
}

/// The number of bytes that fit into a pipe and into a socket.
const CHUNK: usize = 16 << 10;

impl Tools {
    fn new() -> Self {
        let ring = Ring::new().map_err(|error| refused(Kind::Ring, &error));
        let direct = direct_file().map_err(|error| refused(Kind::Direct, &error));
        Self {
            file: tempfile::tempfile().unwrap(),
            own_memory: OpenOptions::new().write(true).open("/proc/self/mem").unwrap(),
            direct: direct.ok(),
            pipe: io::pipe().unwrap(),
            sockets: UnixStream::pair().unwrap(),
            ring: ring.ok(),
        }
    }

    fn write(&mut self, job: &Job, peers: &Peers) -> io::Result<()> {
        let Job { kind, address, ref bytes } = *job;
        let mut kind = kind;
        // A kind that the system does not support is replaced by plain stores.
        if !has(kind) {
            kind = Kind::Store;
        }
        let chunks = || {
            bytes.chunks(CHUNK).scan(address, |next, chunk| {
                let at = *next;
                *next += chunk.len();
                Some((at, chunk))
            })
        };
        match (kind, &self.direct, &mut self.ring) {
            (Kind::File, ..) => {
                self.file.write_all_at(bytes, 0)?;
                raw::pread(&self.file, address, bytes.len())?;
            }
            (Kind::Direct, Some((file, direct)), _) => {
                file.write_all_at(bytes, 0)?;
                raw::pread(direct, address, bytes.len())?;
            }
            (Kind::Pipe, ..) => {
                for (at, chunk) in chunks() {
                    self.pipe.1.write_all(chunk)?;
                    raw::read(self.pipe.0.as_fd(), at, chunk.len())?;
                }
            }
            (Kind::Socket, ..) => {
                for (at, chunk) in chunks() {
                    self.sockets.1.write_all(chunk)?;
                    raw::receive(self.sockets.0.as_fd(), at, chunk.len())?;
                }
            }
            (Kind::Ring, _, Some(ring)) => {
                self.file.write_all_at(bytes, 0)?;
                ring.read(&self.file, address, bytes.len())?;
            }
            (Kind::VmWrite, ..) => raw::vm_write(getpid().as_raw_nonzero().get(), address, bytes)?,
            (Kind::OwnMem, ..) => self.own_memory.write_all_at(bytes, address as u64)?,
            (Kind::PeerVmWrite, ..) => peers.by_vm_write.write(address, bytes)?,
            (Kind::PeerMem, ..) => peers.by_mem.write(address, bytes)?,
            _ => {
                raw::store(address, bytes);
                kind = Kind::Store;
            }
        }
        done(kind);
        Ok(())
    }
}

/// Returns a file to write to, and the same file opened with `O_DIRECT` for reading.
fn direct_file() -> io::Result<(File, File)> {
    let named = tempfile::NamedTempFile::new()?;
    named.as_file().write_all_at(&vec![0; page_size()], 0)?;
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(named.path())?;
    let probe = vec![0_u8; 2 * page_size()];
    raw::pread(&direct, probe.as_ptr().expose_provenance().next_multiple_of(page_size()), page_size())?;
    Ok((named.into_file(), direct))
}
