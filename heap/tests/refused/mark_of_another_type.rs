// A heap goes back to a mark of a heap that holds another type.

use memsnap_heap::{Heap, Root, Vec};

struct Numbers;
impl Root for Numbers {
    type Of<'h> = Vec<'h, u64>;
}

fn heap() -> Heap<Numbers> {
    Heap::new(|memory| Vec::new_in(memory)).unwrap()
}

struct Text;
impl Root for Text {
    type Of<'h> = memsnap_heap::String<'h>;
}

fn main() {
    let mark = Heap::<Text>::new(|memory| memsnap_heap::String::new_in(memory)).unwrap().mark().unwrap();
    heap().back_to(&mark).unwrap();
}
