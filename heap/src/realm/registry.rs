//! The address ranges of all realms of the process, by which a freed block finds its arena.

use std::io;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// The most realms that a process can have at a time.
const MOST: usize = 64;

struct Slot {
    /// Whether a realm has the slot.
    taken: AtomicBool,
    /// The base of the arena. Null unless `end` is the end of the same arena.
    base: AtomicPtr<u8>,
    end: AtomicUsize,
    /// How many blocks of the arena were freed while no closure of its realm ran.
    freed_outside: AtomicUsize,
}

static SLOTS: [Slot; MOST] = [const {
    Slot {
        taken: AtomicBool::new(false),
        base: AtomicPtr::new(ptr::null_mut()),
        end: AtomicUsize::new(0),
        freed_outside: AtomicUsize::new(0),
    }
}; MOST];

/// All arenas are within these addresses. They never become fewer, so blocks elsewhere are found fast.
static LOWEST: AtomicUsize = AtomicUsize::new(usize::MAX);
static HIGHEST: AtomicUsize = AtomicUsize::new(0);

/// The addresses of a realm, while it exists.
pub(super) struct Registration(usize);

impl Registration {
    /// Registers the addresses from `base` on.
    pub(super) fn new(base: NonNull<u8>, len: usize) -> io::Result<Self> {
        let end = base.addr().get().saturating_add(len);
        let free = |slot: &Slot| !slot.taken.swap(true, Ordering::Acquire);
        let Some(index) = SLOTS.iter().position(free) else {
            return Err(io::Error::other(format!(
                "a process can have {MOST} realms at a time; drop one first"
            )));
        };
        SLOTS[index].fill_in(base, end);
        LOWEST.fetch_min(base.addr().get(), Ordering::Release);
        HIGHEST.fetch_max(end, Ordering::Release);
        Ok(Self(index))
    }

    /// How many blocks of the realm were freed while none of its closures ran.
    pub(super) fn freed_outside(&self) -> usize {
        SLOTS[self.0].freed_outside.load(Ordering::Relaxed)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let slot = &SLOTS[self.0];
        slot.base.store(ptr::null_mut(), Ordering::Release);
        slot.taken.store(false, Ordering::Release);
    }
}

impl Slot {
    /// Enters the addresses of an arena. Until the last step, `base` is null, so the slot contains no address.
    fn fill_in(&self, base: NonNull<u8>, end: usize) {
        self.freed_outside.store(0, Ordering::Relaxed);
        self.end.store(end, Ordering::Release);
        self.base.store(base.as_ptr(), Ordering::Release);
    }

    /// The base of the arena, if `address` is in it.
    fn base_of(&self, address: usize) -> Option<NonNull<u8>> {
        let base = NonNull::new(self.base.load(Ordering::Acquire))?;
        let end = self.end.load(Ordering::Acquire);
        // The slot may get another realm between the two reads. A realm that contains `address` stays, because the caller
        // has a block of it.
        let same = self.base.load(Ordering::Acquire) == base.as_ptr();
        (same && (base.addr().get()..end).contains(&address)).then_some(base)
    }
}

/// The base of the arena that `block` is in.
#[inline]
pub(super) fn arena_of(block: *mut u8) -> Option<NonNull<u8>> {
    let address = block.addr();
    if address < LOWEST.load(Ordering::Acquire) || address >= HIGHEST.load(Ordering::Acquire) {
        return None;
    }
    find(address).map(|(base, _)| base)
}

/// Finds the slot of an address, and the base of its arena.
#[cold]
fn find(address: usize) -> Option<(NonNull<u8>, &'static Slot)> {
    SLOTS.iter().find_map(|slot| Some((slot.base_of(address)?, slot)))
}

/// Counts a block that is freed while no closure of its realm runs.
#[cold]
pub(super) fn count_freed_outside(block: *mut u8) {
    if let Some((_, slot)) = find(block.addr()) {
        slot.freed_outside.fetch_add(1, Ordering::Relaxed);
    }
}

/// The addresses of this file's statics, which contain addresses of arenas.
#[cfg(target_os = "linux")]
pub(super) fn own_statics() -> Range<usize> {
    let range = SLOTS.as_ptr_range();
    range.start.addr()..range.end.addr()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A slot that was being filled in had an address of 1 as its base. With the new end it contained all lower addresses,
    /// so another thread freed blocks of the usual allocator in an arena that did not exist.
    #[test]
    fn a_slot_contains_no_address_before_it_is_filled_in() {
        let registered =
            Registration::new(NonNull::without_provenance(0x7000.try_into().unwrap()), 0x1000).unwrap();
        let slot = &SLOTS[registered.0];
        assert_eq!(slot.base_of(0x7fff).map(|base| base.addr().get()), Some(0x7000));
        assert_eq!((slot.base_of(0x6fff), slot.base_of(0x8000)), (None, None));
        drop(registered);
        // The slot is taken again, and has an end but no base yet.
        assert!(!slot.taken.swap(true, Ordering::Acquire));
        slot.end.store(0x9000, Ordering::Release);
        assert!([1, 0x7fff, 0x8fff].into_iter().all(|address| slot.base_of(address).is_none()));
        slot.taken.store(false, Ordering::Release);
    }
}
