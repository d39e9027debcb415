// A type parameter is a type that cannot be in a heap.

use memsnap_heap::{Snap};

#[derive(Snap)]
struct Pair<T> {
    one: T,
    other: T,
}

fn demand<'h, T: Snap<'h>>() {}

fn main() {
    demand::<Pair<u8>>();
    demand::<Pair<std::string::String>>();
}
