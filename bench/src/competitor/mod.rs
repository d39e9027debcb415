//! The competitors: a file for each, which implements the two traits below.

mod changed_pages;
mod copy;
mod crumbles;
mod fork;
mod limit;
mod memmap2;
mod memsnap;
mod memsnap_0_1;
mod memsnap_logged;
mod system_calls;
mod wasmtime;

use std::any::Any;
use std::time::Duration;

use ::memsnap::page_size;
use anyhow::{Result, bail};

use crate::case::Case;
use crate::image::Image;
use crate::pages::{Change, write};

pub(crate) use changed_pages::ChangedPages;
pub(crate) use copy::Copy;
pub(crate) use crumbles::Crumbles;
pub(crate) use fork::{Fork, keep_out_of_children};
pub(crate) use limit::{Limit, copies_of_zeroes};
pub(crate) use memmap2::Memmap2;
pub(crate) use memsnap::Memsnap;
pub(crate) use memsnap_0_1::Memsnap01;
pub(crate) use memsnap_logged::MemsnapLogged;
pub(crate) use system_calls::{Private, SystemCalls};
pub(crate) use wasmtime::{Wasmtime, private_pages};

/// The operation that a workload repeats.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    /// Takes snapshots, and keeps the last `kept` of them, at least one.
    Take { kept: usize },
    /// Restores the image.
    Restore,
}

/// A way to take snapshots of memory and to restore it.
pub(crate) trait Competitor: Sync {
    fn name(&self) -> &'static str;

    /// Returns why the competitor cannot perform the operation in this case, or `None` if it can.
    fn obstacle(&self, _case: &Case, _operation: Operation) -> Option<&'static str> {
        None
    }

    /// Returns an estimate of the most bytes that the competitor holds in addition to the image.
    fn memory(&self, case: &Case, operation: Operation) -> usize;

    /// Opens a region that contains the image, or zeroes if the region is to be sparse.
    fn open(&self, image: &Image, case: &Case) -> Result<Box<dyn Region>>;
}

/// A snapshot, which exists until it is dropped.
pub(crate) type Taken = Box<dyn Any + Send + Sync>;

/// Memory that can be written, and of which snapshots can be taken or which can be restored.
///
/// `changes` lists the pages that were written since the last call, in ascending order. Only the limit and the bare
/// system calls may use this list.
pub(crate) trait Region: Send {
    fn bytes(&mut self) -> &mut [u8];

    /// Writes `value` to the word of each change. It must differ from the bytes that it replaces.
    fn write(&mut self, changes: &[Change], value: u64) {
        write(self.bytes(), changes, value);
    }

    /// Prepares for [`take`](Self::take). The time of this call is not measured.
    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    fn take(&mut self, changes: &[Change]) -> Result<Taken>;

    /// Restores the region to the image.
    fn restore(&mut self, changes: &[Change]) -> Result<()>;

    /// Restores the region to `taken`, the snapshot that was taken last.
    fn restore_to(&mut self, _taken: &Taken, _changes: &[Change]) -> Result<()> {
        bail!("this competitor cannot restore a snapshot that it took")
    }

    /// Returns the time to add to the measured time of a call.
    fn surcharge(&self, _changes: &[Change]) -> Duration {
        Duration::ZERO
    }
}

/// Returns the competitors that take part in most workloads.
pub(crate) fn all() -> Vec<Box<dyn Competitor>> {
    vec![
        Box::new(Memsnap::default()),
        Box::new(MemsnapLogged::default()),
        Box::new(Limit::WithEntries),
        Box::new(Memsnap01),
        Box::new(Fork),
        Box::new(Wasmtime::keeping_all()),
        Box::new(Wasmtime::keeping_one_mebibyte()),
        Box::new(Memmap2),
        Box::new(Copy),
        Box::new(Crumbles),
    ]
}

/// Returns the bytes of the kept snapshots, if each is a copy of the whole region.
fn copies(case: &Case, operation: Operation) -> usize {
    match operation {
        Operation::Take { kept } => case.bytes * kept,
        Operation::Restore => 0,
    }
}

/// Returns an estimate of the bytes of captured and private pages that memsnap holds.
fn captured(case: &Case, operation: Operation) -> usize {
    let pages = match operation {
        Operation::Take { kept } => (kept + 2) * case.changed,
        Operation::Restore => case.changed,
    };
    pages * page_size()
}
