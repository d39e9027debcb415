// The root owns an open file.

use memsnap_heap::{Root};

struct Refused;
impl Root for Refused {
    type Of<'h> = Option<std::fs::File>;
}

fn main() {}
