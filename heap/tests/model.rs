//! Random programs over all collections, with trees of marks, against the collections of the standard library, with
//! every tracking method and with boxed memory.

use std::collections::{BTreeSet, HashMap as StdMap};
use std::io::ErrorKind;
use std::string::String as StdString;
use std::vec::Vec as StdVec;

use memsnap_heap::{Box, HashMap, HashSet, Heap, HeapOptions, In, Mark, Root, Snap, String, Tracking, Vec};
use proptest::prelude::*;

#[derive(Snap)]
struct World<'h> {
    lists: HashMap<'h, String<'h>, Vec<'h, u64>>,
    set: HashSet<'h, u32>,
    stack: Option<Box<'h, Node<'h>>>,
    text: String<'h>,
    plain: ([u64; 3], Option<char>),
}

/// A stack, whose top is an allocation of its own.
#[derive(Snap)]
struct Node<'h> {
    value: u64,
    below: Option<Box<'h, Node<'h>>>,
}

struct AnyWorld;
impl Root for AnyWorld {
    type Of<'h> = World<'h>;
}

#[derive(Clone, Default, PartialEq, Debug)]
struct Model {
    lists: StdMap<StdString, StdVec<u64>>,
    set: BTreeSet<u32>,
    stack: StdVec<u64>,
    text: StdString,
    plain: ([u64; 3], Option<char>),
}

#[derive(Clone, Debug)]
enum Step {
    Extend(u8, u32, u64),
    Truncate(u8, u16),
    Forget(u8),
    ClearLists,
    Toggle(u32),
    ToggleMany(u32, u32),
    Push(u64),
    Pop(u8),
    Write(StdString),
    Cut,
    Set(usize, u64, Option<char>),
    Mark,
    Unmark(usize),
    Back(usize),
    Transact(u64, bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<u8>(), prop_oneof![9 => 0..20_u32, 1 => 0..40_000_u32], any::<u64>())
            .prop_map(|(key, count, first)| Step::Extend(key, count, first)),
        2 => (any::<u8>(), any::<u16>()).prop_map(|(key, len)| Step::Truncate(key, len)),
        3 => any::<u8>().prop_map(Step::Forget),
        1 => Just(Step::ClearLists),
        3 => (0..1000_u32).prop_map(Step::Toggle),
        1 => (0..1000_u32, 0..5000_u32).prop_map(|(from, count)| Step::ToggleMany(from, count)),
        3 => any::<u64>().prop_map(Step::Push),
        2 => any::<u8>().prop_map(Step::Pop),
        2 => ".{0,40}".prop_map(Step::Write),
        1 => Just(Step::Cut),
        1 => (0..3_usize, any::<u64>(), any::<Option<char>>()).prop_map(|(at, number, c)| Step::Set(at, number, c)),
        4 => Just(Step::Mark),
        1 => any::<usize>().prop_map(Step::Unmark),
        4 => any::<usize>().prop_map(Step::Back),
        1 => (any::<u64>(), any::<bool>()).prop_map(|(number, commits)| Step::Transact(number, commits)),
    ]
}

fn key(key: u8) -> StdString {
    // Keys of many lengths, in many size classes.
    format!("{key}{}", "-".repeat(usize::from(key) * 3))
}

fn push<'h>(world: &mut World<'h>, value: u64, memory: In<'h>) {
    let below = world.stack.take();
    world.stack = Some(Box::new_in(Node { value, below }, memory));
}

/// Makes a step that is neither a mark nor a return.
fn apply<'h>(world: &mut World<'h>, memory: In<'h>, step: &Step) {
    match step {
        Step::Extend(name, count, first) => {
            let name = String::from_str_in(&key(*name), memory);
            let list = world.lists.entry(name).or_insert_with(|| Vec::new_in(memory));
            list.extend((0..u64::from(*count)).map(|index| first.wrapping_add(index)));
        }
        Step::Truncate(name, len) => {
            if let Some(list) = world.lists.get_mut(key(*name).as_str()) {
                list.truncate(usize::from(*len));
                list.shrink_to_fit();
            }
        }
        Step::Forget(name) => drop(world.lists.remove(key(*name).as_str())),
        Step::ClearLists => {
            world.lists.clear();
            world.lists.shrink_to_fit();
        }
        Step::Toggle(number) => {
            if !world.set.remove(number) {
                world.set.insert(*number);
            }
        }
        Step::ToggleMany(from, count) => {
            for number in *from..from + count {
                apply(world, memory, &Step::Toggle(number));
            }
        }
        Step::Push(value) => push(world, *value, memory),
        Step::Pop(count) => {
            for _ in 0..*count {
                let Some(top) = world.stack.take() else { break };
                world.stack = Box::into_inner(top).below;
            }
        }
        Step::Write(text) => world.text.push_str(text),
        Step::Cut => {
            world.text.pop();
            world.text.shrink_to_fit();
        }
        Step::Set(at, number, character) => {
            world.plain.0[*at] = *number;
            world.plain.1 = *character;
        }
        Step::Mark | Step::Unmark(_) | Step::Back(_) | Step::Transact(..) => unreachable!("made by `run`"),
    }
}

fn apply_to_model(model: &mut Model, step: &Step) {
    match step {
        Step::Extend(name, count, first) => {
            let list = model.lists.entry(key(*name)).or_default();
            list.extend((0..u64::from(*count)).map(|index| first.wrapping_add(index)));
        }
        Step::Truncate(name, len) => {
            if let Some(list) = model.lists.get_mut(&key(*name)) {
                list.truncate(usize::from(*len));
            }
        }
        Step::Forget(name) => drop(model.lists.remove(&key(*name))),
        Step::ClearLists => model.lists.clear(),
        Step::Toggle(number) => {
            if !model.set.remove(number) {
                model.set.insert(*number);
            }
        }
        Step::ToggleMany(from, count) => {
            (*from..from + count).for_each(|number| apply_to_model(model, &Step::Toggle(number)));
        }
        Step::Push(value) => model.stack.push(*value),
        Step::Pop(count) => model.stack.truncate(model.stack.len().saturating_sub(usize::from(*count))),
        Step::Write(text) => model.text.push_str(text),
        Step::Cut => drop(model.text.pop()),
        Step::Set(at, number, character) => {
            model.plain.0[*at] = *number;
            model.plain.1 = *character;
        }
        Step::Mark | Step::Unmark(_) | Step::Back(_) | Step::Transact(..) => unreachable!("made by `run`"),
    }
}

fn read(heap: &Heap<AnyWorld>) -> Model {
    heap.with(|world| {
        let mut stack = StdVec::new();
        let mut top = world.stack.as_deref();
        while let Some(node) = top {
            stack.push(node.value);
            top = node.below.as_deref();
        }
        stack.reverse();
        Model {
            lists: world.lists.iter().map(|(name, list)| (name.to_string(), list.to_vec())).collect(),
            set: world.set.iter().copied().collect(),
            stack,
            text: world.text.to_string(),
            plain: world.plain,
        }
    })
}

fn new_heap(options: &HeapOptions) -> std::io::Result<Heap<AnyWorld>> {
    Heap::with_options(options, |memory| World {
        lists: HashMap::with_hasher_in(Default::default(), memory),
        set: HashSet::with_hasher_in(Default::default(), memory),
        stack: None,
        text: String::new_in(memory),
        plain: ([0; 3], None),
    })
}

fn run(options: &HeapOptions, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut heap = match new_heap(options) {
        Err(error) if error.kind() == ErrorKind::Unsupported => return Ok(()),
        heap => heap.map_err(|error| TestCaseError::fail(error.to_string()))?,
    };
    let mut model = Model::default();
    let mut marks: StdVec<(Mark<AnyWorld>, Model)> = StdVec::new();
    for step in steps {
        match step {
            Step::Mark => marks.push((heap.mark().unwrap(), model.clone())),
            Step::Unmark(_) | Step::Back(_) if marks.is_empty() => {}
            Step::Unmark(at) => drop(marks.swap_remove(at % marks.len())),
            Step::Back(at) => {
                let (mark, then) = &marks[at % marks.len()];
                heap.back_to(mark).unwrap();
                model = then.clone();
                prop_assert_eq!(&read(&heap), &model);
            }
            Step::Transact(number, commits) => {
                let result = heap.transact(|world, memory| {
                    push(world, *number, memory);
                    world.text.clear();
                    if *commits { Ok(()) } else { Err(()) }
                });
                prop_assert_eq!(result.unwrap().is_ok(), *commits);
                if *commits {
                    model.stack.push(*number);
                    model.text.clear();
                }
            }
            step => {
                heap.with_mut(|world, memory| apply(world, memory, step));
                apply_to_model(&mut model, step);
            }
        }
    }
    prop_assert_eq!(&read(&heap), &model);
    for (mark, then) in &marks {
        heap.back_to(mark).unwrap();
        prop_assert_eq!(&read(&heap), then);
        heap.check().map_err(TestCaseError::fail)?;
    }
    Ok(())
}

fn all_options() -> StdVec<HeapOptions> {
    let mut all = StdVec::new();
    for tracking in [Tracking::Auto, Tracking::Armed, Tracking::Scan, Tracking::Pagemap, Tracking::Compare] {
        let mut options = HeapOptions::new();
        options.address_space(256 << 20).tracking(tracking);
        all.push(options);
    }
    let mut boxed = HeapOptions::new();
    boxed.address_space(64 << 20).boxed(true);
    if cfg!(miri) { vec![boxed] } else { all.into_iter().chain([boxed]).collect() }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 32 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_heap_is_what_the_standard_library_says(steps in prop::collection::vec(step(), 1..if cfg!(miri) { 20 } else { 250 })) {
        for options in all_options() {
            run(&options, &steps)?;
        }
    }
}

/// A mark is cheap enough to take a million of them, and each that is kept is exact.
#[test]
fn a_million_marks() {
    const KEPT: usize = 1000;
    let mut options = HeapOptions::new();
    options.address_space(256 << 20);
    let mut heap = new_heap(&options).unwrap();
    // On some systems, each mark compares all pages.
    let compares = heap.stats().view.is_some_and(|view| view.tracker == Tracking::Compare);
    let count = if cfg!(miri) {
        20
    } else if compares {
        5_000
    } else {
        1_000_000
    };
    let mut marks = std::collections::VecDeque::new();
    for number in 0..count {
        heap.with_mut(|world, memory| {
            push(world, number, memory);
            if number % 2 == 0 {
                let top = world.stack.take().expect("a node was pushed");
                world.stack = Box::into_inner(top).below;
            }
            if number % 5000 == 4999 {
                world.stack = None;
            }
            world.plain.0[0] = number;
        });
        marks.push_back((number, heap.mark().unwrap()));
        if marks.len() > KEPT {
            marks.pop_front();
        }
        if number % 100 == 99 {
            let (then, mark) = &marks[usize::try_from(number).unwrap() * 7 % marks.len()];
            heap.back_to(mark).unwrap();
            assert_eq!(heap.with(|world| world.plain.0[0]), *then);
            heap.back_to(&marks[marks.len() - 1].1).unwrap();
        }
    }
    assert_eq!(heap.with(|world| world.plain.0[0]), count - 1);
    heap.check().unwrap();
}
