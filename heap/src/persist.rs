//! `Persist`: values that are the same in another process, and opening a heap that another process saved.

use std::any;
use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::marker::PhantomData;
use std::num::{NonZero, Saturating, Wrapping};
use std::ops::{Bound, ControlFlow, Range, RangeFrom, RangeFull, RangeInclusive, RangeTo, RangeToInclusive};
use std::time::Duration;

use memsnap::Snapshot;

use crate::allocator::HEADER;
use crate::arena::{Arena, Origin};
use crate::current::outside;
use crate::handle::In;
use crate::heap::{Heap, Root};
use crate::options::HeapOptions;
use crate::snap::Snap;
use crate::state::State;

/// A value in a heap that is valid in another process of the same program, at the same address.
///
/// Derive it together with [`Snap`].
///
/// # Safety
///
/// In addition to the promises of [`Snap`], an implementor promises that the bytes of the value mean the same in another
/// process of the same program. The system places the code and the statics of a program at other addresses in each process.
/// So the value contains no function pointer, no reference to a static, no vtable (`dyn Trait`), and no number that the
/// process drew, such as `TypeId`, `Instant`, or the seed that all maps of a process share.
///
/// # What does not implement it
///
/// [`HashMap`](crate::HashMap) and [`HashSet`](crate::HashSet): a map of `hashbrown` that has not allocated yet refers to a
/// static of the program. Use the `BTreeMap` of the feature `btree`, or a sorted [`Vec`](crate::Vec).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not valid in another process",
    note = "derive `Persist`; function pointers, references to statics and hash maps cannot be in a heap that is opened again"
)]
pub unsafe trait Persist<'h>: Snap<'h> {
    /// Keeps the trait from being the supertrait of one with objects, whose vtables are at other addresses in each process.
    #[doc(hidden)]
    const HAS_NO_VTABLE: () = ();
}

macro_rules! plain {
    ($($type:ty),* $(,)?) => {
        $(
            // SAFETY: the value is plain data that means the same in every process.
            unsafe impl<'h> Persist<'h> for $type {}
        )*
    };
}

plain!(u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize, f32, f64, bool, char, (), str);
plain!(NonZero<u8>, NonZero<u16>, NonZero<u32>, NonZero<u64>, NonZero<u128>, NonZero<usize>);
plain!(NonZero<i8>, NonZero<i16>, NonZero<i32>, NonZero<i64>, NonZero<i128>, NonZero<isize>);
plain!(
    Duration,
    std::time::SystemTime,
    RangeFull,
    std::cmp::Ordering,
    std::alloc::Layout,
    std::convert::Infallible
);
plain!(std::net::IpAddr, std::net::Ipv4Addr, std::net::Ipv6Addr, std::net::SocketAddr);

plain!(
    std::sync::atomic::AtomicBool,
    std::sync::atomic::AtomicU8,
    std::sync::atomic::AtomicU16,
    std::sync::atomic::AtomicU32,
    std::sync::atomic::AtomicUsize,
    std::sync::atomic::AtomicI8,
    std::sync::atomic::AtomicI16,
    std::sync::atomic::AtomicI32,
    std::sync::atomic::AtomicIsize,
);
#[cfg(target_has_atomic = "64")]
plain!(std::sync::atomic::AtomicU64, std::sync::atomic::AtomicI64);

macro_rules! of_parts {
    ($($type:ident<$($part:ident),*>),* $(,)?) => {
        $(
            // SAFETY: the value consists of its parts, or of some of them, which make the promises.
            unsafe impl<'h, $($part: Persist<'h>),*> Persist<'h> for $type<$($part),*> {}
        )*
    };
}

of_parts!(Option<T>, Result<T, E>, ControlFlow<B, C>, Cell<T>, RefCell<T>, OnceCell<T>, Wrapping<T>, Saturating<T>);
of_parts!(
    Range<T>,
    RangeFrom<T>,
    RangeInclusive<T>,
    RangeTo<T>,
    RangeToInclusive<T>,
    Bound<T>,
    PhantomData<T>
);

macro_rules! tuples {
    ($($first:ident $($part:ident)*;)*) => {
        $(
            // SAFETY: the value consists of its parts, which make the promises.
            unsafe impl<'h, $first: Persist<'h>, $($part: Persist<'h>),*> Persist<'h> for ($first, $($part,)*) {}
        )*
    };
}

tuples! {
    A; A B; A B C; A B C D; A B C D E; A B C D E F; A B C D E F G; A B C D E F G H; A B C D E F G H I;
    A B C D E F G H I J; A B C D E F G H I J K; A B C D E F G H I J K L;
}

// SAFETY: the value consists of its parts, which make the promises.
unsafe impl<'h, T: Persist<'h>, const N: usize> Persist<'h> for [T; N] {}
// SAFETY: as above.
unsafe impl<'h, T: Persist<'h>> Persist<'h> for [T] {}
// SAFETY: the handle contains the address of the heap, which is the same in the other process.
unsafe impl<'h> Persist<'h> for In<'h> {}
// SAFETY: the text is in the heap, whose address is the same in the other process.
unsafe impl<'h> Persist<'h> for crate::String<'h> {}
// SAFETY: as above, and the elements make the promises. A vector without memory contains no address of a static.
unsafe impl<'h, T: Persist<'h>> Persist<'h> for allocator_api2::vec::Vec<T, In<'h>> {}
// SAFETY: as above. An unsized value that implements the trait has no vtable, because the
// constant of the trait keeps `dyn Trait` from implementing it.
unsafe impl<'h, T: Persist<'h> + ?Sized> Persist<'h> for allocator_api2::boxed::Box<T, In<'h>> {}

/// A hash of the type of a heap's value, as far as a program can know it.
pub(crate) fn shape<R: Root>() -> u64 {
    let name = any::type_name::<R::Of<'static>>();
    let sizes = [size_of::<R::Of<'static>>(), align_of::<R::Of<'static>>(), size_of::<usize>()];
    let version = env!("CARGO_PKG_VERSION");
    let bytes = name.bytes().chain(version.bytes()).chain(sizes.into_iter().flat_map(usize::to_le_bytes));
    // FNV-1a, which is the same in each process.
    bytes.fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

impl<R: Root> Heap<R>
where
    for<'h> R::Of<'h>: Persist<'h>,
{
    /// Makes a heap of a snapshot that [`Mark::snapshot`](crate::Mark::snapshot) returned, also in an earlier process.
    ///
    /// The heap is at the address where it was made. [`HeapOptions::address`] and [`HeapOptions::boxed`] are ignored.
    ///
    /// # Errors
    ///
    /// - `InvalidData` if the snapshot is not one of a heap, or of a heap of another type or version.
    /// - `AddrInUse` if other memory is at the address. Make the heap at an
    ///   [address](HeapOptions::address) that is free in every process.
    /// - Those of the operating system: no memory, no address space.
    ///
    /// # Safety
    ///
    /// The snapshot is one that `Mark::snapshot` returned for a heap of the same root type, in this process or another process
    /// of the same executable file, and its bytes did not change since. (A store that checks hashes, such as `memsnap-store`,
    /// shows that the bytes did not change, but not who made them.)
    ///
    /// # Examples
    ///
    /// ```
    /// use memsnap_heap::{Heap, HeapOptions, Root, Vec};
    ///
    /// struct Numbers;
    /// impl Root for Numbers {
    ///     type Of<'h> = Vec<'h, u64>;
    /// }
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let mut options = HeapOptions::new();
    /// # #[cfg(target_pointer_width = "64")]
    /// options.address(0x2100_0000_0000); // addresses that programs rarely use
    /// let mut heap = Heap::<Numbers>::with_options(&options, |memory| Vec::new_in(memory))?;
    /// heap.with_mut(|numbers, _| numbers.extend([1, 2, 3]));
    /// let mark = heap.mark()?;
    /// # if mark.snapshot().is_none() { return Ok(()) }
    /// let snapshot = mark.snapshot().expect("the heap is not boxed").clone();
    /// drop(heap); // the addresses are free again
    ///
    /// // SAFETY: the snapshot is one of a heap of the same type, and was made by this process.
    /// let again = unsafe { Heap::<Numbers>::open(&options, snapshot) }?;
    /// assert_eq!(again.with(|numbers| numbers.iter().sum::<u64>()), 6);
    /// # Ok(())
    /// # }
    /// ```
    pub unsafe fn open(options: &HeapOptions, snapshot: Snapshot) -> io::Result<Self> {
        let refused = |reason: &str| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("opening a heap of {} bytes: {reason}", snapshot.len()),
            )
        };
        let mut start = [0; HEADER];
        outside(|| snapshot.read_at(&mut start, 0))?;
        let Some(origin) = Origin::read(&start) else {
            return Err(refused("the snapshot is not one of a heap of this version of memsnap-heap"));
        };
        let end = origin.root.checked_add(size_of::<R::Of<'static>>());
        if origin.shape != shape::<R>() || end.is_none_or(|end| end > snapshot.len()) {
            return Err(refused(
                "it has a value of another type; open it with the type and the program that made it",
            ));
        }
        let memory = options.map(snapshot, origin.address)?;
        // SAFETY: the caller promises that a heap had these bytes, whose arena was at this address.
        let arena = unsafe { Arena::open(memory) };
        Ok(Self { state: State::open(arena, origin.root), root: PhantomData })
    }
}
