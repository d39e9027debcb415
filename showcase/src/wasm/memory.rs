//! Linear memories for Wasmtime that are views, so that snapshots of a running instance's memory can be taken and restored.
//!
//! Wasmtime owns each memory, and keeps a copy of its length for compiled code. This module shares the ownership of the
//! view. It changes the view only while it borrows the store mutably, because then no WebAssembly runs in the store.
//!
//! Invariant: the length that Wasmtime has is never greater than the accessible part of the view.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memsnap::{OwnedView, Snapshot, ViewOptions, ViewStats, page_size};
use wasmtime::error::Context as _;
use wasmtime::{Config, LinearMemory, MemoryCreator, MemoryType, Result, Store, bail, ensure};

/// The length of a WebAssembly page, which can differ from that of the host's pages.
const WASM_PAGE: usize = 1 << 16;

/// Creates memories for Wasmtime, and finds the view of each memory.
///
/// Clones refer to the same memories.
#[derive(Clone, Default)]
pub struct Memories {
    /// The memories that Wasmtime owns, by the address of their first byte.
    live: Arc<Mutex<HashMap<usize, Arc<Mutex<Shared>>>>>,
}

impl Memories {
    /// Makes engines with this `config` create their memories here.
    ///
    /// This works with the on-demand allocator, which is Wasmtime's default. It disables the copy-on-write images of data
    /// segments, because they need memory of Wasmtime's own. With both, instantiation panics.
    pub fn configure(&self, config: &mut Config) {
        config.with_host_memory(Arc::new(self.clone())).memory_init_cow(false);
    }

    /// Finds the view of a memory. Returns `None` if the memory was not created here.
    ///
    /// # Panics
    ///
    /// Panics if the memory belongs to another store, like all of Wasmtime.
    pub fn find<T: 'static>(&self, store: &Store<T>, memory: wasmtime::Memory) -> Option<MemoryView> {
        let shared = lock(&self.live).get(&memory.data_ptr(store).addr()).map(Arc::clone)?;
        Some(MemoryView { memory, shared })
    }

    fn create(
        &self,
        ty: &MemoryType,
        minimum: usize,
        maximum: Option<usize>,
        reserved: usize,
        guard: usize,
    ) -> Result<Linear> {
        ensure!(
            !ty.is_shared(),
            "a shared memory cannot be a view, because other threads may use it during a restore"
        );
        ensure!(
            ty.page_size() == WASM_PAGE as u64 && WASM_PAGE.is_multiple_of(page_size()),
            "a memory with pages of {} bytes cannot be a view; its length must be a multiple of {} bytes",
            ty.page_size(),
            page_size().max(WASM_PAGE)
        );
        // The capacity is at least a page, so that two memories never have the same address.
        let capacity = reserved.max(minimum).max(WASM_PAGE);
        // Like Wasmtime's own memories, this one also has a guard before it, as a protection from errors in the compiler.
        let mut options = ViewOptions::new();
        options.reserve(capacity).guard(guard, guard);
        let mut view = Snapshot::zeroed(minimum)?.into_view_with(&options)?;
        let address = view.as_mut_ptr().addr();
        let limits = minimum..=maximum.unwrap_or(capacity).min(capacity);
        let shared = Arc::new(Mutex::new(Shared { view, told: minimum, capacity, limits }));
        lock(&self.live).insert(address, Arc::clone(&shared));
        Ok(Linear { shared, address, memories: self.clone() })
    }
}

// SAFETY: the memories are zero, have the address space and the guard that Wasmtime asks for, and only their first
// `byte_size` bytes are accessible. Besides Wasmtime, only `MemoryView` changes them. It borrows the store mutably for
// this, and makes Wasmtime read the length again.
unsafe impl MemoryCreator for Memories {
    fn new_memory(
        &self,
        ty: MemoryType,
        minimum: usize,
        maximum: Option<usize>,
        reserved_size_in_bytes: Option<usize>,
        guard_size_in_bytes: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        let memory =
            self.create(&ty, minimum, maximum, reserved_size_in_bytes.unwrap_or(0), guard_size_in_bytes);
        match memory {
            Ok(memory) => Ok(Box::new(memory)),
            Err(error) => Err(format!("cannot create a memory of {minimum} bytes: {error:#}")),
        }
    }
}

/// A view and its lengths, which Wasmtime and [`MemoryView`] share.
struct Shared {
    view: OwnedView,
    /// The length that Wasmtime gets when it asks.
    told: usize,
    capacity: usize,
    /// The lengths that the memory's type allows.
    limits: RangeInclusive<usize>,
}

/// A linear memory, which Wasmtime owns.
struct Linear {
    shared: Arc<Mutex<Shared>>,
    address: usize,
    memories: Memories,
}

// SAFETY: the bytes of the view stay at their address as long as `shared` exists. The first `told` bytes are accessible,
// which are never more than the view has. The bytes after the view, up to the end of the guard, are not accessible.
unsafe impl LinearMemory for Linear {
    fn byte_size(&self) -> usize {
        lock(&self.shared).told
    }

    fn byte_capacity(&self) -> usize {
        lock(&self.shared).capacity
    }

    fn grow_to(&mut self, new_size: usize) -> Result<()> {
        let shared = &mut *lock(&self.shared);
        shared.view.grow(new_size)?;
        shared.told = new_size;
        Ok(())
    }

    fn as_ptr(&self) -> *mut u8 {
        lock(&self.shared).view.as_mut_ptr()
    }
}

impl Drop for Linear {
    fn drop(&mut self) {
        lock(&self.memories.live).remove(&self.address);
    }
}

/// A memory of an instance, with its view.
pub struct MemoryView {
    memory: wasmtime::Memory,
    shared: Arc<Mutex<Shared>>,
}

impl MemoryView {
    /// Takes a snapshot of the memory: its bytes and its length.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`View::take_snapshot`](memsnap::View::take_snapshot).
    ///
    /// # Panics
    ///
    /// Panics if the memory belongs to another store, like all of Wasmtime.
    pub fn take_snapshot<T: 'static>(&self, store: &Store<T>) -> Result<Snapshot> {
        self.memory.data_size(store); // panics if the memory belongs to another store; nothing runs in this one
        lock(&self.shared).view.take_snapshot().context("cannot take a snapshot of a linear memory")
    }

    /// Restores the bytes and the length of a snapshot of this memory, or of another memory of the same type.
    ///
    /// # Errors
    ///
    /// Fails if the memory's type does not allow the length of the snapshot. The memory has not changed then. Also returns
    /// the errors of [`View::restore_to`](memsnap::View::restore_to). After these, the contents of the memory are
    /// unspecified, but it can be used and restored again.
    ///
    /// # Panics
    ///
    /// Panics if the memory belongs to another store, like all of Wasmtime.
    pub fn restore_to<T: 'static>(&self, store: &mut Store<T>, snapshot: &Snapshot) -> Result<()> {
        let (before, after) = (self.memory.data_size(&*store), snapshot.len());
        {
            let limits = &lock(&self.shared).limits;
            ensure!(
                limits.contains(&after) && after.is_multiple_of(WASM_PAGE),
                "a linear memory cannot be restored to a snapshot of {after} bytes: its type allows {limits:?} bytes, in \
                 pages of {WASM_PAGE} bytes"
            );
        }
        // Wasmtime gets a shorter length before the bytes become inaccessible.
        if after < before
            && let Err(error) = self.tell(store, after)
        {
            lock(&self.shared).told = before;
            return Err(error);
        }
        let (restored, now) = {
            let view = &mut lock(&self.shared).view;
            (view.restore_to(snapshot), view.len())
        };
        if now != self.memory.data_size(&*store) {
            self.tell(store, now)?;
        }
        restored.context("cannot restore a linear memory")
    }

    /// Borrows the bytes of the memory.
    ///
    /// # Panics
    ///
    /// Panics if the memory belongs to another store, like all of Wasmtime.
    #[must_use]
    pub fn bytes<'a, T: 'static>(&self, store: &'a Store<T>) -> &'a [u8] {
        self.memory.data(store)
    }

    /// Returns statistics of the view.
    ///
    /// # Panics
    ///
    /// Panics if the memory belongs to another store, like all of Wasmtime.
    #[must_use]
    pub fn stats<T: 'static>(&self, store: &Store<T>) -> ViewStats {
        self.memory.data_size(store); // panics if the memory belongs to another store
        lock(&self.shared).view.stats()
    }

    /// Makes Wasmtime use this length, which must be accessible. Growing by 0 pages makes Wasmtime ask for the length.
    fn tell<T: 'static>(&self, store: &mut Store<T>, len: usize) -> Result<()> {
        lock(&self.shared).told = len;
        self.memory.grow(&mut *store, 0)?;
        match self.memory.data_size(&*store) {
            taken if taken == len => Ok(()),
            taken => bail!(
                "a memory has {len} bytes, but Wasmtime uses a length of {taken}: it does not update lengths as 48.0 does"
            ),
        }
    }
}

/// Locks a mutex, even if a thread panicked while it held the lock.
///
/// The state is valid even then, because each length is set after the change that it describes.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
