// Two threads share a heap.

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
    std::thread::scope(|scope| {
        scope.spawn(|| heap.with(|numbers| numbers.len()));
    });
}
