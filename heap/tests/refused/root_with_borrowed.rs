// The root borrows from a value that it does not own.

use memsnap_heap::{Root, Vec};

struct Refused;
impl Root for Refused {
    type Of<'h> = Vec<'h, &'h u8>;
}

fn main() {}
