// The allocator of the heap leaves the closure through a captured variable.

use memsnap_heap::{Heap, Root, Vec};

struct Numbers;
impl Root for Numbers {
    type Of<'h> = Vec<'h, u64>;
}

fn heap() -> Heap<Numbers> {
    Heap::new(|memory| Vec::new_in(memory)).unwrap()
}

fn main() {
    let mut kept = None;
    heap().with_mut(|_, memory| kept = Some(memory));
    drop(kept);
}
