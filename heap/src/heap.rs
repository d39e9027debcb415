//! `Heap`: a value, and everything that it owns, which can be rolled back.

use std::alloc::Layout;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::panic::{self, AssertUnwindSafe};

use crate::allocator::Usage;
use crate::handle::In;
use crate::mark::Mark;
use crate::options::HeapOptions;
use crate::persist::shape;
use crate::snap::Snap;
use crate::state::State;
use crate::stats::HeapStats;

/// Names the type of the value that a [`Heap`] holds.
///
/// The type has the brand `'h` of the heap as a parameter, so a heap cannot be declared with the type itself.
///
/// # Examples
///
/// ```
/// use memsnap_heap::{HashMap, Root, Snap, String, Vec};
///
/// #[derive(Snap)]
/// struct World<'h> {
///     turn: u32,
///     names: HashMap<'h, u32, String<'h>>,
///     path: Vec<'h, (f32, f32)>,
/// }
///
/// /// Stands for `World` with any brand.
/// struct Game;
/// impl Root for Game {
///     type Of<'h> = World<'h>;
/// }
/// ```
pub trait Root: 'static {
    /// The type of the value, for a heap of brand `'h`.
    type Of<'h>: Snap<'h>;
}

/// A value, and everything that it owns, which can be marked, rolled back and branched.
///
/// The value and all its allocations are in one [view](memsnap::View) of memsnap. [`mark`](Self::mark) costs what changed
/// since the last mark, and [`back_to`](Self::back_to) what differs from the mark. Neither depends on the number or the
/// kind of the values.
///
/// A heap never drops its value: neither going back to a mark nor the end of the heap runs a destructor.
///
/// # Examples
///
/// ```
/// use memsnap_heap::{Heap, Root, Vec};
///
/// struct Numbers;
/// impl Root for Numbers {
///     type Of<'h> = Vec<'h, u64>;
/// }
///
/// # fn main() -> std::io::Result<()> {
/// let mut heap = Heap::<Numbers>::new(|memory| Vec::new_in(memory))?;
/// heap.with_mut(|numbers, _| numbers.extend([1, 2, 3]));
/// let three = heap.mark()?;
///
/// heap.with_mut(|numbers, _| numbers.push(4));
/// let four = heap.mark()?;
///
/// heap.back_to(&three)?;
/// assert_eq!(heap.with(|numbers| numbers.len()), 3);
/// heap.back_to(&four)?;
/// assert_eq!(heap.with(|numbers| numbers[3]), 4);
/// # Ok(())
/// # }
/// ```
pub struct Heap<R: Root> {
    pub(crate) state: State,
    /// The value is in the arena. The type `R` only names its type.
    pub(crate) root: PhantomData<fn() -> R>,
}

// SAFETY: the value implements `Snap`, which promises that it may be used on another thread together with everything that
// it owns. All handles to the heap are inside the heap, because the brand keeps them there.
unsafe impl<R: Root> Send for Heap<R> {}

impl<R: Root> Heap<R> {
    /// Makes a heap, whose first value is what `init` returns.
    ///
    /// # Errors
    ///
    /// Those of the operating system: no memory, no address space.
    pub fn new(init: impl for<'h> FnOnce(In<'h>) -> R::Of<'h>) -> io::Result<Self> {
        Self::with_options(&HeapOptions::new(), init)
    }

    /// Makes a heap with options, whose first value is what `init` returns.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new) and of the options.
    pub fn with_options(
        options: &HeapOptions,
        init: impl for<'h> FnOnce(In<'h>) -> R::Of<'h>,
    ) -> io::Result<Self> {
        let state = State::new(options.arena()?, Layout::new::<R::Of<'_>>(), shape::<R>())?;
        // SAFETY: `state` outlives the call of `init`, and is not used meanwhile.
        let memory = unsafe { In::new(state.base()) };
        let value = init(memory);
        // SAFETY: the root has room for the value, and nothing refers to it.
        unsafe { state.root().cast::<R::Of<'_>>().write(value) };
        Ok(Self { state, root: PhantomData })
    }

    /// Calls `f` with the value.
    ///
    /// # Panics
    ///
    /// If going back to a mark has failed, and no later call of [`back_to`](Self::back_to) succeeded. Otherwise only if
    /// `f` panics.
    pub fn with<O>(&self, f: impl for<'h> FnOnce(&R::Of<'h>) -> O) -> O {
        // SAFETY: the root holds a value of this type. `with_mut`, `mark` and `back_to` borrow the heap exclusively.
        f(unsafe { self.state.root().cast().as_ref() })
    }

    /// Calls `f` with the value and the allocator of the heap.
    ///
    /// If `f` panics, the value stays as `f` left it, as with a value in a `RefCell`. [`transact`](Self::transact) rolls
    /// it back.
    ///
    /// # Panics
    ///
    /// As for [`with`](Self::with).
    pub fn with_mut<O>(&mut self, f: impl for<'h> FnOnce(&mut R::Of<'h>, In<'h>) -> O) -> O {
        // SAFETY: the heap is borrowed exclusively until `f` returns.
        let memory = unsafe { In::new(self.state.base()) };
        // SAFETY: as for `with`, and the heap is borrowed exclusively.
        f(unsafe { self.state.root().cast().as_mut() }, memory)
    }

    /// Keeps the current state, to which the heap can go back.
    ///
    /// The call finds the pages that were written since the last mark and copies them.
    ///
    /// # Errors
    ///
    /// Those of [`memsnap::View::take_snapshot`]. The value stays the same.
    pub fn mark(&mut self) -> io::Result<Mark<R>> {
        self.state.mark()
    }

    /// Goes back to the state of a mark of this heap, earlier or later than the current one.
    ///
    /// What was allocated since the mark is free again. No destructor runs.
    ///
    /// # Errors
    ///
    /// - `InvalidInput` if the mark is of another heap. Nothing has changed then.
    /// - Those of [`memsnap::View::restore_to`]. The heap then has no state, and its value cannot be used until a call
    ///   succeeds.
    pub fn back_to(&mut self, mark: &Mark<R>) -> io::Result<()> {
        self.state.back_to(mark)
    }

    /// Calls `f` with the value, and undoes what it did if it returns `Err` or panics.
    ///
    /// The call takes a mark first, and continues a panic after it has gone back.
    ///
    /// # Errors
    ///
    /// Those of [`mark`](Self::mark) and [`back_to`](Self::back_to).
    ///
    /// # Panics
    ///
    /// If `f` panics.
    ///
    /// # Examples
    ///
    /// ```
    /// # use memsnap_heap::{Heap, Root, Vec};
    /// # struct Numbers;
    /// # impl Root for Numbers {
    /// #     type Of<'h> = Vec<'h, u64>;
    /// # }
    /// # fn main() -> std::io::Result<()> {
    /// let mut heap = Heap::<Numbers>::new(|memory| Vec::new_in(memory))?;
    /// let result = heap.transact(|numbers, _| {
    ///     numbers.push(1);
    ///     if numbers.len() < 2 { Err("too short") } else { Ok(()) }
    /// })?;
    /// assert_eq!(result, Err("too short"));
    /// assert!(heap.with(|numbers| numbers.is_empty()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn transact<O, E>(
        &mut self,
        f: impl for<'h> FnOnce(&mut R::Of<'h>, In<'h>) -> Result<O, E>,
    ) -> io::Result<Result<O, E>> {
        let before = self.mark()?;
        // Going back to `before` undoes what a panic left half done.
        match panic::catch_unwind(AssertUnwindSafe(|| self.with_mut(f))) {
            Ok(Ok(done)) => Ok(Ok(done)),
            Ok(Err(refused)) => self.back_to(&before).map(|()| Err(refused)),
            Err(panic) => {
                // If this fails, the heap has no state, and says so when it is used next.
                let _ = self.back_to(&before);
                panic::resume_unwind(panic)
            }
        }
    }

    /// Returns statistics. The time is that of [`memsnap::View::stats`].
    #[must_use]
    pub fn stats(&self) -> HeapStats {
        self.state.stats()
    }

    /// Checks the state of the allocator, and adds up what is in use.
    ///
    /// The time depends on the length of the heap. If `unsafe` code in the program has a bug that damages the heap, this
    /// call may find it.
    ///
    /// # Errors
    ///
    /// Says what contradicts what.
    pub fn check(&self) -> Result<Usage, String> {
        self.state.check()
    }
}

impl<R: Root> fmt::Debug for Heap<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heap").finish_non_exhaustive()
    }
}
