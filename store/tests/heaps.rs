//! Heaps of the crate `memsnap-heap` that another process of this program saved.

use std::env;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use memsnap_heap::{Box, Heap, HeapOptions, Persist, Root, Snap, String, Vec};
use memsnap_store::Repository;

/// Names the repository to a child process.
const REPOSITORY: &str = "MEMSNAP_HEAP_TEST_REPOSITORY";

#[derive(Snap, Persist)]
struct Node<'h> {
    name: String<'h>,
    children: Vec<'h, Node<'h>>,
    next: Option<Box<'h, u32>>,
}

struct Tree;
impl Root for Tree {
    type Of<'h> = Node<'h>;
}

struct Numbers;
impl Root for Numbers {
    type Of<'h> = Vec<'h, u64>;
}

fn node<'h>(depth: u32, memory: memsnap_heap::In<'h>) -> Node<'h> {
    let mut children = Vec::new_in(memory);
    (0..depth).for_each(|below| children.push(node(below, memory)));
    let name = String::from_str_in(&format!("node of depth {depth}"), memory);
    Node { name, children, next: depth.is_multiple_of(2).then(|| Box::new_in(depth, memory)) }
}

fn is_whole(node: &Node<'_>, depth: u32) -> bool {
    node.name == format!("node of depth {depth}")
        && node.next.as_deref().copied() == depth.is_multiple_of(2).then_some(depth)
        && node.children.len() == depth as usize
        && node.children.iter().zip(0..).all(|(child, below)| is_whole(child, below))
}

/// Addresses that programs rarely use.
fn options() -> HeapOptions {
    let mut options = HeapOptions::new();
    if usize::BITS == 64 {
        options.address(0x2000_0000_0000).address_space(1 << 30);
    }
    options
}

/// Saves a heap, as a child process.
#[test]
fn saves() {
    let Some(repository) = env::var_os(REPOSITORY) else { return };
    let mut heap = Heap::<Tree>::with_options(&options(), |memory| node(10, memory)).unwrap();
    let mark = heap.mark().unwrap();
    heap.with_mut(|tree, _| tree.children.clear());
    let repository = Repository::open(repository).unwrap();
    repository.save(mark.snapshot().unwrap()).name("tree").run().unwrap();
}

fn save_in_a_child(repository: &Path) {
    let mut child = Command::new(env::current_exe().unwrap());
    let status = child.args(["--exact", "saves"]).env(REPOSITORY, repository).status().unwrap();
    assert!(status.success());
}

#[test]
fn another_process_opens_a_heap_that_was_saved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("repository");
    let repository = Repository::create(&path).unwrap();
    save_in_a_child(&path);
    let loaded = repository.load("tree").run().unwrap().snapshot().clone();
    // SAFETY: `saves` made the snapshot, in another process of this executable file.
    let mut heap = match unsafe { Heap::<Tree>::open(&HeapOptions::new(), loaded.clone()) } {
        Ok(heap) => heap,
        Err(error) if error.kind() == ErrorKind::AddrInUse => return println!("skipped: persist: {error}"),
        Err(error) => panic!("{error}"),
    };
    assert!(heap.with(|tree| is_whole(tree, 10)));
    heap.check().unwrap();

    // The heap goes on: it grows, and goes back to marks of before and after.
    let saved = heap.mark().unwrap();
    heap.with_mut(|tree, memory| tree.children.push(node(9, memory)));
    assert!(heap.with(|tree| tree.children.len() == 11 && is_whole(&tree.children[10], 9)));
    let more = heap.mark().unwrap();
    heap.with_mut(|tree, memory| {
        let mut long = Vec::with_capacity_in(100_000, memory);
        long.resize_with(100_000, || node(0, memory));
        tree.children = long;
    });
    heap.back_to(&saved).unwrap();
    assert!(heap.with(|tree| is_whole(tree, 10)));
    heap.back_to(&more).unwrap();
    assert!(heap.with(|tree| is_whole(&tree.children[10], 9)));
    heap.check().unwrap();

    // SAFETY: as above. While the heap is open, another one cannot be at its address.
    let second = unsafe { Heap::<Tree>::open(&HeapOptions::new(), loaded.clone()) }.unwrap_err();
    assert_eq!(second.kind(), ErrorKind::AddrInUse, "{second}");
    // SAFETY: the call fails because of the type.
    let wrong = unsafe { Heap::<Numbers>::open(&HeapOptions::new(), loaded) }.unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::InvalidData, "{wrong}");
}

#[test]
fn what_is_no_heap_is_refused() {
    for bytes in [&b""[..], b"short", &[7; 10_000]] {
        let snapshot = memsnap::Snapshot::from_slice(bytes).unwrap();
        // SAFETY: the call fails because the snapshot is not one of a heap.
        let error = unsafe { Heap::<Numbers>::open(&HeapOptions::new(), snapshot) }.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
    }
}
