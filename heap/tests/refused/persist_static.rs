// A static is elsewhere in another process.

use memsnap_heap::{Persist, Snap};

#[derive(Snap, Persist)]
struct Named {
    name: &'static str,
}

fn main() {}
