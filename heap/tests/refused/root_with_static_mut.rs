// The root has an exclusive reference to something outside.

use memsnap_heap::{Root, Vec};

struct Refused;
impl Root for Refused {
    type Of<'h> = Vec<'h, &'static mut u8>;
}

fn main() {}
