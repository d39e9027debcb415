// The vtable of an object is elsewhere in another process.

use memsnap_heap::{Box, Persist, Snap};

trait Behaviour<'h>: Persist<'h> {}

#[derive(Snap, Persist)]
struct Actor<'h> {
    behaviour: Box<'h, dyn Behaviour<'h>>,
}

fn main() {}
