//! Realms: values of any type that are rolled back, with a `Router` as the global allocator.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;

use memsnap_heap::{Realm, Router};

#[global_allocator]
static ALLOCATOR: Router = Router::system();

type World = (BTreeMap<u32, String>, HashMap<u32, Vec<u64>>);

fn realm() -> Realm<World> {
    // SAFETY: the value owns all that the closure allocates, and the closure keeps nothing from outside.
    unsafe { Realm::new(World::default) }.unwrap()
}

#[test]
fn values_of_the_standard_library_are_rolled_back() {
    let mut realm = realm();
    let mut marks = Vec::new();
    for round in 0..100_u32 {
        // SAFETY: the value owns all that the closure allocates, and numbers come from outside.
        unsafe {
            realm.with(|(names, lists)| {
                names.insert(round, format!("number {round}"));
                lists.entry(round % 7).or_default().push(round.into());
            });
        }
        marks.push(realm.mark().unwrap());
    }
    for at in [3, 99, 50, 0] {
        realm.back_to(&marks[at]).unwrap();
        // SAFETY: the closure allocates nothing.
        let (names, entries) = unsafe {
            realm.with(|(names, lists)| (names.len(), lists.values().map(Vec::len).sum::<usize>()))
        };
        assert_eq!((names, entries), (at + 1, at + 1));
        // SAFETY: as above.
        assert!(unsafe {
            realm.with(|(names, _)| names.iter().all(|(key, name)| name.ends_with(&key.to_string())))
        });
    }
    realm.check().unwrap();
    assert_eq!(realm.freed_outside(), 0);
}

/// A panic's message and payload outlive the closure, so they are not in the realm. The value is unusable until the realm
/// goes back.
#[test]
fn after_a_panic_the_realm_goes_back_first() {
    let mut realm = realm();
    let mark = realm.mark().unwrap();
    // SAFETY: as above.
    let caught = panic::catch_unwind(AssertUnwindSafe(|| unsafe {
        realm.with(|(names, _)| {
            names.insert(1, "one".into());
            panic!("on purpose: {}", names.len());
        })
    }));
    let payload = caught.unwrap_err();
    assert!(realm.mark().is_err());
    // SAFETY: the closure does nothing.
    assert!(panic::catch_unwind(AssertUnwindSafe(|| unsafe { realm.with(|_| ()) })).is_err());
    realm.back_to(&mark).unwrap();
    assert_eq!(payload.downcast_ref::<String>().unwrap(), "on purpose: 1");
    drop(payload);
    // SAFETY: the closure allocates nothing.
    assert!(unsafe { realm.with(|(names, _)| names.is_empty()) });
    assert_eq!(realm.freed_outside(), 0);
}

#[test]
#[cfg(target_os = "linux")]
fn memory_that_a_static_or_a_thread_local_keeps_is_noticed() {
    static KEPT: Mutex<Vec<u8>> = Mutex::new(Vec::new());
    thread_local! { static LOCAL: RefCell<Option<Box<[u64; 8]>>> = const { RefCell::new(None) } }
    let mut realm = realm();
    assert_eq!(realm.escapes().unwrap(), []);
    // SAFETY: breaks the first promise, but nobody goes back to a mark before the memory is freed.
    unsafe { realm.with(|_| KEPT.lock().unwrap().extend([1; 100])) };
    let escapes = realm.escapes().unwrap();
    assert_eq!(escapes.iter().map(|escape| escape.thread_local).collect::<Vec<_>>(), [false], "{escapes:?}");
    // SAFETY: as above.
    unsafe { realm.with(|_| LOCAL.set(Some(Box::new([1; 8])))) };
    let escapes = realm.escapes().unwrap();
    assert_eq!(escapes.iter().filter(|escape| escape.thread_local).count(), 1, "{escapes:?}");
    drop(std::mem::take(&mut *KEPT.lock().unwrap()));
    LOCAL.set(None);
    assert_eq!(realm.escapes().unwrap(), []);
    assert_eq!(realm.freed_outside(), 2);
}

/// Other realms, heaps and threads allocate where they should while a closure runs.
#[test]
fn realms_nest_and_do_not_mix() {
    let (mut outer, mut inner) = (realm(), realm());
    let mark = inner.mark().unwrap();
    let mut work = |names: &mut BTreeMap<u32, String>| {
        names.insert(1, "outer".into());
        // SAFETY: what the closure allocates stays in the inner realm.
        unsafe { inner.with(|(names, _)| names.insert(1, "inner".into()).is_some()) };
        inner.back_to(&mark).unwrap();
        names.insert(2, "outer".into());
    };
    // SAFETY: `inner` is from outside, and what its closure allocates stays inside it. `back_to` allocates outside.
    unsafe { outer.with(|(names, _)| work(names)) };
    // SAFETY: the closure allocates nothing.
    assert_eq!(unsafe { outer.with(|(names, _)| names.len()) }, 2);
    // SAFETY: as above.
    assert_eq!(unsafe { inner.with(|(names, _)| names.len()) }, 0);
    outer.check().unwrap();
    inner.check().unwrap();
    let inside = std::thread::scope(|scope| scope.spawn(|| Box::new(1)).join().unwrap());
    assert_eq!(*inside, 1);
    assert_eq!((outer.freed_outside(), inner.freed_outside()), (0, 0));
}
