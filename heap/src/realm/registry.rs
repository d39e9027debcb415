//! The address ranges of all realms of the process, by which a freed block finds its arena.

use std::io;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// The most realms that a process can have at a time.
const MOST: usize = 64;

struct Slot {
    /// The base of the arena. Null while the slot is not used. `CLAIMED` while it is being filled in.
    base: AtomicPtr<u8>,
    end: AtomicUsize,
    /// How many blocks of the arena were freed while no closure of its realm ran.
    freed_outside: AtomicUsize,
}

static SLOTS: [Slot; MOST] = [const {
    Slot {
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
        for (index, slot) in SLOTS.iter().enumerate() {
            // The claim is an address that is in no arena.
            let claim = ptr::without_provenance_mut(1);
            let claimed =
                slot.base.compare_exchange(ptr::null_mut(), claim, Ordering::Acquire, Ordering::Relaxed);
            if claimed.is_ok() {
                slot.end.store(end, Ordering::Release);
                slot.freed_outside.store(0, Ordering::Relaxed);
                slot.base.store(base.as_ptr(), Ordering::Release);
                LOWEST.fetch_min(base.addr().get(), Ordering::Release);
                HIGHEST.fetch_max(end, Ordering::Release);
                return Ok(Self(index));
            }
        }
        Err(io::Error::other(format!("a process can have {MOST} realms at a time; drop one first")))
    }

    /// How many blocks of the realm were freed while none of its closures ran.
    pub(super) fn freed_outside(&self) -> usize {
        SLOTS[self.0].freed_outside.load(Ordering::Relaxed)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        SLOTS[self.0].end.store(0, Ordering::Release);
        SLOTS[self.0].base.store(ptr::null_mut(), Ordering::Release);
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
    SLOTS.iter().find_map(|slot| {
        let base = NonNull::new(slot.base.load(Ordering::Acquire))?;
        let end = slot.end.load(Ordering::Acquire);
        // The slot may get another realm between the two reads. A realm that contains `address` stays, because the caller
        // has a block of it.
        let same = slot.base.load(Ordering::Acquire) == base.as_ptr();
        (same && (base.addr().get()..end).contains(&address)).then_some((base, slot))
    })
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
