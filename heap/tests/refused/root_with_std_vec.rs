// The root owns memory of the global allocator.

use memsnap_heap::{Root};

struct Refused;
impl Root for Refused {
    type Of<'h> = std::vec::Vec<u64>;
}

fn main() {}
