//! Realms that come and go while other threads allocate, in memory of every kind.

use std::hint::black_box;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use memsnap_heap::{HeapOptions, Realm, Router};

#[global_allocator]
static ALLOCATOR: Router = Router::system();

fn options(bytes: usize) -> HeapOptions {
    let mut options = HeapOptions::new();
    options.address_space(bytes);
    options
}

/// The addresses of a realm were still registered after its memory was unmapped. A block that another thread got at one
/// of these addresses was then freed in an arena that did not exist any more.
#[test]
fn addresses_of_a_realm_that_is_gone_belong_to_other_allocators() {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // Allocators map blocks of this length on their own.
                    let mut block = Vec::<u8>::with_capacity(40 << 20);
                    block.push(1);
                    black_box(&block);
                }
            });
        }
        for _ in 0..2000 {
            // SAFETY: the vector owns what the closures allocate, and they keep nothing from outside.
            let mut realm = unsafe { Realm::with_options(&options(48 << 20), Vec::<u8>::new) }.unwrap();
            // SAFETY: as above.
            unsafe { realm.with(|bytes| bytes.push(1)) };
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// The memory of a boxed realm is itself a block of the global allocator.
#[test]
fn a_boxed_realm_ends() {
    // SAFETY: as above.
    let mut realm = unsafe { Realm::with_options(options(64 << 20).boxed(true), Vec::<u8>::new) }.unwrap();
    let empty = realm.mark().unwrap();
    // SAFETY: as above.
    unsafe { realm.with(|bytes| bytes.extend([1; 1000])) };
    realm.back_to(&empty).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { realm.with(|bytes| bytes.len()) }, 0);
}

/// A realm whose addresses were not whole segments had blocks behind the addresses that were registered for it.
#[test]
fn blocks_at_the_end_of_a_realm_are_freed_in_it() {
    // SAFETY: as above.
    let mut realm = unsafe { Realm::with_options(&options((8 << 20) - 100), Vec::<Vec<u8>>::new) }.unwrap();
    // SAFETY: as above.
    let blocks = unsafe {
        realm.with(|blocks| {
            loop {
                let mut block = Vec::<u8>::new();
                if block.try_reserve_exact(16).is_err() || blocks.try_reserve(1).is_err() {
                    break;
                }
                blocks.push(block);
            }
            let count = blocks.len();
            blocks.clear();
            count
        })
    };
    assert!(blocks > 100_000, "{blocks}");
    realm.check().unwrap();
}

struct Guard<'a>(&'a mut Vec<String>);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.push("undone ".repeat(10));
    }
}

/// A destructor that ran during a panic left memory from outside in the value. If the closure caught the panic, nobody
/// noticed, and going back showed the bytes of other blocks.
#[test]
fn a_closure_that_catches_a_panic_breaks_the_realm() {
    // SAFETY: as above.
    let mut realm = unsafe { Realm::new(Vec::<String>::new) }.unwrap();
    let empty = realm.mark().unwrap();
    let caught = panic::catch_unwind(AssertUnwindSafe(|| {
        let work = |log: &mut Vec<String>| {
            let _ = panic::catch_unwind(AssertUnwindSafe(|| {
                let _guard = Guard(log);
                panic!("on purpose");
            }));
        };
        // SAFETY: as above.
        unsafe { realm.with(work) };
    }));
    assert!(caught.is_err());
    assert!(realm.mark().is_err());
    realm.back_to(&empty).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { realm.with(|log| log.len()) }, 0);
}

/// What a closure panics with may own memory of the realm, which is gone once the realm goes back.
#[test]
fn what_a_closure_panics_with_is_copied() {
    // SAFETY: as above.
    let mut realm = unsafe { Realm::new(Vec::<String>::new) }.unwrap();
    let empty = realm.mark().unwrap();
    let mut panics_with = |f: fn(&mut Vec<String>)| {
        // SAFETY: as above. What `f` panics with does not leave the realm.
        let caught = panic::catch_unwind(AssertUnwindSafe(|| unsafe { realm.with(f) })).unwrap_err();
        realm.back_to(&empty).unwrap();
        // SAFETY: as above.
        unsafe { realm.with(|log| (0..50).for_each(|number| log.push(format!("{number:032}")))) };
        realm.back_to(&empty).unwrap();
        caught
    };
    let text = panics_with(|_| panic::panic_any("payload ".repeat(4)));
    assert_eq!(*text.downcast::<String>().unwrap(), "payload ".repeat(4));
    let text = panics_with(|_| panic::resume_unwind(Box::new("resumed ".repeat(4))));
    assert_eq!(*text.downcast::<String>().unwrap(), "resumed ".repeat(4));
    let other = panics_with(|_| panic::panic_any(vec![1_u8; 1000]));
    assert!(other.downcast::<&'static str>().unwrap().contains("cannot leave the realm"));
    assert_eq!(realm.freed_outside(), 0);
}

/// The realm that is being made ends with a panic of its first closure, and its memory with it. What the closure panicked
/// with was in that memory.
#[test]
fn what_the_first_closure_panics_with_outlives_the_realm() {
    let caught = panic::catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: as above. What the closure panics with does not leave the realm.
        let realm = unsafe { Realm::<Vec<u8>>::new(|| panic::panic_any("payload ".repeat(40_000))) };
        drop(realm);
    }));
    assert_eq!(*caught.unwrap_err().downcast::<String>().unwrap(), "payload ".repeat(40_000));

    let caught = panic::catch_unwind(AssertUnwindSafe(|| {
        let first = || {
            let mut log = Vec::new();
            let _ = panic::catch_unwind(AssertUnwindSafe(|| {
                let _guard = Guard(&mut log);
                panic!("on purpose");
            }));
            log
        };
        // SAFETY: as above.
        drop(unsafe { Realm::new(first) });
    }));
    assert!(caught.is_err());
}
