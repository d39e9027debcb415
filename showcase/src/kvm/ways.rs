//! Ways to reset a virtual machine to a checkpoint, which are compared with each other.
#![allow(unsafe_code)]

use std::os::fd::OwnedFd;
use std::ptr;
use std::slice;

use anyhow::{Context, Result};
use kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES;
use memsnap::ViewOptions;
use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

use super::guest::{self, MEMORY, Report};
use super::machine::{Checkpoint, Machine, Memory, Vm};

/// A machine that can be reset to one checkpoint.
pub(super) trait Way {
    fn reset(&mut self) -> Result<()>;
    fn run(&mut self) -> Result<Report>;
}

pub(super) const MEMSNAP: &str = "memsnap";

/// Returns all ways with their names. Each has a machine of its own, in the state `checkpoint`.
pub(super) fn all(checkpoint: &Checkpoint) -> Result<Vec<(&'static str, Box<dyn Way>)>> {
    let bytes = || checkpoint.memory().view().map(|view| view.to_vec());
    let plain = |reset| Plain::new(checkpoint, reset).map(Box::new);
    Ok(vec![
        (MEMSNAP, Box::new(Restore::new(checkpoint, &ViewOptions::new())?)),
        (
            "memsnap, logged, with KVM's dirty log",
            Box::new(Restore::new(checkpoint, &ViewOptions::logged())?),
        ),
        ("copying all guest memory", plain(Reset::Copy(bytes()?))?),
        ("remapping guest memory", plain(Reset::Remap(image_file(checkpoint)?))?),
        ("copying the pages in KVM's dirty log", plain(Reset::DirtyLog(bytes()?))?),
        ("a new machine that maps the same file", plain(Reset::Renew(image_file(checkpoint)?))?),
    ])
}

struct Restore<A: Memory> {
    machine: Machine<A>,
    checkpoint: Checkpoint,
}

impl<A: Memory> Restore<A> {
    fn new(checkpoint: &Checkpoint, options: &ViewOptions<A>) -> Result<Self> {
        let machine = Machine::from_checkpoint(checkpoint, options)?;
        Ok(Self { machine, checkpoint: checkpoint.clone() })
    }
}

impl<A: Memory> Way for Restore<A> {
    fn reset(&mut self) -> Result<()> {
        self.machine.restore(&self.checkpoint)
    }

    fn run(&mut self) -> Result<Report> {
        self.machine.run()
    }
}

/// How a machine is reset without memsnap.
enum Reset {
    /// Copies all of memory.
    Copy(Vec<u8>),
    /// Copies the pages in KVM's dirty log.
    DirtyLog(Vec<u8>),
    /// Maps a file with the bytes of memory again.
    Remap(OwnedFd),
    /// Makes a new machine that maps the file.
    Renew(OwnedFd),
}

struct Plain {
    // This field is dropped first, because it uses the memory.
    vm: Vm,
    memory: Mapping,
    checkpoint: Checkpoint,
    reset: Reset,
}

impl Plain {
    fn new(checkpoint: &Checkpoint, reset: Reset) -> Result<Self> {
        let (memory, flags) = match &reset {
            Reset::Copy(image) => (Mapping::copied(image)?, 0),
            Reset::DirtyLog(image) => (Mapping::copied(image)?, KVM_MEM_LOG_DIRTY_PAGES),
            Reset::Remap(file) | Reset::Renew(file) => (Mapping::of(file)?, 0),
        };
        // SAFETY: a `Mapping` has `MEMORY` bytes, readable and writable, at one address as long as it exists, even if it
        // is mapped again. It is dropped after the machine, because fields are dropped in their order. The guest runs
        // only in `run`, which borrows all of `self` mutably, so nothing else uses the bytes at that time.
        let vm = unsafe { Vm::new(memory.start, flags) }?;
        vm.set_state(checkpoint.cpu())?;
        Ok(Self { vm, memory, checkpoint: checkpoint.clone(), reset })
    }
}

impl Way for Plain {
    fn reset(&mut self) -> Result<()> {
        match &self.reset {
            Reset::Copy(image) => self.memory.bytes_mut().copy_from_slice(image),
            Reset::DirtyLog(image) => {
                let memory = self.memory.bytes_mut();
                for written in self.vm.written()? {
                    memory[written.clone()].copy_from_slice(&image[written]);
                }
            }
            Reset::Remap(file) => self.memory.map_again(file)?,
            Reset::Renew(file) => {
                let file = file.try_clone().context("duplicating the descriptor of the memfd")?;
                *self = Self::new(&self.checkpoint, Reset::Renew(file))?;
                return Ok(());
            }
        }
        self.vm.set_state(self.checkpoint.cpu())
    }

    fn run(&mut self) -> Result<Report> {
        self.vm.run()?;
        Ok(guest::report(self.memory.bytes()))
    }
}

/// Makes a memfd with the bytes of guest memory.
fn image_file(checkpoint: &Checkpoint) -> Result<OwnedFd> {
    let file = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).context("making a memfd")?;
    let bytes = checkpoint.memory().view()?;
    let mut written = 0;
    while written < bytes.len() {
        written += rustix::io::pwrite(&file, &bytes[written..], written as u64)
            .with_context(|| format!("writing {} bytes of guest memory to a memfd", bytes.len()))?;
    }
    Ok(file)
}

/// [`MEMORY`] bytes of address space, readable and writable, private to this process.
struct Mapping {
    start: *mut u8,
}

impl Mapping {
    const ACCESS: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

    fn anonymous() -> Result<Self> {
        // SAFETY: the system chooses an address where nothing is mapped, so no memory in use is touched.
        let start =
            unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), MEMORY, Self::ACCESS, MapFlags::PRIVATE) };
        Ok(Self { start: start.with_context(|| format!("mapping {MEMORY} bytes"))?.cast() })
    }

    fn copied(bytes: &[u8]) -> Result<Self> {
        let mut mapping = Self::anonymous()?;
        mapping.bytes_mut().copy_from_slice(bytes);
        Ok(mapping)
    }

    fn of(file: &OwnedFd) -> Result<Self> {
        // SAFETY: as above.
        let start =
            unsafe { rustix::mm::mmap(ptr::null_mut(), MEMORY, Self::ACCESS, MapFlags::PRIVATE, file, 0) };
        Ok(Self { start: start.with_context(|| format!("mapping {MEMORY} bytes of a memfd"))?.cast() })
    }

    fn map_again(&mut self, file: &OwnedFd) -> Result<()> {
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        // SAFETY: the range belongs to this mapping, and no reference to its bytes exists.
        let start = unsafe { rustix::mm::mmap(self.start.cast(), MEMORY, Self::ACCESS, flags, file, 0) };
        start.with_context(|| format!("mapping {MEMORY} bytes of a memfd again")).map(drop)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `MEMORY` bytes are mapped there as long as `self` exists. The guest, which writes them, does not run
        // while they are borrowed.
        unsafe { slice::from_raw_parts(self.start, MEMORY) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and this is the only reference.
        unsafe { slice::from_raw_parts_mut(self.start, MEMORY) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range belongs to this mapping, and nothing uses it from now on. If the call fails, the range stays
        // mapped.
        let _ = unsafe { rustix::mm::munmap(self.start.cast(), MEMORY) };
    }
}
