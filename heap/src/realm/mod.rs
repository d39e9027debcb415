//! `Realm`: a value of any type that can be rolled back, in a program whose global allocator is a `Router`.

mod escapes;
mod registry;
mod router;

use std::alloc::Layout;
use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::ptr::NonNull;
use std::thread;

pub use escapes::Escape;
pub use router::Router;

use crate::allocator::Usage;
use crate::current::{diverted, inside};
use crate::mark::Mark;
use crate::options::HeapOptions;
use crate::state::State;
use crate::stats::HeapStats;
use registry::Registration;

/// A value of any type, with all its allocations, that can be marked, rolled back and branched.
///
/// While a closure of the realm runs, the program's global allocator, a [`Router`], allocates inside the realm. So types
/// that know nothing of memsnap can be rolled back: a world of an entity component system, a physics engine, a parser. Use a
/// [`Heap`](crate::Heap) where the types are your own, because the compiler checks what it demands.
///
/// A realm never drops its value: neither going back to a mark nor the end of the realm runs a destructor.
///
/// # Examples
///
/// ```
/// use std::collections::BTreeMap;
///
/// use memsnap_heap::{Realm, Router};
///
/// #[global_allocator]
/// static ALLOCATOR: Router = Router::system();
///
/// # fn main() -> std::io::Result<()> {
/// // SAFETY: the map owns all that the closure allocates, and the closure keeps nothing from outside.
/// let mut realm = unsafe { Realm::new(BTreeMap::<u32, String>::new) }?;
/// // SAFETY: as above.
/// unsafe { realm.with(|map| map.extend([(1, "one".to_string()), (2, "two".to_string())])) };
/// let two = realm.mark()?;
/// // SAFETY: as above.
/// unsafe { realm.with(|map| map.clear()) };
/// realm.back_to(&two)?;
/// // SAFETY: as above, and a number owns nothing.
/// assert_eq!(unsafe { realm.with(|map| map[&2].len()) }, 3);
/// # Ok(())
/// # }
/// ```
///
/// # Safety of `new` and `with`
///
/// Going back to a mark replaces all memory of the realm, and frees and allocates its blocks without the knowledge of the
/// values. So whoever passes a closure to a realm promises:
///
/// 1. **Nothing from inside stays outside.** What the closure allocates, and is not freed when it returns, is owned by the
///    value of the realm only. Nothing outside refers to memory of the realm: no static, no thread-local, no variable that
///    the closure captured, no other thread, no returned value.
///    - The danger is whatever is allocated on first use and then kept: lazy statics and thread-locals (caches, interners,
///      random generators, loggers, runtimes, the buffer of `stdout`). Use them once before the first closure.
///      [`with`](Self::with) does so for the standard library's `stdout`, `stderr` and thread handle. It does not for
///      others, such as the context of a thread that blocks on a channel of `std::sync::mpsc`.
///    - The value of `panic_any` or `resume_unwind` may own such memory. `with` replaces it, unless it is a message.
/// 2. **Nothing from outside gets inside.** The value does not own memory that was allocated outside, and nothing outside is
///    freed inside, or the other way round. (References to statics, and numbers, are no memory.)
/// 3. **No handles with identity.** The value contains nothing of which a second copy, or one that vanishes without a
///    destructor, does harm: files, sockets, locks that are held, threads, `Arc`s that are shared with the outside.
/// 4. **One thread.** The closure starts no thread that allocates, frees or refers to memory of the realm after the closure
///    has returned, and no other thread allocates or frees memory of the realm while it runs. This excludes `thread::scope`
///    and pools of threads: the other thread frees what it was started with.
///
/// [`escapes`](Self::escapes) finds some violations of the first promise: its documentation lists which.
pub struct Realm<T> {
    /// It is dropped first. While the addresses are registered, no other code can have them: a block at such an address
    /// is freed in the realm.
    registration: Registration,
    state: State,
    value: PhantomData<T>,
}

// SAFETY: the realm owns the value like a `Box`, and its arena is used by the closures only, which borrow the realm.
unsafe impl<T: Send> Send for Realm<T> {}

impl<T> Realm<T> {
    /// Makes a realm, whose first value is what `init` returns.
    ///
    /// # Errors
    ///
    /// - If the program's global allocator is no [`Router`].
    /// - If the process has 64 realms already.
    /// - Those of the operating system: no memory, no address space.
    ///
    /// # Panics
    ///
    /// If `init` panics, or catches a panic, as for [`with`](Self::with).
    ///
    /// # Safety
    ///
    /// The [promises](Self#safety-of-new-and-with) hold for `init`.
    pub unsafe fn new(init: impl FnOnce() -> T) -> io::Result<Self> {
        // SAFETY: the caller promises the conditions.
        unsafe { Self::with_options(&HeapOptions::new(), init) }
    }

    /// Makes a realm with options, whose first value is what `init` returns.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new) and of the options.
    ///
    /// # Panics
    ///
    /// If `init` panics, or catches a panic, as for [`with`](Self::with).
    ///
    /// # Safety
    ///
    /// The [promises](Self#safety-of-new-and-with) hold for `init`.
    pub unsafe fn with_options(options: &HeapOptions, init: impl FnOnce() -> T) -> io::Result<Self> {
        let state = State::new(options.arena()?, Layout::new::<T>(), 0)?;
        let registration = Registration::new(state.base(), options.most())?;
        let realm = Self { registration, state, value: PhantomData };
        if !inside(realm.state.base(), routed) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "making a realm: the program's global allocator is no Router; declare \
                 `#[global_allocator] static ALLOCATOR: memsnap_heap::Router = memsnap_heap::Router::system();`",
            ));
        }
        let value = call(realm.state.base(), init, || ());
        // SAFETY: the root has room for the value, and nothing refers to it.
        unsafe { realm.state.root().cast::<T>().write(value) };
        Ok(realm)
    }

    /// Calls `f` with the value. The allocations of this thread go to the realm meanwhile.
    ///
    /// The result is a `Copy` type because such a type owns no memory.
    ///
    /// # Panics
    ///
    /// - If `f` panics. The value cannot be used then until the realm goes back to a mark. The panic continues with a copy
    ///   of its message. A payload of another type than `&'static str` or `String` is replaced by a message, because it
    ///   may own memory of the realm.
    /// - If `f` catches a panic during which memory was allocated. That memory is outside of the realm, and a destructor
    ///   may have given it to the value.
    /// - If this thread is panicking already.
    /// - If the realm has no state, because a call of `f` panicked or going back to a mark failed.
    ///
    /// # Safety
    ///
    /// The [promises](Self#safety-of-new-and-with) hold for `f`.
    pub unsafe fn with<O: Copy>(&mut self, f: impl FnOnce(&mut T) -> O) -> O {
        assert!(!thread::panicking(), "a realm cannot be used while its thread panics");
        // SAFETY: the root holds a value of this type. The realm is borrowed exclusively.
        let value = unsafe { self.state.root().cast::<T>().as_mut() };
        call(self.state.base(), || f(value), || self.state.give_up())
    }

    /// Keeps the current state, to which the realm can go back.
    ///
    /// # Errors
    ///
    /// Those of [`memsnap::View::take_snapshot`], and an error if the realm has no state. The value stays the same.
    pub fn mark(&mut self) -> io::Result<Mark<T>> {
        self.state.mark()
    }

    /// Goes back to the state of a mark of this realm, earlier or later than the current one.
    ///
    /// # Errors
    ///
    /// - `InvalidInput` if the mark is of another realm. Nothing has changed then.
    /// - Those of [`memsnap::View::restore_to`]. The realm then has no state, and its value cannot be used until a call
    ///   succeeds.
    pub fn back_to(&mut self, mark: &Mark<T>) -> io::Result<()> {
        self.state.back_to(mark)
    }

    /// Returns statistics. The time is that of [`memsnap::View::stats`].
    #[must_use]
    pub fn stats(&self) -> HeapStats {
        self.state.stats()
    }

    /// Checks the state of the allocator, and adds up what is in use. The time depends on the length of the realm.
    ///
    /// # Errors
    ///
    /// Says what contradicts what.
    pub fn check(&self) -> Result<Usage, String> {
        self.state.check()
    }

    /// Returns how many blocks of the realm were freed while none of its closures ran on that thread.
    ///
    /// If it is not 0, a value of the realm got outside, against the first promise.
    #[must_use]
    pub fn freed_outside(&self) -> usize {
        self.registration.freed_outside()
    }
}

/// Calls a closure of a realm, whose allocations go to the arena at `base`.
///
/// If the closure panics, or catches a panic, calls `give_up` and panics. The value that it panics with is not in the arena.
fn call<O>(base: NonNull<u8>, f: impl FnOnce() -> O, give_up: impl FnOnce()) -> O {
    warm_up();
    let before = diverted();
    // The value of the realm cannot be used after a panic, so nobody sees what the closure left half done.
    let result = panic::catch_unwind(AssertUnwindSafe(|| inside(base, f)));
    // The closure may have caught a panic. Destructors that ran meanwhile may have allocated for the value outside.
    let was_diverted = diverted() != before;
    match result {
        Ok(result) if !was_diverted => result,
        Ok(result) => {
            // Its memory may be in both places, so no destructor runs.
            mem::forget(result);
            give_up();
            panic!(
                "a closure of a realm caught a panic, during which memory was allocated, so the realm has to go back to a \
                 mark; catch panics outside of the closure"
            )
        }
        Err(payload) => {
            give_up();
            let message = message(&*payload);
            // Its memory may be in the realm.
            inside(base, || drop(payload));
            panic::resume_unwind(message)
        }
    }
}

/// Copies the message of a panic to memory outside of the arena that the panic came from.
fn message(payload: &(dyn Any + Send)) -> Box<dyn Any + Send> {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        Box::new(*text)
    } else if let Some(text) = payload.downcast_ref::<String>() {
        Box::new(text.clone())
    } else {
        Box::new("a closure of a realm panicked, and the value that it panicked with cannot leave the realm")
    }
}

/// Makes the standard library allocate what it keeps for each thread, and for the process.
fn warm_up() {
    thread_local! {
        static DONE: Cell<bool> = const { Cell::new(false) };
    }
    if !DONE.replace(true) {
        let _ = (io::stdout().lock(), io::stderr().lock(), thread::current().id());
    }
}

/// Whether the global allocator is a router.
fn routed() -> bool {
    let block = std::hint::black_box(Box::new(0_u64));
    let Some(base) = crate::current::current() else { return false };
    registry::arena_of((&raw const *block).cast_mut().cast()) == Some(base)
}

impl<T> fmt::Debug for Realm<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Realm").finish_non_exhaustive()
    }
}
