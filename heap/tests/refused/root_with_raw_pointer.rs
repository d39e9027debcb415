// The root has an address of unknown validity.

use memsnap_heap::{Root, Vec};

struct Refused;
impl Root for Refused {
    type Of<'h> = Vec<'h, *const u8>;
}

fn main() {}
