//! The memory that pushing and pulling need does not grow with the snapshot.
#![cfg(feature = "remote")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::{BLOCK, Machine, noise};
use memsnap::Snapshot;
use memsnap_store::{Remote, RemoteOptions};
use object_store::local::LocalFileSystem;

/// Counts the bytes that are allocated, and the most that were at a time.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all requests are passed on to the allocator of the system.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller keeps the rules of this trait, which are those of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `alloc` got the memory from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The tests of this file run one after the other, because they measure all allocations of the process.
static ALONE: Mutex<()> = Mutex::new(());

/// Returns the most bytes that were allocated during a call, beside those that were before.
fn most(call: impl FnOnce()) -> usize {
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    call();
    MOST.load(Ordering::Relaxed) - before
}

#[test]
fn memory_is_in_proportion_to_a_pack() {
    let _alone = ALONE.lock().unwrap();
    let (here, there) = (Machine::new(), Machine::new());
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap());
    let remote = Remote::with_store(store, "", &RemoteOptions::new()).unwrap();
    // 8 packs. A third of the blocks is in the remote already, so that some packs are sent in parts.
    let blocks = (256 << 20) / BLOCK;
    let mut snapshot = Snapshot::zeroed(blocks * BLOCK).unwrap();
    let mut view = snapshot.view_mut().unwrap();
    for (seed, part) in (0..).zip(view.chunks_mut(64 * BLOCK)) {
        part.copy_from_slice(&noise(seed, 64));
    }
    view.commit().unwrap();
    let part = snapshot.resized(80 << 20, 0).unwrap();
    here.repository.save(&part).name("part").run().unwrap();
    here.repository.push(&remote, "part").run().unwrap();
    let id = here.repository.save(&snapshot).run().unwrap().id();
    let limit = 100 << 20;
    let push = most(|| assert_eq!(here.repository.push(&remote, id).run().unwrap().id, id));
    let pull = most(|| assert_eq!(there.repository.pull(&remote, id).run().unwrap().id, id));
    println!("push: {} MiB, pull: {} MiB", push >> 20, pull >> 20);
    assert!(push < limit && pull < limit, "push: {push}, pull: {pull}");
    let loaded = there.repository.load(id).run().unwrap();
    assert!(*loaded.snapshot().view().unwrap() == *snapshot.view().unwrap());
}

/// A pull kept the attachments of all manifests of a chain until its end: up to 64 MiB for each of them.
#[test]
fn attachments_of_a_chain_are_not_in_memory_at_once() {
    const LEN: usize = 4 << 20;
    let _alone = ALONE.lock().unwrap();
    let (here, there) = (Machine::new(), Machine::new());
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap());
    let remote = Remote::with_store(store, "", &RemoteOptions::new()).unwrap();
    let mut bytes = noise(1, 20);
    let mut saved = here.save(&bytes, None, "base");
    for number in 0..25_u64 {
        bytes[..BLOCK].copy_from_slice(&noise(2 + number, 1));
        let next = common::changed(saved.snapshot(), &bytes);
        let save = here.repository.save(&next).parent(&saved);
        saved = save.attach("registers", noise(100 + number, LEN / BLOCK)).run().unwrap();
    }
    let id = saved.id();
    let push = most(|| assert_eq!(here.repository.push(&remote, id).run().unwrap().id, id));
    let pull = most(|| assert_eq!(there.repository.pull(&remote, id).run().unwrap().id, id));
    println!("push: {} MiB, pull: {} MiB", push >> 20, pull >> 20);
    assert!(push < 10 * LEN && pull < 10 * LEN, "push: {push}, pull: {pull}");
    assert!(there.bytes(id) == bytes);
}
