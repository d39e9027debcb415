#![doc = include_str!("README.md")]

mod guest;
mod machine;
pub mod measure;
pub mod saved;
mod vcpu;
mod ways;

pub use guest::{MEMORY, Model, Report, WORK_PAGES};
pub use machine::{Checkpoint, Machine, Memory};

/// Returns the reason why no virtual machine can run here, or `None` if one can.
#[must_use]
pub fn unavailable() -> Option<String> {
    let attempt = kvm_ioctls::Kvm::new()
        .map_err(|error| format!("/dev/kvm cannot be opened: {error}"))
        .and_then(|kvm| {
            kvm.create_vm().map_err(|error| format!("KVM cannot make a virtual machine: {error}"))
        })
        .and_then(|vm| {
            vm.create_vcpu(0).map_err(|error| format!("KVM cannot make a virtual processor: {error}"))
        });
    attempt.err()
}
