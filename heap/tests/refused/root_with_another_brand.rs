// The root has the allocator of a heap that lives for ever.

use memsnap_heap::{Root, Vec};

struct Refused;
impl Root for Refused {
    type Of<'h> = Vec<'h, memsnap_heap::In<'static>>;
}

fn main() {}
