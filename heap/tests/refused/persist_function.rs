// A function is elsewhere in another process.

use memsnap_heap::{Persist, Snap};

#[derive(Snap, Persist)]
struct Handler {
    call: fn(u32) -> u32,
}

fn main() {}
