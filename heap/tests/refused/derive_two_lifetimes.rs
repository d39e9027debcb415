// A value that borrows from elsewhere.

use memsnap_heap::{Snap, Vec};

#[derive(Snap)]
struct Slice<'h, 'a> {
    text: &'a str,
    path: Vec<'h, u8>,
}

fn main() {}
