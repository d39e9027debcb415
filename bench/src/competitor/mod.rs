//! The competitors: one file each, all behind the same two traits.

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

use anyhow::{Result, bail};

use crate::case::Case;
use crate::image::Image;
use crate::pages::{Change, write};

pub(crate) use changed_pages::ChangedPages;
pub(crate) use copy::Copy;
pub(crate) use crumbles::Crumbles;
pub(crate) use fork::{Fork, keep_out_of_children};
pub(crate) use limit::{Limit, copies_of_zeroes};
pub(crate) use memmap2::{Memmap2, map};
pub(crate) use memsnap::Memsnap;
pub(crate) use memsnap_0_1::Memsnap01;
pub(crate) use memsnap_logged::MemsnapLogged;
pub(crate) use system_calls::{Private, SystemCalls};
pub(crate) use wasmtime::{Wasmtime, private_pages};

/// What a competitor is asked to do again and again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    /// Take snapshots, of which the last `kept` are kept, one at least.
    Take {
        kept: usize,
    },
    Restore,
}

/// A way of doing the work.
pub(crate) trait Competitor: Sync {
    fn name(&self) -> &'static str;

    /// Why it cannot do this, if it cannot.
    fn obstacle(&self, _case: &Case, _operation: Operation) -> Option<&'static str> {
        None
    }

    /// About how much memory it holds at most, besides the image.
    fn memory(&self, case: &Case, operation: Operation) -> usize;

    /// A region that shows the image; one that is to be sparse may show zeroes instead.
    fn open(&self, image: &Image, case: &Case) -> Result<Box<dyn Region>>;
}

/// A snapshot, which is kept until it is dropped.
pub(crate) type Taken = Box<dyn Any + Send + Sync>;

/// Memory that can be written, and of which snapshots can be taken or which can be put back.
///
/// `changes` names the pages written since the last call, in ascending order; only the limit and the bare system calls
/// may look at it.
pub(crate) trait Region: Send {
    fn bytes(&mut self) -> &mut [u8];

    /// Writes `value`, which must differ from what is there, into each page of `changes`.
    fn write(&mut self, changes: &[Change], value: u64) {
        write(self.bytes(), changes, value);
    }

    /// What has to be done before [`take`](Self::take), but is no part of it.
    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    fn take(&mut self, changes: &[Change]) -> Result<Taken>;

    /// Restores the region to the image.
    fn restore(&mut self, changes: &[Change]) -> Result<()>;

    /// Restores the region to `taken`, the snapshot that was taken last.
    fn restore_to(&mut self, _taken: &Taken, _changes: &[Change]) -> Result<()> {
        bail!("cannot go back to a snapshot that it took")
    }

    /// Time to be added to each call.
    fn surcharge(&self, _changes: &[Change]) -> Duration {
        Duration::ZERO
    }
}

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

/// The bytes of the snapshots that are kept, where each is a copy of everything.
fn copies(case: &Case, operation: Operation) -> usize {
    match operation {
        Operation::Take { kept } => case.bytes * kept,
        Operation::Restore => 0,
    }
}
