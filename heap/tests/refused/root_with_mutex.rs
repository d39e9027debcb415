// The root has a lock, which the system may know by its address.

use memsnap_heap::{Root};

struct Refused;
impl Root for Refused {
    type Of<'h> = std::sync::Mutex<u64>;
}

fn main() {}
