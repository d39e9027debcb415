// The root owns a counted reference to something outside.

use memsnap_heap::{Root, Vec};

struct Refused;
impl Root for Refused {
    type Of<'h> = Vec<'h, std::sync::Arc<u8>>;
}

fn main() {}
