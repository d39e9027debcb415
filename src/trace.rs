//! Events for subscribers of the `tracing` crate (feature `tracing`).
//!
//! An event is emitted for each snapshot of a view, each restore, each flat file that is written, and each finished
//! pass in which a view moves its image into huge pages.
//!
//! This module decides when an event is emitted. A subscriber may call methods of the snapshot or view that the event
//! is about, so no event may be emitted while a lock is held. Code that takes a lock calls [`hold`] first. Events of
//! the same thread then wait until the value from `hold` is dropped, which must be after the lock. If the thread
//! panics meanwhile, its waiting events are lost.
#![cfg_attr(not(feature = "tracing"), allow(unused_variables))]

use crate::sys::Tracking;

#[cfg(feature = "tracing")]
pub(crate) use held::hold;

#[cfg(feature = "tracing")]
mod held {
    use std::cell::RefCell;
    use std::mem;
    use std::thread;

    type Event = Box<dyn FnOnce()>;

    thread_local! {
        /// Waiting events, while a [`Hold`] of this thread exists.
        static WAITING: RefCell<Option<Vec<Event>>> = const { RefCell::new(None) };
    }

    /// Makes the events of this thread wait as long as it exists.
    struct Hold {
        outermost: bool,
    }

    /// Makes the events of this thread wait until the returned value is dropped. Drop it after the lock.
    pub(crate) fn hold() -> impl Drop {
        let outermost = WAITING.try_with(|waiting| {
            let mut waiting = waiting.borrow_mut();
            let outermost = waiting.is_none();
            waiting.get_or_insert_default();
            outermost
        });
        // `WAITING` may be destroyed already, if this runs in the destructor of another thread-local value. Then events
        // do not wait.
        Hold { outermost: outermost.unwrap_or(false) }
    }

    impl Drop for Hold {
        fn drop(&mut self) {
            if !self.outermost {
                return;
            }
            let waiting = WAITING.try_with(|waiting| mem::take(&mut *waiting.borrow_mut()));
            if thread::panicking() {
                return;
            }
            waiting.ok().flatten().into_iter().flatten().for_each(|event| event());
        }
    }

    pub(super) fn emit(event: impl FnOnce() + 'static) {
        let mut event = Some(event);
        let waits = WAITING.try_with(|waiting| match (&mut *waiting.borrow_mut(), event.take()) {
            (Some(waiting), Some(event)) => {
                waiting.push(Box::new(event));
                None
            }
            (None, event) => event,
            (Some(_), None) => None,
        });
        if let Some(event) = waits.unwrap_or_else(|_| event.take()) {
            event();
        }
    }
}

/// Stands for the value that makes events wait. Without the feature `tracing`, there are no events.
#[cfg(not(feature = "tracing"))]
pub(crate) struct Hold;

#[cfg(not(feature = "tracing"))]
pub(crate) fn hold() -> Hold {
    Hold
}

/// Reports that a snapshot of a view of `pages` pages was taken.
///
/// `looked_at` pages had possibly been written, and `captured` of them had changed.
pub(crate) fn taken(pages: usize, looked_at: usize, captured: usize, tracker: Tracking) {
    #[cfg(feature = "tracing")]
    held::emit(move || {
        tracing::debug!(target: "memsnap", pages, looked_at, captured, %tracker, "snapshot taken");
    });
}

/// Reports that a view of `pages` pages was restored in this `way`.
///
/// The restore visited `rewritten` of the pages one by one.
pub(crate) fn restored(way: &'static str, pages: usize, rewritten: usize, tracker: Tracking) {
    #[cfg(feature = "tracing")]
    held::emit(move || {
        tracing::debug!(target: "memsnap", way, pages, rewritten, %tracker, "view restored");
    });
}

/// Reports that a view of `pages` pages finished a pass that moved `regions` regions into huge pages.
pub(crate) fn moved_to_huge_pages(pages: usize, regions: usize) {
    #[cfg(feature = "tracing")]
    held::emit(move || {
        tracing::debug!(target: "memsnap", pages, regions, "image moved into huge pages");
    });
}

/// Reports that `written` pages of an image of `pages` pages were written to a flat file.
pub(crate) fn consolidated(pages: usize, written: usize) {
    #[cfg(feature = "tracing")]
    held::emit(move || tracing::debug!(target: "memsnap", pages, written, "image consolidated"));
}

#[cfg(all(test, feature = "tracing"))]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::held::emit;
    use super::hold;

    /// When a mutable view ends, an event is emitted under the lock of its snapshot, and inside of that the lock of
    /// the view is taken.
    #[test]
    fn what_is_held_comes_when_the_outermost_hold_is_gone_and_in_order() {
        let heard = Rc::new(RefCell::new(Vec::new()));
        let say = |number| {
            let heard = Rc::clone(&heard);
            emit(move || heard.borrow_mut().push(number));
        };
        say(1);
        assert_eq!(*heard.borrow(), [1]);
        let outer = hold();
        say(2);
        let inner = hold();
        say(3);
        drop(inner);
        say(4);
        assert_eq!(*heard.borrow(), [1]);
        drop(outer);
        assert_eq!(*heard.borrow(), [1, 2, 3, 4]);
        say(5);
        assert_eq!(heard.borrow().len(), 5);
    }

    /// A subscriber may take a snapshot itself.
    #[test]
    fn what_is_emitted_may_hold_and_emit() {
        let heard = Rc::new(RefCell::new(Vec::new()));
        let (first, second) = (Rc::clone(&heard), Rc::clone(&heard));
        let held = hold();
        emit(move || {
            first.borrow_mut().push(1);
            let _held = hold();
            emit(move || second.borrow_mut().push(2));
            assert_eq!(*first.borrow(), [1]);
        });
        drop(held);
        assert_eq!(*heard.borrow(), [1, 2]);
    }
}
