// A reference into the heap leaves the closure.

use memsnap_heap::{Heap, Root, Vec};

struct Numbers;
impl Root for Numbers {
    type Of<'h> = Vec<'h, u64>;
}

fn heap() -> Heap<Numbers> {
    Heap::new(|memory| Vec::new_in(memory)).unwrap()
}

fn main() {
    let heap = heap();
    let first = heap.with(|numbers| &numbers[0]);
    println!("{first}");
}
