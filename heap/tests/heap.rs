//! Heaps: values that are marked, rolled back and branched, against the collections of the standard library.

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::thread;

use memsnap_heap::{Heap, HeapOptions, Mark, Root, Snap, String, Vec};
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

type Lists<'h> = memsnap_heap::HashMap<'h, u32, Vec<'h, u64>>;

struct Map;
impl Root for Map {
    type Of<'h> = Lists<'h>;
}

fn map() -> Heap<Map> {
    let mut options = HeapOptions::new();
    options.address_space(256 << 20);
    Heap::with_options(&options, |memory| Lists::with_hasher_in(Default::default(), memory)).unwrap()
}

type Model = BTreeMap<u32, std::vec::Vec<u64>>;

fn equals(heap: &Heap<Map>, model: &Model) -> bool {
    heap.with(|map| {
        map.len() == model.len()
            && model.iter().all(|(key, list)| map.get(key).is_some_and(|other| other[..] == list[..]))
    })
}

/// A tree of marks over random changes. Each mark is gone back to in any order, and is exactly what it was.
#[test]
fn marks_are_exact_in_any_order() {
    let (cases, steps) = if cfg!(miri) { (1, 300) } else { (12, 20_000) };
    for seed in 0..cases {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut heap = map();
        let mut model = Model::new();
        let mut marks: std::vec::Vec<(Mark<Map>, Model)> = std::vec::Vec::new();
        for _ in 0..steps {
            let key = random.random_range(0..2000);
            match random.random_range(0..100) {
                0..60 => {
                    let first: u64 = random.random();
                    let long = random.random_range(0..500) == 0;
                    let count = if long { 20_000 } else { random.random_range(1..6) };
                    let added = (0..count).map(|index| first ^ index);
                    heap.with_mut(|map, memory| {
                        map.entry(key).or_insert_with(|| Vec::new_in(memory)).extend(added.clone());
                    });
                    model.entry(key).or_default().extend(added);
                }
                60..96 => {
                    heap.with_mut(|map, _| map.remove(&key).is_some());
                    model.remove(&key);
                }
                96..98 => {
                    if marks.len() > 20 {
                        let _ = marks.swap_remove(random.random_range(0..marks.len()));
                    }
                    marks.push((heap.mark().unwrap(), model.clone()));
                }
                _ if marks.is_empty() => {}
                _ => {
                    let (mark, at) = &marks[random.random_range(0..marks.len())];
                    heap.back_to(mark).unwrap();
                    model = at.clone();
                }
            }
        }
        assert!(equals(&heap, &model), "seed {seed}");
        for (mark, model) in &marks {
            heap.back_to(mark).unwrap();
            assert!(equals(&heap, model), "seed {seed}");
        }
        let usage = heap.check().unwrap();
        assert!(usage.used <= usage.len);
    }
}

#[test]
fn a_mark_of_another_heap_is_refused() {
    let (mut one, mut other) = (map(), map());
    let mark = one.mark().unwrap();
    other.with_mut(|map, memory| map.insert(1, Vec::new_in(memory)).is_none());
    let error = other.back_to(&mark).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    assert!(error.to_string().contains("of another heap"), "{error}");
    assert!(other.with(|map| map.contains_key(&1)));
    one.back_to(&mark).unwrap();
}

#[test]
fn a_panic_in_a_closure_leaves_the_heap_usable_and_transact_goes_back() {
    let mut heap = map();
    heap.with_mut(|map, memory| map.insert(1, Vec::new_in(memory)).is_none());
    let caught = panic::catch_unwind(AssertUnwindSafe(|| {
        heap.with_mut(|map, memory| {
            map.insert(2, Vec::new_in(memory));
            panic!("on purpose");
        })
    }));
    assert!(caught.is_err());
    assert!(heap.with(|map| map.contains_key(&1) && map.contains_key(&2)));
    let caught = panic::catch_unwind(AssertUnwindSafe(|| {
        heap.transact(|map, memory| -> Result<(), ()> {
            map.insert(3, Vec::new_in(memory));
            panic!("on purpose");
        })
    }));
    assert!(caught.is_err());
    assert!(heap.with(|map| map.len() == 2 && !map.contains_key(&3)));
    let refused = heap.transact(|map, _| {
        map.clear();
        Err::<(), _>("refused")
    });
    assert_eq!(refused.unwrap(), Err("refused"));
    assert_eq!(heap.with(|map| map.len()), 2);
    assert_eq!(heap.transact(|map, _| Ok::<_, ()>(map.remove(&1).is_some())).unwrap(), Ok(true));
    assert_eq!(heap.with(|map| map.len()), 1);
    heap.check().unwrap();
}

/// A destructor, a hash function or a comparison that panics runs in the middle of a collection's work.
#[test]
fn panics_in_destructors_and_comparisons_leave_the_heap_usable() {
    #[derive(Clone, Copy)]
    struct Fussy(u32);
    // SAFETY: the value is a number. Its destructor only panics.
    unsafe impl Snap<'_> for Fussy {}
    impl PartialEq for Fussy {
        fn eq(&self, other: &Self) -> bool {
            assert_ne!(self.0, 13, "on purpose: eq");
            self.0 == other.0
        }
    }
    impl Eq for Fussy {}
    impl std::hash::Hash for Fussy {
        fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
            assert_ne!(self.0, 14, "on purpose: hash");
            state.write_u32(self.0 % 2);
        }
    }
    struct Bomb(u32);
    // SAFETY: the value is a number. Its destructor only panics.
    unsafe impl Snap<'_> for Bomb {}
    impl Drop for Bomb {
        fn drop(&mut self) {
            assert_ne!(self.0, 15, "on purpose: drop");
        }
    }
    struct Fuss;
    impl Root for Fuss {
        type Of<'h> = memsnap_heap::HashMap<'h, Fussy, memsnap_heap::Box<'h, Bomb>>;
    }
    let mut heap =
        Heap::<Fuss>::new(|memory| hashbrown::HashMap::with_hasher_in(Default::default(), memory)).unwrap();
    for key in 0..12 {
        heap.with_mut(|map, memory| {
            map.insert(Fussy(key), memsnap_heap::Box::new_in(Bomb(key), memory)).is_none()
        });
    }
    let mark = heap.mark().unwrap();
    for key in [13, 14] {
        let caught = panic::catch_unwind(AssertUnwindSafe(|| {
            heap.with_mut(|map, memory| {
                map.insert(Fussy(key), memsnap_heap::Box::new_in(Bomb(0), memory)).is_some()
            })
        }));
        assert!(caught.is_err(), "{key}");
        heap.check().unwrap();
    }
    heap.with_mut(|map, memory| map.insert(Fussy(20), memsnap_heap::Box::new_in(Bomb(15), memory)).is_none());
    assert!(panic::catch_unwind(AssertUnwindSafe(|| heap.with_mut(|map, _| map.clear()))).is_err());
    heap.check().unwrap();
    heap.back_to(&mark).unwrap();
    assert_eq!(heap.with(|map| (0..12).filter(|&key| map.contains_key(&Fussy(key))).count()), 12);
    heap.check().unwrap();
}

#[test]
fn a_heap_moves_to_another_thread_between_any_two_calls() {
    let mut heap = map();
    let mut marks = std::vec::Vec::new();
    for round in 0..if cfg!(miri) { 3 } else { 50 } {
        (heap, marks) = thread::spawn(move || {
            heap.with_mut(|map, memory| {
                let list = map.entry(round).or_insert_with(|| Vec::new_in(memory));
                list.extend(0..1000);
            });
            marks.push(heap.mark().unwrap());
            (heap, marks)
        })
        .join()
        .unwrap();
        let back: &Mark<Map> = &marks[marks.len() / 2];
        heap.back_to(back).unwrap();
        assert_eq!(
            heap.with(|map| map.values().map(|list| list.len()).sum::<usize>()),
            (marks.len() / 2 + 1) * 1000
        );
        heap.back_to(marks.last().unwrap()).unwrap();
    }
}

#[test]
fn two_heaps_work_on_two_threads() {
    let work = |seed: u64| {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut heap = map();
        let mut sums = std::vec::Vec::new();
        for round in 0..if cfg!(miri) { 5 } else { 300 } {
            heap.with_mut(|map, memory| {
                for _ in 0..100 {
                    map.entry(random.random_range(0..500))
                        .or_insert_with(|| Vec::new_in(memory))
                        .push(random.random());
                }
                map.remove(&random.random_range(0..500));
            });
            let sum = |heap: &Heap<Map>| {
                heap.with(|map| map.values().flatten().fold(0, |a: u64, b| a.wrapping_add(*b)))
            };
            sums.push((heap.mark().unwrap(), sum(&heap)));
            let (mark, expected) = &sums[random.random_range(0..=round)];
            heap.back_to(mark).unwrap();
            assert_eq!(sum(&heap), *expected);
            heap.back_to(&sums[round].0).unwrap();
        }
    };
    thread::scope(|scope| {
        for seed in 0..2 {
            scope.spawn(move || work(seed));
        }
    });
}

#[test]
fn a_heap_that_is_full_refuses_and_goes_back() {
    let mut options = HeapOptions::new();
    options.address_space(8 << 20);
    let mut heap =
        Heap::<Map>::with_options(&options, |memory| Lists::with_hasher_in(Default::default(), memory))
            .unwrap();
    let mark = heap.mark().unwrap();
    let filled = heap.with_mut(|map, memory| {
        (0..1000)
            .take_while(|&key| {
                let mut list = Vec::new_in(memory);
                list.try_reserve_exact(10_000)
                    .is_ok_and(|()| map.try_reserve(1).is_ok_and(|()| map.insert(key, list).is_none()))
            })
            .count()
    });
    assert!((20..120).contains(&filled), "{filled}");
    heap.check().unwrap();
    assert!(
        heap.with_mut(|_, memory| Vec::<u64>::new_in(memory).try_reserve_exact(usize::MAX / 16).is_err())
    );
    heap.back_to(&mark).unwrap();
    assert!(heap.with_mut(|map, memory| {
        let mut list = Vec::new_in(memory);
        list.resize(100_000, 7);
        map.insert(0, list).is_none()
    }));
    heap.check().unwrap();
}

#[test]
fn strings_are_text() {
    struct Text;
    impl Root for Text {
        type Of<'h> = String<'h>;
    }
    let mut heap = Heap::<Text>::new(|memory| String::with_capacity_in(0, memory)).unwrap();
    heap.with_mut(|text, memory| {
        use std::fmt::Write;
        text.push_str("grün");
        text.push('é');
        write!(text, "{}", 12).unwrap();
        assert_eq!(text, "grüné12");
        assert_eq!(text.pop(), Some('2'));
        text.truncate(5);
        assert_eq!(text.as_str(), "grün");
        text.extend(['a', 'ß']);
        assert_eq!(format!("{text} {text:?}"), "grünaß \"grünaß\"");
        assert!(*text > String::from_str_in("gr", memory) && text.clone() == *text && "grünaß" == *text);
        text.shrink_to_fit();
        text.clear();
        assert!(text.is_empty() && text.pop().is_none());
    });
    assert!(
        panic::catch_unwind(AssertUnwindSafe(|| heap.with_mut(|text, _| {
            text.push('é');
            text.truncate(1);
        })))
        .is_err()
    );
    assert_eq!(heap.with(|text| text.len()), 2);
}
