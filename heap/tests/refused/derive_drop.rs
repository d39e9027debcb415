// A type with a destructor.

use memsnap_heap::{Snap};

#[derive(Snap)]
struct Ticket(u64);

impl Drop for Ticket {
    fn drop(&mut self) {
        println!("returned {}", self.0);
    }
}

fn main() {}
