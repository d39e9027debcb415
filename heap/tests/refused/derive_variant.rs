// A field of a variant owns memory of the global allocator.

use memsnap_heap::{Snap};

#[derive(Snap)]
enum Shape {
    Point,
    Line(std::boxed::Box<(f64, f64)>),
}

fn main() {}
