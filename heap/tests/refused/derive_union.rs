// A union, whose fields in use are not known.

use memsnap_heap::{Snap};

#[derive(Snap)]
union Either {
    number: u64,
    bytes: [u8; 8],
}

fn main() {}
