//! `Snap`: the values that may be in a heap.

use std::cell::{Cell, OnceCell, RefCell};
use std::cmp::Reverse;
use std::marker::PhantomData;
use std::num::{NonZero, Saturating, Wrapping};
use std::ops::{Bound, ControlFlow, Range, RangeFrom, RangeFull, RangeInclusive, RangeTo, RangeToInclusive};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use crate::handle::In;

/// A value that can be in a [`Heap`](crate::Heap) of brand `'h`.
///
/// Derive it for structs and enums whose fields implement it. It is implemented for the plain types of the standard
/// library, for the collections of this crate, and for references to what lives for ever and may be shared.
///
/// # Safety
///
/// Going back to a mark overwrites the bytes of all values in the heap with those that they had at the mark. So an
/// implementor promises:
///
/// 1. **What the value owns is in the heap.** The value owns memory only of an allocator [`In<'h>`](In), and refers only to
///    memory of this heap that a value in the heap owns, or to what lives for ever, does not change except by atomic
///    operations or locks, and may be shared by threads. A `String` of the standard library owns memory of the global
///    allocator, which going back to a mark would free twice or not at all.
/// 2. **A second copy does no harm.** After a value was moved out of its place or dropped, going back makes its bytes appear
///    there again. After a value was created, going back makes its bytes vanish without a destructor. So the value is no
///    handle of something outside that exists once or counts its handles: an open file, a lock, an `Arc`, a thread, a
///    registration. It has no destructor that such a thing needs.
/// 3. **It may be used on another thread**, together with everything that it refers to in the heap, because heaps are
///    `Send`.
/// 4. **It is not pinned to time.** Nothing outside of the heap relies on the value to stay as it is: no address of it is
///    kept outside, no counter outside grows with it.
///
/// # Deriving
///
/// `#[derive(Snap)]` demands `Snap` of all fields, and of all type parameters. A type with a lifetime parameter is for heaps
/// of that brand. A type without one is for all heaps. The macro refuses types that implement `Drop`, because most
/// destructors are about something outside. Unions are refused too.
///
/// Deriving needs no `unsafe`, but it does make the promises above for the type. Types that consist of plain data whose
/// meaning is outside, such as the number of a slot in a global table, are the ones to look at.
///
/// ```
/// use memsnap_heap::{Snap, String, Vec};
///
/// #[derive(Snap)]
/// enum Shape<'h> {
///     Circle { radius: f64 },
///     Polygon(Vec<'h, (f64, f64)>),
///     Named(String<'h>),
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be in a heap that is rolled back",
    note = "derive `Snap`, use the collections of memsnap_heap instead of those of the standard library, or keep the value outside"
)]
pub unsafe trait Snap<'h> {}

macro_rules! plain {
    ($($type:ty),* $(,)?) => {
        $(
            // SAFETY: the value is plain data that owns nothing and refers to nothing.
            unsafe impl<'h> Snap<'h> for $type {}
        )*
    };
}

plain!(u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize, f32, f64, bool, char, (), str);
plain!(NonZero<u8>, NonZero<u16>, NonZero<u32>, NonZero<u64>, NonZero<u128>, NonZero<usize>);
plain!(NonZero<i8>, NonZero<i16>, NonZero<i32>, NonZero<i64>, NonZero<i128>, NonZero<isize>);
plain!(Duration, Instant, SystemTime, RangeFull, std::cmp::Ordering, std::any::TypeId, std::alloc::Layout);
plain!(
    std::convert::Infallible,
    std::net::IpAddr,
    std::net::Ipv4Addr,
    std::net::Ipv6Addr,
    std::net::SocketAddr
);
plain!(std::collections::hash_map::RandomState, std::hash::DefaultHasher, hashbrown::DefaultHashBuilder);
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
            // SAFETY: the value consists of its parts, or of some of them, which make the promises. It has no destructor of
            // its own and nothing refers to it from outside.
            unsafe impl<'h, $($part: Snap<'h>),*> Snap<'h> for $type<$($part),*> {}
        )*
    };
}

of_parts!(Reverse<T>, Poll<T>, Option<T>, Result<T, E>, ControlFlow<B, C>, Cell<T>, RefCell<T>, OnceCell<T>, Wrapping<T>, Saturating<T>);
of_parts!(Range<T>, RangeFrom<T>, RangeInclusive<T>, RangeTo<T>, RangeToInclusive<T>, Bound<T>);

macro_rules! tuples {
    ($($first:ident $($part:ident)*;)*) => {
        $(
            // SAFETY: the value consists of its parts, which make the promises.
            unsafe impl<'h, $first: Snap<'h>, $($part: Snap<'h>),*> Snap<'h> for ($first, $($part,)*) {}
        )*
    };
}

tuples! {
    A; A B; A B C; A B C D; A B C D E; A B C D E F; A B C D E F G; A B C D E F G H; A B C D E F G H I;
    A B C D E F G H I J; A B C D E F G H I J K; A B C D E F G H I J K L;
}

macro_rules! functions {
    ($($($argument:ident)*;)*) => {
        $(
            // SAFETY: functions live for ever and do not change. Heaps are not kept longer than the process.
            unsafe impl<'h, O, $($argument),*> Snap<'h> for fn($($argument),*) -> O {}
        )*
    };
}

functions! { ; A; A B; A B C; A B C D; A B C D E; A B C D E F; }

// SAFETY: the value consists of its parts, which make the promises.
unsafe impl<'h, T: Snap<'h>, const N: usize> Snap<'h> for [T; N] {}
// SAFETY: as above.
unsafe impl<'h, T: Snap<'h>> Snap<'h> for [T] {}
// SAFETY: the value has no bytes. A type that must stay on its thread is not `Snap`.
unsafe impl<'h, T: Snap<'h> + ?Sized> Snap<'h> for PhantomData<T> {}
// SAFETY: the value has no bytes, and makes its hashers anew.
unsafe impl<'h, H> Snap<'h> for std::hash::BuildHasherDefault<H> {}
// SAFETY: what is referred to lives for ever and may be shared by threads.
unsafe impl<'h, T: Sync + ?Sized> Snap<'h> for &'static T {}

// SAFETY: the handle refers to the heap that it is in. It is copied with it and does not own it.
unsafe impl<'h> Snap<'h> for In<'h> {}
// SAFETY: the vector owns its elements, which make the promises, in memory of the heap.
unsafe impl<'h, T: Snap<'h>> Snap<'h> for allocator_api2::vec::Vec<T, In<'h>> {}
// SAFETY: as above.
unsafe impl<'h, T: Snap<'h> + ?Sized> Snap<'h> for allocator_api2::boxed::Box<T, In<'h>> {}
// SAFETY: as above, and the hasher makes the promises.
unsafe impl<'h, K: Snap<'h>, V: Snap<'h>, S: Snap<'h>> Snap<'h> for hashbrown::HashMap<K, V, S, In<'h>> {}
// SAFETY: as above.
unsafe impl<'h, T: Snap<'h>, S: Snap<'h>> Snap<'h> for hashbrown::HashSet<T, S, In<'h>> {}
// SAFETY: as above.
unsafe impl<'h, T: Snap<'h>> Snap<'h> for hashbrown::HashTable<T, In<'h>> {}
