//! A virtual machine whose memory is a view.
#![allow(unsafe_code)]

use std::fmt::Debug;
use std::io;
use std::iter;
use std::mem::size_of;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region, kvm_xsave};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use memsnap::{Logged, Open, Readable, Snapshot, View, ViewOptions};

use super::guest::{self, MEMORY, Report};
use super::vcpu::State;

/// A virtual machine with one processor, whose memory belongs to the caller.
pub(super) struct Vm {
    cpu: VcpuFd,
    fd: VmFd,
}

impl Vm {
    /// Makes a machine with the [`MEMORY`] bytes at `memory` as guest memory, registered with `flags`.
    ///
    /// # Safety
    ///
    /// As long as the machine exists, these bytes must be mapped, readable and writable. While the machine runs, nothing
    /// else may read or write them or hold a reference to them.
    pub(super) unsafe fn new(memory: *mut u8, flags: u32) -> Result<Self> {
        let kvm = Kvm::new().context("opening /dev/kvm")?;
        let fd = kvm.create_vm().context("creating a virtual machine")?;
        let state = fd.check_extension_int(Cap::Xsave2);
        ensure!(
            usize::try_from(state).is_ok_and(|state| state <= size_of::<kvm_xsave>()),
            "the state of the vector registers takes {state} bytes, but this program only supports {}",
            size_of::<kvm_xsave>()
        );
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: memory.expose_provenance() as u64,
        };
        // SAFETY: by this function's contract, the memory is valid as long as this machine exists. It is its only region.
        unsafe { fd.set_user_memory_region(region) }
            .with_context(|| format!("registering {MEMORY} bytes as guest memory"))?;
        let cpu = fd.create_vcpu(0).context("creating a virtual processor")?;
        let features =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("reading the supported CPUID features")?;
        cpu.set_cpuid2(&features).context("setting CPUID")?;
        Ok(Self { cpu, fd })
    }

    /// Makes the next run start at the beginning of the guest's program.
    pub(super) fn start(&self) -> Result<()> {
        let mut registers = self.cpu.get_sregs().context("reading special registers")?;
        guest::enter_long_mode(&mut registers);
        self.cpu.set_sregs(&registers).context("entering long mode")?;
        self.cpu.set_regs(&guest::registers()).context("writing general registers")
    }

    /// Sets the number of steps in each batch of the guest.
    pub(super) fn set_steps(&self, steps: usize) -> Result<()> {
        ensure!(steps > 0, "a batch of 0 steps was requested; it needs at least one");
        let mut registers = self.cpu.get_regs().context("reading general registers")?;
        registers.r10 = steps as u64;
        self.cpu.set_regs(&registers).context("writing general registers")
    }

    /// Runs until the guest has finished a batch.
    pub(super) fn run(&mut self) -> Result<()> {
        while !self.enter()? {}
        // KVM completes the write to the port at the next entry. The state of the processor is complete only then.
        self.cpu.set_kvm_immediate_exit(1);
        let ended = self.enter();
        self.cpu.set_kvm_immediate_exit(0);
        ensure!(!ended?, "the guest ran on although it was asked to exit immediately");
        Ok(())
    }

    /// Enters the guest. Returns whether it wrote to the port. Otherwise, a signal interrupted it.
    fn enter(&mut self) -> Result<bool> {
        match self.cpu.run().map_err(io::Error::from) {
            Ok(VcpuExit::IoOut(guest::PORT, _)) => Ok(true),
            Ok(exit) => bail!("the guest stopped: {exit:?}"),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(error) => Err(error).context("running the guest"),
        }
    }

    /// Returns the pages that the guest, or KVM on its behalf, wrote since the last call, as ranges of bytes.
    ///
    /// The ranges are in ascending order. Consecutive pages are in one range or in a few. The memory must be registered
    /// with `KVM_MEM_LOG_DIRTY_PAGES`.
    pub(super) fn written(&self) -> Result<impl Iterator<Item = Range<usize>> + use<>> {
        let log = self.fd.get_dirty_log(0, MEMORY).context("reading the dirty log of KVM")?;
        Ok(log.into_iter().enumerate().flat_map(|(word, bits)| runs(word * 64, bits)))
    }

    pub(super) fn state(&self) -> Result<State> {
        State::of(&self.cpu)
    }

    pub(super) fn set_state(&self, state: &State) -> Result<()> {
        state.put(&self.cpu)
    }
}

/// Returns the pages from `first` on whose bits are set, as ranges of bytes.
fn runs(first: usize, mut bits: u64) -> impl Iterator<Item = Range<usize>> {
    const PAGE: usize = 4096;
    iter::from_fn(move || {
        let lowest = bits & bits.wrapping_neg();
        let start = first + bits.trailing_zeros() as usize;
        let end = start + (bits / lowest.max(1)).trailing_ones() as usize;
        // The sum clears the bits of the run and sets the next bit, which was clear. The conjunction clears it again.
        bits &= bits.wrapping_add(lowest);
        (start < end).then_some(start * PAGE..end * PAGE)
    })
}

/// The state of a virtual machine at one moment: its memory and its processor.
#[derive(Clone)]
pub struct Checkpoint {
    memory: Snapshot,
    cpu: Arc<State>,
}

impl Checkpoint {
    /// Makes a checkpoint of guest memory and the state of a processor.
    ///
    /// # Errors
    ///
    /// Fails if the snapshot does not have the length of guest memory.
    pub(super) fn new(memory: Snapshot, cpu: State) -> Result<Self> {
        let len = memory.len();
        ensure!(len == MEMORY, "a snapshot of {len} bytes is not guest memory, which has {MEMORY} bytes");
        Ok(Self { memory, cpu: Arc::new(cpu) })
    }

    /// Returns the snapshot of guest memory.
    #[must_use]
    pub fn memory(&self) -> &Snapshot {
        &self.memory
    }

    /// Returns the state of the processor.
    pub(super) fn cpu(&self) -> &State {
        &self.cpu
    }
}

/// The kinds of views that can be guest memory: [`Open`] and [`Logged`].
///
/// The kernel lists the written pages of an open view. For a logged view, KVM's dirty log lists them.
pub trait Memory: Readable + Debug + Sized {
    /// Whether the machine has to report the pages that its guest writes.
    const REPORTED: bool;

    /// Reports that the guest wrote these bytes.
    ///
    /// # Errors
    ///
    /// Fails if the range is not within the view.
    fn report(memory: &View<Snapshot, Self>, written: Range<usize>) -> io::Result<()>;

    /// Borrows these bytes, so that the host can write to them.
    fn get_mut(memory: &mut View<Snapshot, Self>, range: Range<usize>) -> Option<&mut [u8]>;
}

impl Memory for Open {
    const REPORTED: bool = false;

    fn report(_memory: &View<Snapshot>, _written: Range<usize>) -> io::Result<()> {
        Ok(())
    }

    fn get_mut(memory: &mut View<Snapshot>, range: Range<usize>) -> Option<&mut [u8]> {
        memory.as_mut_slice().get_mut(range)
    }
}

impl Memory for Logged {
    const REPORTED: bool = true;

    fn report(memory: &View<Snapshot, Self>, written: Range<usize>) -> io::Result<()> {
        memory.mark_written(written)
    }

    fn get_mut(memory: &mut View<Snapshot, Self>, range: Range<usize>) -> Option<&mut [u8]> {
        memory.get_mut(range)
    }
}

/// A virtual machine whose memory is a view, and which can be restored to any checkpoint.
///
/// The cost of a restore depends on what changed since, not on the size of the memory.
pub struct Machine<A: Memory = Open> {
    // This field is dropped first, because it uses the memory.
    vm: Vm,
    memory: View<Snapshot, A>,
}

impl<A: Memory> Machine<A> {
    /// Makes a machine at the beginning of the guest's program. The rest of its memory is zero.
    ///
    /// # Errors
    ///
    /// Fails if KVM is not available or refuses a call, or if there is not enough memory.
    pub fn boot(options: &ViewOptions<A>) -> Result<Self> {
        let mut image = Snapshot::zeroed(MEMORY)?;
        let mut memory = image.view_mut()?;
        guest::load(&mut memory);
        memory.commit()?;
        let machine = Self::over(image, options)?;
        machine.vm.start()?;
        Ok(machine)
    }

    /// Makes another machine, which continues from `checkpoint`.
    ///
    /// # Errors
    ///
    /// Fails if KVM is not available or refuses a call, or if there is not enough memory.
    pub fn from_checkpoint(checkpoint: &Checkpoint, options: &ViewOptions<A>) -> Result<Self> {
        let machine = Self::over(checkpoint.memory.clone(), options)?;
        machine.vm.set_state(&checkpoint.cpu)?;
        Ok(machine)
    }

    fn over(image: Snapshot, options: &ViewOptions<A>) -> Result<Self> {
        let mut memory = image.into_view_with(options)?;
        let flags = if A::REPORTED { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        // SAFETY: `image` is that of `boot` or of a checkpoint, so the view has `MEMORY` bytes. They stay at one address,
        // readable and writable, through each restore to a checkpoint. The view is dropped after the machine, because
        // fields are dropped in their order. The guest runs only in `Machine::run`, which borrows all of `self` mutably,
        // so nothing else reads or writes the bytes at that time or has a reference to them.
        let vm = unsafe { Vm::new(memory.as_mut_ptr(), flags) }?;
        Ok(Self { vm, memory })
    }

    /// Sets the number of steps in each batch of the guest. Each step writes to one page.
    ///
    /// # Errors
    ///
    /// Fails if `steps` is 0, or if KVM refuses a call.
    pub fn set_steps(&mut self, steps: usize) -> Result<()> {
        self.vm.set_steps(steps)
    }

    /// Runs the guest for one batch, and returns its report.
    ///
    /// # Errors
    ///
    /// Fails if the guest stops for another reason than its report, or if KVM cannot run it.
    pub fn run(&mut self) -> Result<Report> {
        self.vm.run()?;
        Ok(guest::report(&self.memory))
    }

    /// Writes `bytes` to guest memory at the address `start`, like a device.
    ///
    /// # Errors
    ///
    /// Fails if the range is not within guest memory.
    pub fn write(&mut self, start: usize, bytes: &[u8]) -> Result<()> {
        let range = start..start.saturating_add(bytes.len());
        let target = A::get_mut(&mut self.memory, range).with_context(|| {
            format!("writing {} bytes at {start:#x}, past the end of guest memory", bytes.len())
        })?;
        target.copy_from_slice(bytes);
        Ok(())
    }

    /// Reports the pages that the guest wrote to the view, if the view is logged.
    fn report_written(&self) -> Result<()> {
        if A::REPORTED {
            for written in self.vm.written()? {
                A::report(&self.memory, written).context("reporting the pages that the guest wrote")?;
            }
        }
        Ok(())
    }

    /// Returns the ranges of guest memory that changed since the last checkpoint or restore.
    ///
    /// # Errors
    ///
    /// Fails if KVM or the kernel cannot list the written pages.
    pub fn changes(&self) -> Result<Vec<Range<usize>>> {
        self.report_written()?;
        Ok(self.memory.changes().context("listing the changed pages of guest memory")?.ranges().to_vec())
    }

    /// Takes a checkpoint of the machine.
    ///
    /// # Errors
    ///
    /// Fails if there is not enough memory for the changed pages, or if KVM cannot read the state of the processor.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        self.report_written()?;
        let memory = self.memory.take_snapshot().context("taking a snapshot of guest memory")?;
        Ok(Checkpoint { memory, cpu: Arc::new(self.vm.state()?) })
    }

    /// Restores the machine to `checkpoint`, which can be a checkpoint of another machine.
    ///
    /// # Errors
    ///
    /// Fails if the memory cannot be restored, or if KVM refuses the state of the processor. After an error, restore the
    /// machine again before you run it.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.report_written()?;
        self.memory.restore_to(&checkpoint.memory).context("restoring guest memory")?;
        self.vm.set_state(&checkpoint.cpu)
    }

    /// Returns the view that is guest memory.
    #[must_use]
    pub fn memory(&self) -> &View<Snapshot, A> {
        &self.memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_the_pages_whose_bits_are_set() {
        for bits in [0, 1, 0b1101, u64::MAX, u64::MAX >> 1, u64::MAX << 1, 1 << 63, 0xf0f0_0000_ffff_0001] {
            let pages: Vec<usize> = runs(128, bits).flat_map(|run| run.step_by(4096)).collect();
            let expected = (0..64).filter(|bit| bits >> bit & 1 != 0).map(|bit| (128 + bit) * 4096);
            assert!(expected.eq(pages), "{bits:#x}");
            assert_eq!(runs(128, bits).count(), (bits & !(bits << 1)).count_ones() as usize, "{bits:#x}");
        }
    }
}
