// A field owns memory of the global allocator.

use memsnap_heap::{Snap, Vec};

#[derive(Snap)]
struct Named<'h> {
    name: std::string::String,
    path: Vec<'h, u8>,
}

fn main() {}
