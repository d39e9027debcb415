//! Ordered maps and sets in a heap: those of the crate `bbtree`, with the allocator of the heap.

use std::alloc::Layout;
use std::ptr::NonNull;

use allocator_api2::alloc::Allocator;
use bbtree::unsync::{BBTreeMap, BBTreeSet};
use bbtree::{AllocError, Auto};

use crate::handle::In;
use crate::persist::Persist;
use crate::snap::Snap;

/// An ordered map in a heap: [`bbtree::unsync::BBTreeMap`] with the allocator [`In`].
///
/// It needs the feature `btree`. It has the methods of [`std::collections::BTreeMap`], and `new_in` instead of `new`. It
/// keeps entries in nodes of about a kilobyte. So a change writes to one or two nodes, wherever it is in the map. In a
/// sorted [`Vec`](crate::Vec), an insertion writes to everything behind it.
///
/// If the heap is full, `insert` aborts the process, and `try_insert` returns the entry with an error.
///
/// If a comparison, a destructor, or a closure that a method calls panics, the map stays safe to use, but may have lost
/// entries. [`Heap::transact`](crate::Heap::transact) goes back to the state before the panic.
///
/// # Examples
///
/// ```
/// use memsnap_heap::{BTreeMap, Heap, Root, Snap, String};
///
/// #[derive(Snap)]
/// struct Orders<'h> {
///     by_price: BTreeMap<'h, u64, String<'h>>,
/// }
///
/// struct Book;
/// impl Root for Book {
///     type Of<'h> = Orders<'h>;
/// }
///
/// # fn main() -> std::io::Result<()> {
/// let mut heap = Heap::<Book>::new(|memory| Orders { by_price: BTreeMap::new_in(memory) })?;
/// heap.with_mut(|orders, memory| {
///     for (price, name) in [(30, "third"), (10, "first"), (20, "second")] {
///         orders.by_price.insert(price, String::from_str_in(name, memory));
///     }
/// });
/// let mark = heap.mark()?;
/// heap.with_mut(|orders, _| orders.by_price.retain(|&price, _| price > 20));
/// heap.back_to(&mark)?;
/// assert!(heap.with(|orders| orders.by_price.range(15..).map(|(price, _)| *price).eq([20, 30])));
/// # Ok(())
/// # }
/// ```
pub type BTreeMap<'h, K, V> = BBTreeMap<K, V, Auto, In<'h>>;

/// An ordered set in a heap: [`bbtree::unsync::BBTreeSet`] with the allocator [`In`].
///
/// It needs the feature `btree`. [`BTreeMap`] describes what it costs, and what happens after a panic.
///
/// # Examples
///
/// ```
/// use memsnap_heap::{BTreeSet, Heap, Root};
///
/// struct Primes;
/// impl Root for Primes {
///     type Of<'h> = BTreeSet<'h, u32>;
/// }
///
/// # fn main() -> std::io::Result<()> {
/// let mut heap = Heap::<Primes>::new(|memory| BTreeSet::new_in(memory))?;
/// heap.with_mut(|primes, _| primes.extend([7, 2, 5, 3]));
/// assert_eq!(heap.with(|primes| primes.first().copied()), Some(2));
/// # Ok(())
/// # }
/// ```
pub type BTreeSet<'h, T> = BBTreeSet<T, Auto, In<'h>>;

// SAFETY: a block is zeroed here, and is valid, aligned and apart from others until it is freed, as `Allocator` of
// `allocator-api2` promises for `In`. All copies of a handle are the same allocator. No method of `In` unwinds: the
// allocator of an arena calls no code that panics, and reports a lack of memory as an error. The methods for
// kinds of pages are not overridden.
unsafe impl bbtree::Allocator for In<'_> {
    #[inline]
    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<u8>, AllocError> {
        match Allocator::allocate_zeroed(self, layout) {
            Ok(block) => Ok(block.cast()),
            Err(_) => Err(AllocError),
        }
    }

    #[inline]
    unsafe fn deallocate(&self, ptr: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller promises that `allocate_zeroed` returned the block for this layout.
        unsafe { Allocator::deallocate(self, ptr, layout) }
    }
}

// SAFETY: the map owns its keys and values, which make the promises, in nodes that it allocates in the heap. Besides
// them, the map and its nodes contain addresses of nodes, lengths, and bytes of keys. An empty map contains no address.
// The type of the strategy is used for no value.
unsafe impl<'h, K: Snap<'h>, V: Snap<'h>> Snap<'h> for BTreeMap<'h, K, V> {}
// SAFETY: the set is a map whose values have no bytes.
unsafe impl<'h, T: Snap<'h>> Snap<'h> for BTreeSet<'h, T> {}
// SAFETY: as for `Snap`. The nodes are in the heap, whose address is the same in the other process. Neither the map nor
// its nodes contain an address of a static or of code, or a number that the process drew. Their layout depends on types.
unsafe impl<'h, K: Persist<'h>, V: Persist<'h>> Persist<'h> for BTreeMap<'h, K, V> {}
// SAFETY: as above.
unsafe impl<'h, T: Persist<'h>> Persist<'h> for BTreeSet<'h, T> {}
