// The root owns a thread.

use memsnap_heap::{Root};

struct Refused;
impl Root for Refused {
    type Of<'h> = Option<std::thread::JoinHandle<()>>;
}

fn main() {}
