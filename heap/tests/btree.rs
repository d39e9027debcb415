//! Ordered maps in heaps, against those of the standard library.
#![cfg(feature = "btree")]

use std::cell::Cell;
use std::collections;
use std::ops::Bound;
use std::panic::{self, AssertUnwindSafe};

use memsnap_heap::{BTreeMap, BTreeSet, Heap, HeapOptions, Mark, Persist, Root, Snap, String};
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

#[derive(Snap, Persist)]
struct Tables<'h> {
    numbers: BTreeMap<'h, u64, String<'h>>,
    names: BTreeMap<'h, String<'h>, u64>,
    set: BTreeSet<'h, (i32, u8)>,
}

struct Database;
impl Root for Database {
    type Of<'h> = Tables<'h>;
}

#[derive(Clone, Default)]
struct Model {
    numbers: collections::BTreeMap<u64, std::string::String>,
    names: collections::BTreeMap<std::string::String, u64>,
    set: collections::BTreeSet<(i32, u8)>,
}

fn options() -> HeapOptions {
    let mut options = HeapOptions::new();
    options.address_space(256 << 20);
    options
}

fn database() -> Heap<Database> {
    Heap::with_options(&options(), |memory| Tables {
        numbers: BTreeMap::new_in(memory),
        names: BTreeMap::new_in(memory),
        set: BTreeSet::new_in(memory),
    })
    .unwrap()
}

fn equals(heap: &Heap<Database>, model: &Model) -> bool {
    heap.with(|tables| {
        tables.numbers.len() == model.numbers.len()
            && tables
                .numbers
                .iter()
                .map(|(key, value)| (*key, &**value))
                .eq(model.numbers.iter().map(|(key, value)| (*key, value.as_str())))
            && tables
                .names
                .iter()
                .map(|(key, value)| (&**key, *value))
                .eq(model.names.iter().map(|(key, value)| (key.as_str(), *value)))
            && tables.set.iter().rev().eq(model.set.iter().rev())
    })
}

/// Makes one random change to both.
fn change(heap: &mut Heap<Database>, model: &mut Model, random: &mut Xoshiro256PlusPlus) {
    let number: u64 = random.random_range(0..3000);
    let name = format!("{}{number}", "n".repeat(random.random_range(0..40)));
    let item = (random.random_range(-50..50), random.random());
    match random.random_range(0..100) {
        0..40 => {
            heap.with_mut(|tables, memory| {
                tables.numbers.insert(number, String::from_str_in(&name, memory));
                tables.names.insert(String::from_str_in(&name, memory), number);
                tables.set.insert(item);
            });
            model.numbers.insert(number, name.clone());
            model.names.insert(name, number);
            model.set.insert(item);
        }
        40..75 => {
            heap.with_mut(|tables, _| {
                tables.numbers.remove(&number);
                tables.names.pop_first();
                tables.set.remove(&item);
            });
            model.numbers.remove(&number);
            model.names.pop_first();
            model.set.remove(&item);
        }
        75..90 => {
            let range = (Bound::Included("nn"), Bound::Unbounded);
            heap.with_mut(|tables, _| {
                tables.names.range_mut::<str, _>(range).take(5).for_each(|(_, value)| *value += 1);
            });
            model.names.range_mut::<str, _>(range).take(5).for_each(|(_, value)| *value += 1);
        }
        90..99 => {
            heap.with_mut(|tables, _| tables.numbers.pop_last().is_some());
            model.numbers.pop_last();
        }
        _ => {
            heap.with_mut(|tables, _| {
                let mut rest = tables.numbers.split_off(&number);
                rest.retain(|key, _| key % 16 != 0);
                tables.numbers.append(&mut rest);
            });
            model.numbers.retain(|key, _| *key < number || key % 16 != 0);
        }
    }
}

/// A tree of marks over random changes. Each mark is gone back to in any order, and is exactly what it was.
#[test]
fn marks_of_ordered_maps_are_exact_in_any_order() {
    let (cases, steps) = if cfg!(miri) { (1, 200) } else { (8, 20_000) };
    for seed in 0..cases {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut heap = database();
        let mut model = Model::default();
        let mut marks: std::vec::Vec<(Mark<Database>, Model)> = std::vec::Vec::new();
        for _ in 0..steps {
            match random.random_range(0..100) {
                0..97 => change(&mut heap, &mut model, &mut random),
                97..99 => {
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
        heap.check().unwrap();
    }
}

/// All memory of a map is in the heap, and returns to it.
#[test]
fn maps_that_are_dropped_leave_no_memory_in_use() {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut heap = database();
    let empty = heap.check().unwrap().used;
    let mut model = Model::default();
    for _ in 0..if cfg!(miri) { 100 } else { 20_000 } {
        change(&mut heap, &mut model, &mut random);
    }
    assert!(heap.check().unwrap().used > empty);
    heap.with_mut(|tables, memory| {
        let numbers = std::mem::replace(&mut tables.numbers, BTreeMap::new_in(memory));
        let mut entries = numbers.into_iter();
        entries.next();
        entries.next_back();
        drop(entries);
        tables.names.clear();
        tables.set = BTreeSet::new_in(memory);
    });
    assert_eq!(heap.check().unwrap().used, empty);
}

/// A map and a set that were saved are the same after their heap was opened again, also if they are empty.
#[test]
fn a_heap_with_ordered_maps_is_opened_again() {
    for filled in [false, true] {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(2);
        let mut heap = database();
        let mut model = Model::default();
        for _ in 0..if filled { 2000 } else { 0 } {
            change(&mut heap, &mut model, &mut random);
        }
        let mark = heap.mark().unwrap();
        let Some(snapshot) = mark.snapshot().cloned() else {
            println!("skipped: a_heap_with_ordered_maps_is_opened_again: the heap is boxed");
            return;
        };
        drop((mark, heap));
        // SAFETY: this process made the snapshot, of a heap of the same type.
        let mut again = unsafe { Heap::<Database>::open(&options(), snapshot) }.unwrap();
        assert!(equals(&again, &model));
        for _ in 0..500 {
            change(&mut again, &mut model, &mut random);
        }
        assert!(equals(&again, &model));
        again.check().unwrap();
    }
}

#[test]
fn an_ordered_map_in_a_full_heap_refuses_an_entry_and_goes_back() {
    struct Numbers;
    impl Root for Numbers {
        type Of<'h> = BTreeMap<'h, u64, [u64; 8]>;
    }
    let mut options = HeapOptions::new();
    options.address_space(8 << 20);
    let mut heap = Heap::<Numbers>::with_options(&options, |memory| BTreeMap::new_in(memory)).unwrap();
    heap.with_mut(|map, _| map.insert(1, [1; 8]).is_none());
    let mark = heap.mark().unwrap();
    // Miri would need minutes to fill the heap.
    let end = if cfg!(miri) { 200 } else { 1_000_000 };
    let refused = heap.with_mut(|map, _| {
        (2..end).find_map(|key| {
            let entry = map.try_insert(key, [key; 8]).err()?.into_entry();
            assert_eq!((entry, map.len() as u64), ((key, [key; 8]), key - 1));
            assert!(
                map.iter().map(|(key, value)| (*key, value[7])).eq((1..key).map(|key| (key, key.max(1))))
            );
            Some(key)
        })
    });
    assert_eq!(refused.is_none(), cfg!(miri));
    heap.back_to(&mark).unwrap();
    assert!(heap.with(|map| map.iter().eq([(&1, &[1; 8])])));
    heap.check().unwrap();
}

/// A destructor or a comparison that panics runs in the middle of the map's work.
#[test]
fn panics_in_an_ordered_map_leave_the_heap_usable() {
    thread_local!(static LEFT: Cell<u32> = const { Cell::new(u32::MAX) });
    fn step() {
        LEFT.set(LEFT.get() - 1);
        if LEFT.get() == 0 {
            LEFT.set(u32::MAX);
            panic!("on purpose");
        }
    }
    #[derive(PartialEq, Eq)]
    struct Fussy(u32);
    impl Ord for Fussy {
        fn cmp(&self, other: &Self) -> std::cmp::Ordering {
            step();
            self.0.cmp(&other.0)
        }
    }
    impl PartialOrd for Fussy {
        fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
            Some(self.cmp(other))
        }
    }
    impl Drop for Fussy {
        fn drop(&mut self) {
            step();
        }
    }
    // SAFETY: the value is a number. Its destructor only panics.
    unsafe impl Snap<'_> for Fussy {}
    struct Keys;
    impl Root for Keys {
        type Of<'h> = BTreeMap<'h, Fussy, u32>;
    }

    let mut random = Xoshiro256PlusPlus::seed_from_u64(3);
    let mut heap = Heap::<Keys>::with_options(&options(), |memory| BTreeMap::new_in(memory)).unwrap();
    heap.with_mut(|map, _| map.extend((0..500).map(|key| (Fussy(key * 2), key))));
    let full = heap.mark().unwrap();
    let mut panicked = 0;
    for _ in 0..if cfg!(miri) { 20 } else { 5000 } {
        let (key, kind) = (random.random_range(0..1000), random.random_range(0..5));
        let caught = panic::catch_unwind(AssertUnwindSafe(|| {
            LEFT.set(random.random_range(1..15));
            heap.with_mut(|map, _| match kind {
                0 => drop(map.insert(Fussy(key), key)),
                1 => drop(map.remove(&Fussy(key))),
                2 => map.retain(|other, _| other.0 % 7 != key % 7),
                3 => map.clear(),
                _ => drop(map.split_off(&Fussy(key))),
            });
        }));
        LEFT.set(u32::MAX);
        panicked += u32::from(caught.is_err());
        heap.check().unwrap();
        // Whatever the map contains, it can be read. After going back, it is as it was.
        heap.with(|map| map.iter().for_each(|(key, value)| assert!(key.0 <= 1000 && *value <= 1000)));
        heap.back_to(&full).unwrap();
        assert!(heap.with(|map| {
            map.iter().map(|(key, value)| (key.0, *value)).eq((0..500).map(|key| (key * 2, key)))
        }));
    }
    assert!(panicked > 0);
}
