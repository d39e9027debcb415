// A heap goes back while a value of it is borrowed.

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
    let mark = heap.mark().unwrap();
    heap.with_mut(|numbers, _| {
        heap.back_to(&mark).unwrap();
        numbers.len()
    });
}
