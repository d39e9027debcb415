// A mark is taken while a value of the heap is borrowed.

use memsnap_heap::{Heap, Root, Vec};

struct Numbers;
impl Root for Numbers {
    type Of<'h> = Vec<'h, u64>;
}

fn heap() -> Heap<Numbers> {
    Heap::new(|memory| Vec::new_in(memory)).unwrap()
}

fn main() {
    let mut heap = heap();
    heap.with(|numbers| {
        heap.mark().unwrap();
        numbers.len()
    });
}
