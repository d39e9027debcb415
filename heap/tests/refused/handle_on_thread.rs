// The allocator of the heap is used on another thread.

use memsnap_heap::{Heap, Root, Vec};

struct Numbers;
impl Root for Numbers {
    type Of<'h> = Vec<'h, u64>;
}

fn heap() -> Heap<Numbers> {
    Heap::new(|memory| Vec::new_in(memory)).unwrap()
}

fn main() {
    heap().with_mut(|_, memory| {
        std::thread::scope(|scope| {
            scope.spawn(move || Vec::<u8>::new_in(memory).push(1));
        });
    });
}
