// The root owns a counted reference to something outside.

use memsnap_heap::{Root};

struct Refused;
impl Root for Refused {
    type Of<'h> = Option<std::rc::Rc<u8>>;
}

fn main() {}
