// A hash map that is empty refers to a static of the program, which is elsewhere in another process.

use memsnap_heap::{HashMap, Heap, HeapOptions, Root};

struct Map;
impl Root for Map {
    type Of<'h> = HashMap<'h, u32, u32>;
}

fn main() {
    let snapshot = memsnap::Snapshot::zeroed(0).unwrap();
    let _ = unsafe { Heap::<Map>::open(&HeapOptions::new(), snapshot) };
}
