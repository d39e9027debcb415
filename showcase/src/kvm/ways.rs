//! Ways to put a virtual machine back to a checkpoint, to be measured beside one another.

use std::os::fd::OwnedFd;
use std::ptr;
use std::slice;

use anyhow::{Context, Result};
use kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES;
use memsnap::ViewOptions;
use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

use super::guest::{self, MEMORY, Report};
use super::machine::{Checkpoint, Machine, Vm};

/// A machine that can be put back to one checkpoint.
pub(super) trait Way {
    fn reset(&mut self) -> Result<()>;
    fn run(&mut self) -> Result<Report>;
}

pub(super) const MEMSNAP: &str = "memsnap";

/// Ways by their names, each with a machine of its own at `checkpoint`.
pub(super) fn all(checkpoint: &Checkpoint) -> Result<Vec<(&'static str, Box<dyn Way>)>> {
    Ok(vec![
        (MEMSNAP, Box::new(Restore::new(checkpoint)?)),
        ("copying all guest memory", Box::new(Copy::new(checkpoint)?)),
        ("remapping it", Box::new(Remap::new(checkpoint)?)),
        ("copying what KVM's dirty log names", Box::new(DirtyLog::new(checkpoint)?)),
        ("a new machine over the same file", Box::new(Renew::new(checkpoint)?)),
    ])
}

struct Restore {
    machine: Machine,
    checkpoint: Checkpoint,
}

impl Restore {
    fn new(checkpoint: &Checkpoint) -> Result<Self> {
        let machine = Machine::from_checkpoint(checkpoint, &ViewOptions::new())?;
        Ok(Self { machine, checkpoint: checkpoint.clone() })
    }
}

impl Way for Restore {
    fn reset(&mut self) -> Result<()> {
        self.machine.restore(&self.checkpoint)
    }

    fn run(&mut self) -> Result<Report> {
        self.machine.run()
    }
}

/// A machine over memory that memsnap has nothing to do with.
struct Plain {
    // Goes first, for it uses the memory.
    vm: Vm,
    memory: Mapping,
    checkpoint: Checkpoint,
}

impl Plain {
    fn new(checkpoint: &Checkpoint, memory: Mapping, flags: u32) -> Result<Self> {
        // SAFETY: the memory goes after the machine, for fields drop in their order, and stays where it is. The guest
        // runs in `run` alone, which has all of `self` by `&mut`.
        let vm = unsafe { Vm::new(memory.start, flags) }?;
        vm.set_state(checkpoint.cpu())?;
        Ok(Self { vm, memory, checkpoint: checkpoint.clone() })
    }

    fn run(&mut self) -> Result<Report> {
        self.vm.run()?;
        Ok(guest::report(self.memory.bytes()))
    }

    fn reset_cpu(&self) -> Result<()> {
        self.vm.set_state(self.checkpoint.cpu())
    }
}

struct Copy {
    plain: Plain,
    image: Vec<u8>,
}

impl Copy {
    fn new(checkpoint: &Checkpoint) -> Result<Self> {
        let image = checkpoint.memory().view()?.to_vec();
        let mut memory = Mapping::anonymous()?;
        memory.bytes_mut().copy_from_slice(&image);
        Ok(Self { plain: Plain::new(checkpoint, memory, 0)?, image })
    }
}

impl Way for Copy {
    fn reset(&mut self) -> Result<()> {
        self.plain.memory.bytes_mut().copy_from_slice(&self.image);
        self.plain.reset_cpu()
    }

    fn run(&mut self) -> Result<Report> {
        self.plain.run()
    }
}

struct DirtyLog {
    plain: Plain,
    image: Vec<u8>,
}

impl DirtyLog {
    fn new(checkpoint: &Checkpoint) -> Result<Self> {
        let image = checkpoint.memory().view()?.to_vec();
        let mut memory = Mapping::anonymous()?;
        memory.bytes_mut().copy_from_slice(&image);
        Ok(Self { plain: Plain::new(checkpoint, memory, KVM_MEM_LOG_DIRTY_PAGES)?, image })
    }
}

impl Way for DirtyLog {
    fn reset(&mut self) -> Result<()> {
        const PAGE: usize = 4096;
        let written = self.plain.vm.written()?;
        let memory = self.plain.memory.bytes_mut();
        for (word, bits) in written.into_iter().enumerate() {
            for bit in (0..64).filter(|bit| bits >> bit & 1 != 0) {
                let page = (word * 64 + bit) * PAGE..(word * 64 + bit + 1) * PAGE;
                memory[page.clone()].copy_from_slice(&self.image[page]);
            }
        }
        self.plain.reset_cpu()
    }

    fn run(&mut self) -> Result<Report> {
        self.plain.run()
    }
}

struct Remap {
    plain: Plain,
    image: OwnedFd,
}

impl Remap {
    fn new(checkpoint: &Checkpoint) -> Result<Self> {
        let image = image_file(checkpoint)?;
        Ok(Self { plain: Plain::new(checkpoint, Mapping::of(&image)?, 0)?, image })
    }
}

impl Way for Remap {
    fn reset(&mut self) -> Result<()> {
        self.plain.memory.map_again(&self.image)?;
        self.plain.reset_cpu()
    }

    fn run(&mut self) -> Result<Report> {
        self.plain.run()
    }
}

struct Renew {
    plain: Plain,
    image: OwnedFd,
}

impl Renew {
    fn new(checkpoint: &Checkpoint) -> Result<Self> {
        let image = image_file(checkpoint)?;
        Ok(Self { plain: Plain::new(checkpoint, Mapping::of(&image)?, 0)?, image })
    }
}

impl Way for Renew {
    fn reset(&mut self) -> Result<()> {
        self.plain = Plain::new(&self.plain.checkpoint, Mapping::of(&self.image)?, 0)?;
        Ok(())
    }

    fn run(&mut self) -> Result<Report> {
        self.plain.run()
    }
}

/// A memfd with the bytes of guest memory.
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
        // SAFETY: the system chooses an address where nothing is mapped.
        let start =
            unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), MEMORY, Self::ACCESS, MapFlags::PRIVATE) };
        Ok(Self { start: start.with_context(|| format!("mapping {MEMORY} bytes"))?.cast() })
    }

    fn of(file: &OwnedFd) -> Result<Self> {
        // SAFETY: as above.
        let start =
            unsafe { rustix::mm::mmap(ptr::null_mut(), MEMORY, Self::ACCESS, MapFlags::PRIVATE, file, 0) };
        Ok(Self { start: start.with_context(|| format!("mapping {MEMORY} bytes of a memfd"))?.cast() })
    }

    fn map_again(&mut self, file: &OwnedFd) -> Result<()> {
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        // SAFETY: the range is this mapping's own, and nobody has a reference to its bytes.
        let start = unsafe { rustix::mm::mmap(self.start.cast(), MEMORY, Self::ACCESS, flags, file, 0) };
        start.with_context(|| format!("mapping {MEMORY} bytes of a memfd again")).map(drop)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: so many bytes are mapped there as long as `self` lives; the guest, which writes them, does not run
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
        // SAFETY: the range is this mapping's own, and nobody uses it any more. Should it fail, the range stays mapped.
        let _ = unsafe { rustix::mm::munmap(self.start.cast(), MEMORY) };
    }
}
