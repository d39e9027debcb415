//! A virtual machine whose memory is a view.

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

/// One virtual processor over guest memory that belongs to somebody else.
pub(super) struct Vm {
    cpu: VcpuFd,
    fd: VmFd,
}

impl Vm {
    /// Makes a machine whose memory are the [`MEMORY`] bytes at `memory`, registered with `flags`.
    ///
    /// # Safety
    ///
    /// As long as the machine exists, these bytes are mapped, readable and writable; while it runs,
    /// nothing else reads or writes them, nor holds a reference to them.
    pub(super) unsafe fn new(memory: *mut u8, flags: u32) -> Result<Self> {
        let kvm = Kvm::new().context("opening /dev/kvm")?;
        let fd = kvm.create_vm().context("creating a virtual machine")?;
        let state = fd.check_extension_int(Cap::Xsave2);
        ensure!(
            usize::try_from(state).is_ok_and(|state| state <= size_of::<kvm_xsave>()),
            "vector registers of {state} bytes: this program has room for {}",
            size_of::<kvm_xsave>()
        );
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: memory.expose_provenance() as u64,
        };
        // SAFETY: the memory is valid as long as this machine is, by this function's contract, and is its only region.
        unsafe { fd.set_user_memory_region(region) }
            .with_context(|| format!("registering {MEMORY} bytes as guest memory"))?;
        let cpu = fd.create_vcpu(0).context("creating a virtual processor")?;
        let features = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("asking for CPUID")?;
        cpu.set_cpuid2(&features).context("setting CPUID")?;
        Ok(Self { cpu, fd })
    }

    /// Makes the next run begin with the guest's program.
    pub(super) fn start(&self) -> Result<()> {
        let mut registers = self.cpu.get_sregs().context("reading special registers")?;
        guest::enter_long_mode(&mut registers);
        self.cpu.set_sregs(&registers).context("entering long mode")?;
        self.cpu.set_regs(&guest::registers()).context("writing general registers")
    }

    /// Has the guest go `steps` in one batch from now on.
    pub(super) fn set_steps(&self, steps: usize) -> Result<()> {
        ensure!(steps > 0, "a batch has at least one step");
        let mut registers = self.cpu.get_regs().context("reading general registers")?;
        registers.r10 = steps as u64;
        self.cpu.set_regs(&registers).context("writing general registers")
    }

    /// Runs until the guest has finished a batch.
    pub(super) fn run(&mut self) -> Result<()> {
        while !self.enter()? {}
        // KVM carries the write to the port to its end on the next entry; the state is complete only then.
        self.cpu.set_kvm_immediate_exit(1);
        let ended = self.enter();
        self.cpu.set_kvm_immediate_exit(0);
        ensure!(!ended?, "the guest ran on where it was to stop");
        Ok(())
    }

    /// Enters the guest. Tells whether it wrote to the port; else a signal came first.
    fn enter(&mut self) -> Result<bool> {
        match self.cpu.run().map_err(io::Error::from) {
            Ok(VcpuExit::IoOut(guest::PORT, _)) => Ok(true),
            Ok(exit) => bail!("the guest stopped: {exit:?}"),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(error) => Err(error).context("running the guest"),
        }
    }

    /// The offsets of the pages that the guest, or KVM on its behalf, wrote since the last call.
    ///
    /// The ranges ascend. Consecutive pages are one range or a few. The memory has to be registered with
    /// `KVM_MEM_LOG_DIRTY_PAGES`.
    pub(super) fn written(&self) -> Result<impl Iterator<Item = Range<usize>> + use<>> {
        let log = self.fd.get_dirty_log(0, MEMORY).context("asking KVM which pages were written")?;
        Ok(log.into_iter().enumerate().flat_map(|(word, bits)| runs(word * 64, bits)))
    }

    pub(super) fn state(&self) -> Result<State> {
        State::of(&self.cpu)
    }

    pub(super) fn set_state(&self, state: &State) -> Result<()> {
        state.put(&self.cpu)
    }
}

/// The pages from `first` on whose bits are set, as ranges of bytes.
fn runs(first: usize, mut bits: u64) -> impl Iterator<Item = Range<usize>> {
    const PAGE: usize = 4096;
    iter::from_fn(move || {
        let lowest = bits & bits.wrapping_neg();
        let start = first + bits.trailing_zeros() as usize;
        let end = start + (bits / lowest.max(1)).trailing_ones() as usize;
        // The sum clears the bits of the run, and sets the bit behind it, which the conjunction clears.
        bits &= bits.wrapping_add(lowest);
        (start < end).then_some(start * PAGE..end * PAGE)
    })
}

/// A running virtual machine at one moment: its memory, and its processor.
#[derive(Clone)]
pub struct Checkpoint {
    memory: Snapshot,
    cpu: Arc<State>,
}

impl Checkpoint {
    /// Guest memory.
    #[must_use]
    pub fn memory(&self) -> &Snapshot {
        &self.memory
    }

    /// The processor.
    pub(super) fn cpu(&self) -> &State {
        &self.cpu
    }
}

/// The kinds of views that can be guest memory: [`Open`] and [`Logged`].
///
/// The kernel names the written pages of an open view. KVM's dirty log names those of a logged view.
pub trait Memory: Readable + Debug + Sized {
    /// Whether the machine has to report what its guest writes.
    const REPORTED: bool;

    /// Reports that the guest wrote these bytes.
    ///
    /// # Errors
    ///
    /// If the view has no such bytes.
    fn report(memory: &View<Snapshot, Self>, written: Range<usize>) -> io::Result<()>;

    /// Borrows these bytes, so that the host can write them.
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

/// A virtual machine whose memory is a view: it goes back to any checkpoint for what changed since.
pub struct Machine<A: Memory = Open> {
    // Goes first, for it uses the memory.
    vm: Vm,
    memory: View<Snapshot, A>,
}

impl<A: Memory> Machine<A> {
    /// A machine that is about to begin with the guest's program, in memory that is otherwise zero.
    ///
    /// # Errors
    ///
    /// If KVM is not there or refuses something, or if there is no memory.
    pub fn boot(options: &ViewOptions<A>) -> Result<Self> {
        let mut image = Snapshot::zeroed(MEMORY)?;
        let mut memory = image.view_mut()?;
        guest::load(&mut memory);
        memory.commit()?;
        let machine = Self::over(image, options)?;
        machine.vm.start()?;
        Ok(machine)
    }

    /// Another machine, that goes on where `checkpoint` was taken.
    ///
    /// # Errors
    ///
    /// If KVM is not there or refuses something, or if there is no memory.
    pub fn from_checkpoint(checkpoint: &Checkpoint, options: &ViewOptions<A>) -> Result<Self> {
        let machine = Self::over(checkpoint.memory.clone(), options)?;
        machine.vm.set_state(&checkpoint.cpu)?;
        Ok(machine)
    }

    fn over(image: Snapshot, options: &ViewOptions<A>) -> Result<Self> {
        let mut memory = image.into_view_with(options)?;
        let flags = if A::REPORTED { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        // SAFETY: `image` is that of `boot` or of a checkpoint, so the view has `MEMORY` bytes, and keeps them at one
        // address, readable and writable, through each restore to a checkpoint. It goes after the machine, for fields
        // drop in their order. The guest runs in `Machine::run` alone, which has all of `self` by `&mut`, so that
        // nobody else reads or writes the bytes then, or has a reference to them.
        let vm = unsafe { Vm::new(memory.as_mut_ptr(), flags) }?;
        Ok(Self { vm, memory })
    }

    /// Has the guest go `steps` in a batch from now on; one page is written in each.
    ///
    /// # Errors
    ///
    /// If there are none, or if KVM refuses it.
    pub fn set_steps(&mut self, steps: usize) -> Result<()> {
        self.vm.set_steps(steps)
    }

    /// Lets the guest do one batch; gives what it reports.
    ///
    /// # Errors
    ///
    /// If the guest does anything else than report, or if KVM refuses to run it.
    pub fn run(&mut self) -> Result<Report> {
        self.vm.run()?;
        Ok(guest::report(&self.memory))
    }

    /// Writes `bytes` to guest memory, from the address `start` on, as a device would.
    ///
    /// # Errors
    ///
    /// If guest memory has no such bytes.
    pub fn write(&mut self, start: usize, bytes: &[u8]) -> Result<()> {
        let range = start..start.saturating_add(bytes.len());
        let target = A::get_mut(&mut self.memory, range).context("writing behind the end of guest memory")?;
        target.copy_from_slice(bytes);
        Ok(())
    }

    /// Reports to the view what the guest wrote, if the view is logged.
    fn report_written(&self) -> Result<()> {
        if A::REPORTED {
            for written in self.vm.written()? {
                A::report(&self.memory, written).context("reporting what the guest wrote")?;
            }
        }
        Ok(())
    }

    /// The offsets of the pages that changed in guest memory since the last checkpoint or restore.
    ///
    /// # Errors
    ///
    /// If KVM or the kernel cannot tell what was written.
    pub fn changes(&self) -> Result<Vec<Range<usize>>> {
        self.report_written()?;
        Ok(self.memory.changes().context("listing what changed in guest memory")?.ranges().to_vec())
    }

    /// The machine as it is now.
    ///
    /// # Errors
    ///
    /// If there is no memory for what changed, or if KVM does not tell the processor's state.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        self.report_written()?;
        let memory = self.memory.take_snapshot().context("taking a snapshot of guest memory")?;
        Ok(Checkpoint { memory, cpu: Arc::new(self.vm.state()?) })
    }

    /// Puts the machine back to `checkpoint`, which may be one of another machine.
    ///
    /// # Errors
    ///
    /// If memory cannot be put back, or if KVM refuses the processor's state. The machine is to be put back again
    /// before it runs.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.report_written()?;
        self.memory.restore_to(&checkpoint.memory).context("restoring guest memory")?;
        self.vm.set_state(&checkpoint.cpu)
    }

    /// Guest memory.
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
