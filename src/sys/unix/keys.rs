//! Lists the descriptors that forked children must not have, and closes them in each child.
//!
//! These descriptors give access to the memory of the parent. With the parent's userfaultfd, a child can write there.
//! With the parent's pagemap, it can hide writes of the parent from searches. With the file of a view that is written
//! in place, it can do both. `fork`
//! copies all of them to the child, so each child closes them as soon as it runs, in a `pthread_atfork` handler. If no
//! handler ran (`_Fork`, a bare `clone`), the child closes them as soon as memsnap notices the fork.
//!
//! The list has no lock, because a child may begin in the middle of any change of the list. If another thread forks
//! after a descriptor was opened and before it is listed, the child keeps that descriptor.
//!
//! How a fork is noticed is up to `system`.
#![allow(unsafe_code)]

use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, Ordering};

use rustix::io::Errno;

use super::identity::{Identity, close_if};
use crate::sys::call;
use crate::sys::system::in_child;

/// The first places of the list.
///
/// They are not on the heap: a program may keep its heap out of its children (`MADV_DONTFORK`), and the handler would
/// then crash.
static FIRST: [Place; 64] = [const { Place::free() }; 64];

/// The other places of the list. They are reused and never freed.
static PLACES: AtomicPtr<Place> = AtomicPtr::new(ptr::null_mut());

/// The last number that [`next_number`] returned.
static NUMBERS: AtomicU64 = AtomicU64::new(0);

/// The value of `Place::entry` if nothing is listed there.
const FREE: u64 = 0;

/// The value of `Place::entry` while a thread writes an entry there.
const CLAIMED: u64 = u64::MAX;

/// A place of the list, for one entry.
struct Place {
    /// `FREE`, `CLAIMED`, or the number of the entry.
    ///
    /// The fields `descriptor`, `device` and `inode` are valid only while this is the number of an entry, and do not
    /// change meanwhile.
    entry: AtomicU64,
    descriptor: AtomicI32,
    device: AtomicU64,
    inode: AtomicU64,
    next: AtomicPtr<Place>,
}

/// An entry of the list, which stays there until it is withdrawn or dropped.
pub(super) struct Key {
    place: &'static Place,
    entry: u64,
    /// Whether this value took the entry off the list. [`close_inherited`] does not set this.
    withdrawn: AtomicBool,
}

/// Returns a number greater than all that it returned before in this process and its ancestors.
///
/// It is never 0.
pub(in crate::sys) fn next_number() -> u64 {
    NUMBERS.fetch_add(1, Ordering::Relaxed) + 1
}

/// Closes each listed descriptor whose entry is older than `generation`.
///
/// `generation` is the number of the calling child. May be called any number of times, by several threads.
pub(in crate::sys) fn close_inherited(generation: u64) {
    for place in places() {
        let entry = place.entry.load(Ordering::Acquire);
        if entry == FREE || entry >= generation {
            continue;
        }
        let descriptor = place.descriptor.load(Ordering::Relaxed);
        let (device, inode) = (place.device.load(Ordering::Relaxed), place.inode.load(Ordering::Relaxed));
        // If this succeeds, the fields belong to this entry, and no other thread closes the descriptor.
        if place.change(entry, FREE) {
            close_if(descriptor, Identity { device, inode });
        }
    }
}

impl Key {
    /// Lists a descriptor.
    pub(super) fn new(descriptor: RawFd, identity: Identity) -> Result<Self, Errno> {
        register_handler()?;
        let place = places().find(|place| place.change(FREE, CLAIMED)).unwrap_or_else(add_place);
        place.descriptor.store(descriptor, Ordering::Relaxed);
        place.device.store(identity.device, Ordering::Relaxed);
        place.inode.store(identity.inode, Ordering::Relaxed);
        let entry = next_number();
        place.entry.store(entry, Ordering::Release);
        Ok(Self { place, entry, withdrawn: AtomicBool::new(false) })
    }

    /// Takes the entry off the list. Returns whether this value did so, now or before.
    ///
    /// If it did not, this process is a child that has closed the descriptor or is about to, and the place may have
    /// another entry.
    pub(super) fn withdraw(&self) -> bool {
        if self.place.change(self.entry, FREE) {
            self.withdrawn.store(true, Ordering::Relaxed);
        }
        self.withdrawn.load(Ordering::Relaxed)
    }

    pub(super) fn is_listed(&self) -> bool {
        self.place.entry.load(Ordering::Relaxed) == self.entry
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.withdraw();
    }
}

impl Place {
    const fn free() -> Self {
        Self {
            entry: AtomicU64::new(FREE),
            descriptor: AtomicI32::new(-1),
            device: AtomicU64::new(0),
            inode: AtomicU64::new(0),
            next: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Changes the entry from `from` to `to`. Returns whether it was `from`.
    fn change(&self, from: u64, to: u64) -> bool {
        self.entry.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// Returns all places of the list.
fn places() -> impl Iterator<Item = &'static Place> {
    // SAFETY: a pointer of the list is null or points at a place that `add_place` leaked, so it is valid for ever.
    // Places consist of atomics, so shared references are enough to change them.
    let shared = |place: &AtomicPtr<Place>| unsafe { place.load(Ordering::Acquire).as_ref() };
    FIRST.iter().chain(std::iter::successors(shared(&PLACES), move |place| shared(&place.next)))
}

/// Adds a place to the list, which is claimed for the caller.
fn add_place() -> &'static Place {
    let place = Box::leak(Box::new(Place {
        entry: AtomicU64::new(CLAIMED),
        next: AtomicPtr::new(PLACES.load(Ordering::Acquire)),
        ..Place::free()
    }));
    let mut next = place.next.load(Ordering::Relaxed);
    while let Err(first) =
        PLACES.compare_exchange_weak(next, &raw mut *place, Ordering::AcqRel, Ordering::Acquire)
    {
        next = first;
        place.next.store(first, Ordering::Relaxed);
    }
    place
}

/// Makes each child that is forked from now on call `in_child`.
pub(in crate::sys) fn register_handler() -> Result<(), Errno> {
    /// Two threads may both register the handler, which does no harm.
    ///
    /// A lock could be inherited in a locked state.
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    if !REGISTERED.load(Ordering::Acquire) {
        call("pthread_atfork").map_err(|_| Errno::NOMEM)?;
        // SAFETY: the handler is a function with the signature that the call expects. It only loads and changes atomics
        // and calls `fstat` and `close`, which is allowed in any child.
        let error = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        if error != 0 {
            return Err(Errno::from_raw_os_error(error));
        }
        REGISTERED.store(true, Ordering::Release);
    }
    Ok(())
}
