// A value of one heap is put into another one.

use memsnap_heap::{Heap, Root, Vec};

struct Lists;
impl Root for Lists {
    type Of<'h> = Vec<'h, Vec<'h, u64>>;
}

fn main() -> std::io::Result<()> {
    let mut one = Heap::<Lists>::new(|memory| Vec::new_in(memory))?;
    let mut other = Heap::<Lists>::new(|memory| Vec::new_in(memory))?;
    one.with_mut(|_, memory| other.with_mut(|lists, _| lists.push(Vec::new_in(memory))));
    Ok(())
}
