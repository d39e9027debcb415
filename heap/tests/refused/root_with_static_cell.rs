// The root shares a cell with the outside, and heaps may be sent to other threads.

use memsnap_heap::{Root};

struct Refused;
impl Root for Refused {
    type Of<'h> = &'static std::cell::Cell<u8>;
}

fn main() {}
