// The root owns memory of the global allocator.

use memsnap_heap::{Root, Vec};

struct Refused;
impl Root for Refused {
    type Of<'h> = Vec<'h, std::string::String>;
}

fn main() {}
