//! Linear memories for Wasmtime that are views of memsnap's, so that a running instance's memory can be snapshotted and
//! put back.
//!
//! Wasmtime owns each memory, and keeps a copy of its length for compiled code. This module owns the view with it, and
//! changes the view only while it has the store exclusively, in which then no WebAssembly runs.
//!
//! Invariant: the length that Wasmtime has is never more than what the view makes accessible.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memsnap::{OwnedView, Snapshot, ViewOptions, ViewStats, page_size};
use wasmtime::error::Context as _;
use wasmtime::{Config, LinearMemory, MemoryCreator, MemoryType, Result, Store, bail, ensure};

/// A page of WebAssembly, whatever those of the host are.
const WASM_PAGE: usize = 1 << 16;

/// Gives Wasmtime memsnap's memory, and finds the views in it again.
///
/// A handle: clones are the same.
#[derive(Clone, Default)]
pub struct Memories {
    /// By the address of the first byte, as long as Wasmtime has the memory.
    live: Arc<Mutex<HashMap<usize, Arc<Mutex<Shared>>>>>,
}

impl Memories {
    /// Has engines made with `config` take their memories from here.
    ///
    /// For the on-demand allocator, which is Wasmtime's default. Its copy-on-write images of data segments are turned
    /// off, since they need memory of Wasmtime's own (with both, instantiation panics).
    pub fn configure(&self, config: &mut Config) {
        config.with_host_memory(Arc::new(self.clone())).memory_init_cow(false);
    }

    /// The view that this memory is; none if it was made elsewhere.
    ///
    /// # Panics
    ///
    /// As all of Wasmtime, if the memory is not one of this store.
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
            "a shared memory cannot be a view: other threads may use it during a restore"
        );
        ensure!(
            ty.page_size() == WASM_PAGE as u64 && WASM_PAGE.is_multiple_of(page_size()),
            "a memory in pages of {} bytes cannot be a view: it has to be whole pages of {} bytes",
            ty.page_size(),
            page_size().max(WASM_PAGE)
        );
        // Of a page at least, so that no two memories have one address.
        let capacity = reserved.max(minimum).max(WASM_PAGE);
        // Wasmtime's own memories have a guard before them too, against errors in its compiler.
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

// SAFETY: the memories are zero, have all address space and the guard that is asked for, and are accessible in their
// first `byte_size` bytes alone. What changes them beside Wasmtime is `MemoryView`, which takes the store exclusively
// and has Wasmtime read the length again.
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
            Err(error) => Err(format!("no memory of {minimum} bytes: {error:#}")),
        }
    }
}

struct Shared {
    view: OwnedView,
    /// The length that Wasmtime is told when it asks.
    told: usize,
    capacity: usize,
    /// The lengths that the memory's type allows.
    limits: RangeInclusive<usize>,
}

/// What Wasmtime owns.
struct Linear {
    shared: Arc<Mutex<Shared>>,
    address: usize,
    memories: Memories,
}

// SAFETY: the view's bytes stay at their address as long as `shared` lives. The first `told` are accessible, which is
// never more than the view has; those behind, up to the end of the guard, are not.
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

/// A memory of an instance, with the view that it is.
pub struct MemoryView {
    memory: wasmtime::Memory,
    shared: Arc<Mutex<Shared>>,
}

impl MemoryView {
    /// A snapshot of the memory as it is now: its bytes and its length.
    ///
    /// # Errors
    ///
    /// Those of [`View::take_snapshot`](memsnap::View::take_snapshot).
    ///
    /// # Panics
    ///
    /// As all of Wasmtime, if the memory is not one of this store.
    pub fn take_snapshot<T: 'static>(&self, store: &Store<T>) -> Result<Snapshot> {
        self.memory.data_size(store); // that it is this store's, in which nothing runs
        lock(&self.shared).view.take_snapshot().context("cannot take a snapshot of a linear memory")
    }

    /// Has the memory show a snapshot, in its bytes and its length: of this memory, or another of the same type.
    ///
    /// # Errors
    ///
    /// A length that the memory's type does not allow, which changes nothing. Those of
    /// [`View::restore_to`](memsnap::View::restore_to): what the memory shows then is not defined, but it can be used,
    /// and restored again.
    ///
    /// # Panics
    ///
    /// As all of Wasmtime, if the memory is not one of this store.
    pub fn restore_to<T: 'static>(&self, store: &mut Store<T>, snapshot: &Snapshot) -> Result<()> {
        let (before, after) = (self.memory.data_size(&*store), snapshot.len());
        {
            let limits = &lock(&self.shared).limits;
            ensure!(
                limits.contains(&after) && after.is_multiple_of(WASM_PAGE),
                "a linear memory cannot show a snapshot of {after} bytes: its type allows {limits:?}, in \
                 pages of {WASM_PAGE}"
            );
        }
        // What goes is out of Wasmtime's reach before it goes.
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

    /// The bytes of the memory.
    ///
    /// # Panics
    ///
    /// As all of Wasmtime, if the memory is not one of this store.
    #[must_use]
    pub fn bytes<'a, T: 'static>(&self, store: &'a Store<T>) -> &'a [u8] {
        self.memory.data(store)
    }

    /// What the view holds.
    ///
    /// # Panics
    ///
    /// As all of Wasmtime, if the memory is not one of this store.
    #[must_use]
    pub fn stats<T: 'static>(&self, store: &Store<T>) -> ViewStats {
        self.memory.data_size(store); // as above
        lock(&self.shared).view.stats()
    }

    /// Has Wasmtime take over this length, which must be accessible. To grow by nothing is what makes it ask.
    fn tell<T: 'static>(&self, store: &mut Store<T>, len: usize) -> Result<()> {
        lock(&self.shared).told = len;
        self.memory.grow(&mut *store, 0)?;
        match self.memory.data_size(&*store) {
            taken if taken == len => Ok(()),
            taken => bail!(
                "a memory is {len} bytes long, and {taken} to Wasmtime, which does not take lengths over as 48.0 does"
            ),
        }
    }
}

/// A call that panicked left nothing half done: lengths are set after what they tell of.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
