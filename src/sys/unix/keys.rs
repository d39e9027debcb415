//! The list of the descriptors that forked children must not have.
//!
//! They are keys to the memory of the parent: by its userfaultfd a child can write there, by its pagemap hide what the
//! parent writes, by the file of a view that is written in place do both. `fork` hands all of them over. So
//! each child closes them as soon as it runs, by a handler of `pthread_atfork`, or, where nothing ran the handler (`_Fork`, a
//! bare `clone`), as soon as memsnap notices the fork.
//!
//! There is no lock, for a child may begin in the middle of any change of the list. A child that begins after a descriptor
//! was opened and before it was listed, which takes another thread that forks just then, has it.
#![allow(unsafe_code)]

use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, Ordering};

use rustix::io::Errno;

use super::identity::{Identity, close_if};
use crate::sys::call;
use crate::sys::system::in_child;

/// The first places of the list. Not on the heap, which a program may keep out of its children (`MADV_DONTFORK`): the
/// handler would crash there.
static FIRST: [Place; 64] = [const { Place::free() }; 64];

/// The other places of the list; they are never freed, and used again.
static PLACES: AtomicPtr<Place> = AtomicPtr::new(ptr::null_mut());

/// The last number given by [`next_number`].
static NUMBERS: AtomicU64 = AtomicU64::new(0);

/// Of `Place::entry`: nothing is listed.
const FREE: u64 = 0;

/// Of `Place::entry`: somebody is about to list something.
const CLAIMED: u64 = u64::MAX;

struct Place {
    /// `FREE`, `CLAIMED`, or the number of the entry. Only with the last the other fields have a meaning, and they do not
    /// change before it does.
    entry: AtomicU64,
    descriptor: AtomicI32,
    device: AtomicU64,
    inode: AtomicU64,
    next: AtomicPtr<Place>,
}

/// An entry of the list, until it is withdrawn or dropped.
pub(super) struct Key {
    place: &'static Place,
    entry: u64,
    /// By this value, and not by a child that closed the descriptor.
    withdrawn: AtomicBool,
}

/// A number greater than all that this process and its ancestors were given before, and never 0.
pub(in crate::sys) fn next_number() -> u64 {
    NUMBERS.fetch_add(1, Ordering::Relaxed) + 1
}

/// Closes, in a child, each listed descriptor whose entry is older than `generation`, a number that the child was given. May be called
/// any number of times, by several threads.
pub(in crate::sys) fn close_inherited(generation: u64) {
    for place in places() {
        let entry = place.entry.load(Ordering::Acquire);
        if entry == FREE || entry >= generation {
            continue;
        }
        let descriptor = place.descriptor.load(Ordering::Relaxed);
        let (device, inode) = (place.device.load(Ordering::Relaxed), place.inode.load(Ordering::Relaxed));
        // If it succeeds, the fields belong to this entry, and nobody else closes the descriptor.
        if place.change(entry, FREE) {
            close_if(descriptor, Identity { device, inode });
        }
    }
}

impl Key {
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

    /// Takes the entry off the list. Returns whether this value did so, now or before: otherwise a child has closed the
    /// descriptor, or is about to, and the place may have another entry.
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

    /// Whether the entry was `from`, and is `to` now.
    fn change(&self, from: u64, to: u64) -> bool {
        self.entry.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

fn places() -> impl Iterator<Item = &'static Place> {
    // SAFETY: what the list points at was leaked by `add_place`, and is changed by its atomics only.
    let shared = |place: &AtomicPtr<Place>| unsafe { place.load(Ordering::Acquire).as_ref() };
    FIRST.iter().chain(std::iter::successors(shared(&PLACES), move |place| shared(&place.next)))
}

/// A new place of the list, claimed.
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

/// Has each child that is forked from now on call `in_child`.
pub(in crate::sys) fn register_handler() -> Result<(), Errno> {
    /// No lock, which a child could inherit locked: to call it twice does no harm.
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    if !REGISTERED.load(Ordering::Acquire) {
        call("pthread_atfork").map_err(|_| Errno::NOMEM)?;
        // SAFETY: the handler loads and changes atomics, and calls nothing but `fstat` and `close`, which is
        // allowed in any child.
        let error = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        if error != 0 {
            return Err(Errno::from_raw_os_error(error));
        }
        REGISTERED.store(true, Ordering::Release);
    }
    Ok(())
}
