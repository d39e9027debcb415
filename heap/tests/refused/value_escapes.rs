// A value of the heap leaves the closure.

use memsnap_heap::{Heap, Root, Vec};

struct Numbers;
impl Root for Numbers {
    type Of<'h> = Vec<'h, u64>;
}

fn heap() -> Heap<Numbers> {
    Heap::new(|memory| Vec::new_in(memory)).unwrap()
}

fn main() {
    let taken = heap().with_mut(|numbers, memory| std::mem::replace(numbers, Vec::new_in(memory)));
    drop(taken);
}
