//! The state of a virtual processor, as a value.
#![allow(unsafe_code)]

use anyhow::{Context, Result, ensure};
use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

/// The state of a processor that has no interrupt controller of KVM: registers and pending events.
///
/// It is complete if the guest uses only the model-specific registers for system calls, memory types and time.
#[derive(Serialize, Deserialize)]
pub(super) struct State {
    general: kvm_regs,
    special: kvm_sregs,
    extended: kvm_xsave,
    extended_control: kvm_xcrs,
    debug: kvm_debugregs,
    events: kvm_vcpu_events,
    #[serde(with = "entries")]
    model_specific: Msrs,
}

/// Serializes model-specific registers as a list of entries.
mod entries {
    use kvm_bindings::{Msrs, kvm_msr_entry};
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(registers: &Msrs, serializer: S) -> Result<S::Ok, S::Error> {
        registers.as_slice().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Msrs, D::Error> {
        let entries = Vec::<kvm_msr_entry>::deserialize(deserializer)?;
        Msrs::from_entries(&entries).map_err(|error| {
            D::Error::custom(format!("{} model-specific registers: {error:?}", entries.len()))
        })
    }
}

/// The model-specific registers that are part of the state.
///
/// They are the registers that system calls and `swapgs` use, the memory types, and the time stamp counter, so that the
/// clock of a guest is restored too. Their numbers are in volume 4 of Intel's manual.
const MSRS: [u32; 10] = [
    0x10,        // TSC
    0x174,       // SYSENTER_CS
    0x175,       // SYSENTER_ESP
    0x176,       // SYSENTER_EIP
    0x277,       // PAT
    0xc000_0081, // STAR
    0xc000_0082, // LSTAR
    0xc000_0083, // CSTAR
    0xc000_0084, // FMASK
    0xc000_0102, // KERNEL_GS_BASE
];

impl State {
    /// Reads the state of `cpu`, which must have no pending exit.
    ///
    /// # Errors
    ///
    /// Fails if KVM refuses a call.
    pub(super) fn of(cpu: &VcpuFd) -> Result<Self> {
        let entries = MSRS.map(|index| kvm_msr_entry { index, ..kvm_msr_entry::default() });
        let mut model_specific = Msrs::from_entries(&entries).context("listing model-specific registers")?;
        let read = cpu.get_msrs(&mut model_specific).context("reading model-specific registers")?;
        ensure!(read == MSRS.len(), "KVM read only {read} of {} model-specific registers", MSRS.len());
        Ok(Self {
            general: cpu.get_regs().context("reading general registers")?,
            special: cpu.get_sregs().context("reading special registers")?,
            extended: cpu.get_xsave().context("reading vector registers")?,
            extended_control: cpu.get_xcrs().context("reading extended control registers")?,
            debug: cpu.get_debug_regs().context("reading debug registers")?,
            events: cpu.get_vcpu_events().context("reading pending events")?,
            model_specific,
        })
    }

    /// Puts `cpu` into this state.
    ///
    /// # Errors
    ///
    /// Fails if KVM refuses a call. The state of the processor is then a mixture, until a later call succeeds.
    pub(super) fn put(&self, cpu: &VcpuFd) -> Result<()> {
        // These come first, because they decide which values the others can have.
        cpu.set_sregs(&self.special).context("writing special registers")?;
        cpu.set_xcrs(&self.extended_control).context("writing extended control registers")?;
        // SAFETY: `Vm::new` has checked that the state of all enabled features fits into `kvm_xsave`.
        unsafe { cpu.set_xsave(&self.extended) }.context("writing vector registers")?;
        let written = cpu.set_msrs(&self.model_specific).context("writing model-specific registers")?;
        ensure!(written == MSRS.len(), "KVM wrote only {written} of {} model-specific registers", MSRS.len());
        cpu.set_debug_regs(&self.debug).context("writing debug registers")?;
        cpu.set_regs(&self.general).context("writing general registers")?;
        cpu.set_vcpu_events(&self.events).context("writing pending events")
    }
}
