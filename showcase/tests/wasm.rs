//! Instances of Wasmtime in views: they are restored exactly, and do not see each other.

use std::sync::Arc;

use memsnap_showcase::wasm::{Instance, KV, Memories, Program, State};
use memsnap_store::Repository;
use wasmtime::{
    Config, Engine, Linker, MemoryCreator, MemoryType, Module, Result, Store, Trap, TypedFunc, Val,
};

const PAGE: usize = 1 << 16;

fn start(program: &Program) -> Result<Instance<()>> {
    program.instantiate(&Linker::new(program.engine()), ())
}

/// Makes an instance of the key-value store with about 500 KiB of entries.
fn store() -> Result<Instance<()>> {
    let mut instance = start(&Program::new(Config::new(), KV)?)?;
    instance.function::<i32, ()>("init")?.call(instance.store_mut(), 1000)?;
    Ok(instance)
}

fn request(instance: &mut Instance<()>, seed: i64, operations: i32) -> Result<i64> {
    instance.function::<(i64, i32), i64>("request")?.call(instance.store_mut(), (seed, operations))
}

fn call(instance: &mut Instance<()>, name: &str, argument: i32) -> Result<i32> {
    instance.function::<i32, i32>(name)?.call(instance.store_mut(), argument)
}

fn poke(instance: &mut Instance<()>, at: i32, byte: i32) -> Result<()> {
    instance.function::<(i32, i32), ()>("poke")?.call(instance.store_mut(), (at, byte))
}

fn pages(instance: &mut Instance<()>) -> Result<usize> {
    let pages = instance.function::<(), i32>("size")?.call(instance.store_mut(), ())?;
    Ok(usize::try_from(pages)?)
}

/// All state, as WebAssembly and the host see it.
#[derive(PartialEq, Debug)]
struct Seen {
    globals: Vec<i64>,
    pages: usize,
    bytes: Vec<u8>,
}

fn see(instance: &mut Instance<()>) -> Result<Seen> {
    let globals = ["top", "requests"].map(|name| match instance.global(name) {
        Some(Val::I32(value)) => value.into(),
        Some(Val::I64(value)) => value,
        other => panic!("{name} is {other:?}"),
    });
    let seen = Seen { globals: globals.into(), pages: pages(instance)?, bytes: instance.memory().to_vec() };
    assert_eq!(seen.pages * PAGE, seen.bytes.len());
    Ok(seen)
}

#[track_caller]
fn out_of_bounds<T: std::fmt::Debug>(result: Result<T>) {
    let error = result.expect_err("this is out of bounds");
    assert_eq!(error.downcast_ref::<Trap>(), Some(&Trap::MemoryOutOfBounds), "{error:?}");
}

#[test]
fn memory_and_globals_go_back() -> Result<()> {
    let mut instance = store()?;
    let (before, state) = (see(&mut instance)?, instance.take_snapshot()?);
    let answers: Vec<i64> = (0..10).map(|seed| request(&mut instance, seed, 500)).collect::<Result<_>>()?;
    let after = see(&mut instance)?;
    assert_eq!(after.globals[1], before.globals[1] + 10);
    assert!(after.bytes != before.bytes);

    instance.restore_to(&state)?;
    assert!(see(&mut instance)? == before);
    let again: Vec<i64> = (0..10).map(|seed| request(&mut instance, seed, 500)).collect::<Result<_>>()?;
    assert_eq!(again, answers);
    assert!(see(&mut instance)? == after);
    Ok(())
}

#[test]
fn a_grown_memory_goes_back() -> Result<()> {
    let mut instance = store()?;
    let (before, state) = (see(&mut instance)?, instance.take_snapshot()?);
    let end = i32::try_from(before.bytes.len())?;
    for _ in 0..3 {
        out_of_bounds(call(&mut instance, "peek", end));
        assert_eq!(call(&mut instance, "grow", 20)?, i32::try_from(before.pages)?);
        assert_eq!(pages(&mut instance)?, before.pages + 20);
        // Bytes that the previous round wrote must not be visible.
        for at in [end, end + 5000, end + 20 * (1 << 16) - 1] {
            assert_eq!(call(&mut instance, "peek", at)?, 0);
            poke(&mut instance, at, 7)?;
        }
        out_of_bounds(call(&mut instance, "peek", end + 20 * (1 << 16)));
        let grown = instance.take_snapshot()?;

        instance.restore_to(&state)?;
        assert!(see(&mut instance)? == before);
        out_of_bounds(call(&mut instance, "peek", end));
        out_of_bounds(poke(&mut instance, end + 5000, 1));

        instance.restore_to(&grown)?;
        assert_eq!(pages(&mut instance)?, before.pages + 20);
        assert_eq!(call(&mut instance, "peek", end + 5000)?, 7);
        out_of_bounds(call(&mut instance, "peek", end + 20 * (1 << 16)));
        instance.restore_to(&state)?;
    }
    Ok(())
}

#[test]
fn growth_ends_at_the_maximum() -> Result<()> {
    let mut instance = store()?;
    let (before, state) = (pages(&mut instance)?, instance.take_snapshot()?);
    let room = i32::try_from(4096 - before)?;
    assert_eq!(call(&mut instance, "grow", room + 1)?, -1);
    assert_eq!(pages(&mut instance)?, before);
    assert_eq!(call(&mut instance, "grow", room)?, i32::try_from(before)?);
    assert_eq!(call(&mut instance, "grow", 1)?, -1);
    poke(&mut instance, (4096 << 16) - 1, 3)?;
    out_of_bounds(poke(&mut instance, 4096 << 16, 3));

    instance.restore_to(&state)?;
    assert_eq!(pages(&mut instance)?, before);
    assert_eq!(call(&mut instance, "grow", room + 1)?, -1);
    assert_eq!(call(&mut instance, "grow", room)?, i32::try_from(before)?);
    assert_eq!(call(&mut instance, "peek", (4096 << 16) - 1)?, 0);
    Ok(())
}

#[test]
fn a_trap_in_the_middle_goes_back() -> Result<()> {
    let mut instance = store()?;
    let (before, state) = (see(&mut instance)?, instance.take_snapshot()?);
    for seed in 0..5 {
        let crash = instance.function::<(i64, i32), ()>("crash")?;
        let error = crash.call(instance.store_mut(), (seed, 300)).expect_err("it traps");
        assert_eq!(error.downcast_ref::<Trap>(), Some(&Trap::UnreachableCodeReached));
        assert!(see(&mut instance)? != before);
        instance.restore_to(&state)?;
        assert!(see(&mut instance)? == before);
    }
    Ok(())
}

/// Restores states in random order, among them older, newer, longer and shorter ones.
#[test]
fn any_state_comes_back_from_any_other() -> Result<()> {
    let mut instance = store()?;
    let mut states: Vec<(State, Seen)> = vec![(instance.take_snapshot()?, see(&mut instance)?)];
    let mut random = 1_u64;
    for step in 0..60 {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let choice = usize::try_from(random >> 40)?;
        match choice % 4 {
            0 => drop(request(&mut instance, step, 200)?),
            1 => drop(call(&mut instance, "grow", i32::try_from(choice % 7)?)?),
            2 => states.push((instance.take_snapshot()?, see(&mut instance)?)),
            _ => {
                let (state, seen) = &states[(choice >> 8) % states.len()];
                instance.restore_to(state)?;
                assert!(see(&mut instance)? == *seen, "step {step}");
            }
        }
    }
    assert!(states.len() > 5);
    Ok(())
}

#[test]
fn a_thousand_branches_are_isolated() -> Result<()> {
    let mut instance = store()?;
    for seed in 0..20 {
        request(&mut instance, -seed, 100)?;
    }
    let (state, seen) = (instance.take_snapshot()?, see(&mut instance)?);
    let mut expected = Vec::new();
    for seed in 0..1000 {
        let answers = [request(&mut instance, seed, 20)?, request(&mut instance, seed, 20)?];
        expected.push((answers, instance.global("top").map(|top| top.unwrap_i32())));
        instance.restore_to(&state)?;
    }

    let program = instance.program().clone();
    let linker = Linker::new(program.engine());
    let mut branches: Vec<Instance<()>> =
        (0..1000).map(|_| program.branch(&linker, (), &state)).collect::<Result<_>>()?;
    let first: Vec<i64> =
        (0..).zip(&mut branches).map(|(seed, branch)| request(branch, seed, 20)).collect::<Result<_>>()?;
    for (seed, branch) in (0..).zip(&mut branches) {
        let (answers, top) = &expected[usize::try_from(seed)?];
        assert_eq!([first[usize::try_from(seed)?], request(branch, seed, 20)?], *answers);
        assert_eq!(branch.global("top").map(|top| top.unwrap_i32()), *top);
    }
    assert!(branches.first().map(Instance::memory) != branches.last().map(Instance::memory));
    for branch in branches.iter_mut().step_by(100) {
        branch.restore_to(&state)?;
        assert!(see(branch)? == seen);
    }
    assert!(see(&mut instance)? == seen);
    Ok(())
}

/// Instantiation writes data segments and runs the start function. Neither may affect the state of a branch.
#[test]
fn a_branch_is_not_initialised_again() -> Result<()> {
    let program = Program::new(
        Config::new(),
        r#"(module
             (memory (export "memory") 2)
             (global $starts (export "starts") (mut i32) (i32.const 0))
             (data (i32.const 8) "initial")
             (data (i32.const 70000) "second page")
             (start $start)
             (func $start
               (global.set $starts (i32.add (global.get $starts) (i32.const 1)))
               (i32.store8 (i32.const 100) (i32.const 5)))
             (func (export "poke") (param i32 i32) (i32.store8 (local.get 0) (local.get 1))))"#,
    )?;
    let mut instance = start(&program)?;
    assert_eq!(&instance.memory()[8..15], b"initial");
    poke(&mut instance, 8, b'I'.into())?;
    poke(&mut instance, 70000, 0)?;
    poke(&mut instance, 100, 9)?;
    let state = instance.take_snapshot()?;
    let mut branch = program.branch(&Linker::new(program.engine()), (), &state)?;
    assert_eq!(&branch.memory()[8..15], b"Initial");
    assert_eq!((branch.memory()[100], branch.memory()[70000], branch.memory()[70001]), (9, 0, b'e'));
    assert_eq!(branch.global("starts").map(|starts| starts.unwrap_i32()), Some(1));
    assert_eq!(&start(&program)?.memory()[8..15], b"initial");
    Ok(())
}

/// Returns a module with a memory, and with accesses at an address and far after it.
fn accesses(memory: &str, index: &str) -> String {
    format!(
        r#"(module
             (memory (export "memory") {memory})
             (func (export "size") (result {index}) (memory.size))
             (func (export "grow") (param {index}) (result {index}) (memory.grow (local.get 0)))
             (func (export "near") (param {index}) (result i64) (i64.load (local.get 0)))
             (func (export "far") (param {index}) (i64.store offset=0xffffff (local.get 0) (i64.const 1))))"#
    )
}

fn check_bounds(config: Config) -> Result<()> {
    let program = Program::new(config, accesses("1 64", "i32"))?;
    let mut instance = start(&program)?;
    let near = instance.function::<i32, i64>("near")?;
    let far = instance.function::<i32, ()>("far")?;
    let check = |instance: &mut Instance<()>, pages: i32| {
        let end = pages << 16;
        assert_eq!(instance.memory().len(), end.unsigned_abs() as usize);
        assert_eq!(near.call(instance.store_mut(), end - 8).ok(), Some(0));
        for address in [end - 7, end, end + 4095, end + 4096, i32::MAX, i32::MIN, -8, -1] {
            out_of_bounds(near.call(instance.store_mut(), address));
        }
        for address in [0, end, i32::MAX, i32::MIN, -1] {
            out_of_bounds(far.call(instance.store_mut(), address));
        }
    };
    check(&mut instance, 1);
    let state = instance.take_snapshot()?;
    assert_eq!(call(&mut instance, "grow", 10)?, 1);
    check(&mut instance, 11);
    let grown = instance.take_snapshot()?;
    instance.restore_to(&state)?;
    check(&mut instance, 1);
    instance.restore_to(&grown)?;
    check(&mut instance, 11);
    instance.restore_to(&state)?;
    check(&mut instance, 1);
    Ok(())
}

#[test]
fn bounds_are_kept_by_faults() -> Result<()> {
    check_bounds(Config::new())
}

#[test]
fn bounds_are_kept_by_checks() -> Result<()> {
    let mut config = Config::new();
    config.signals_based_traps(false);
    check_bounds(config)
}

#[test]
fn bounds_are_kept_without_room_or_guards() -> Result<()> {
    let mut config = Config::new();
    config.memory_reservation(11 << 16).memory_guard_size(0);
    check_bounds(config)
}

#[test]
fn growth_beyond_the_reservation_fails() -> Result<()> {
    let mut config = Config::new();
    config.memory_reservation(3 << 16);
    let mut instance = start(&Program::new(config, accesses("1", "i32"))?)?;
    assert_eq!(call(&mut instance, "grow", 3)?, -1);
    assert_eq!(call(&mut instance, "grow", 2)?, 1);
    assert_eq!(pages(&mut instance)?, 3);
    Ok(())
}

#[test]
fn an_empty_memory_grows_and_goes_back() -> Result<()> {
    for memory in ["0", "0 0", "0 5"] {
        let program = Program::new(Config::new(), accesses(memory, "i32"))?;
        let (mut instance, mut other) = (start(&program)?, start(&program)?);
        let near = instance.function::<i32, i64>("near")?;
        let state = instance.take_snapshot()?;
        let room = if memory == "0 0" { 0 } else { 5 };
        for _ in 0..2 {
            out_of_bounds(near.call(instance.store_mut(), 0));
            assert_eq!(call(&mut instance, "grow", room)?, 0);
            assert_eq!(near.call(instance.store_mut(), 0).is_ok(), room > 0);
            assert_eq!((pages(&mut other)?, other.memory().len()), (0, 0));
            instance.restore_to(&state)?;
            assert_eq!((pages(&mut instance)?, instance.memory().len()), (0, 0));
        }
    }
    Ok(())
}

/// The memories have no accessible bytes, but each must be found by its address.
#[test]
fn empty_memories_without_room_are_told_apart() -> Result<()> {
    let mut config = Config::new();
    config.memory_reservation(0).memory_guard_size(0);
    let program = Program::new(config, accesses("0", "i32"))?;
    let (mut one, mut other) = (start(&program)?, start(&program)?);
    let (state, empty) = (one.take_snapshot()?, other.take_snapshot()?);
    assert_eq!(call(&mut one, "grow", 1)?, 0);
    let grown = one.take_snapshot()?;
    assert_eq!([state, empty, grown].map(|state| state.memory().len()), [0, 0, PAGE]);
    assert_eq!((pages(&mut one)?, pages(&mut other)?), (1, 0));
    Ok(())
}

#[test]
fn memories_of_64_bits_go_back() -> Result<()> {
    let mut instance = start(&Program::new(Config::new(), accesses("i64 1 100", "i64"))?)?;
    let near: TypedFunc<i64, i64> = instance.function("near")?;
    let grow: TypedFunc<i64, i64> = instance.function("grow")?;
    let state = instance.take_snapshot()?;
    for _ in 0..2 {
        out_of_bounds(near.call(instance.store_mut(), 1 << 16));
        assert_eq!(grow.call(instance.store_mut(), 1)?, 1);
        assert_eq!(near.call(instance.store_mut(), 1 << 16)?, 0);
        out_of_bounds(near.call(instance.store_mut(), 1 << 40));
        instance.restore_to(&state)?;
        assert_eq!(instance.memory().len(), PAGE);
    }
    Ok(())
}

/// A module with state that could not be restored is refused.
#[test]
fn hidden_state_is_refused() -> Result<()> {
    let refused = |fields: &str, why: &str| {
        let module = format!(r#"(module {fields})"#);
        let error = Program::new(Config::new(), module).err().expect("it has hidden state");
        assert!(format!("{error:#}").contains(why), "{error:#}");
    };
    let memory = r#"(memory (export "m") 1)"#;
    refused(&format!("{memory} (global (mut i32) (i32.const 1))"), "global 0 is not exported");
    let imported = r#"(import "a" "b" (global i32)) (global (export "g") (mut i32) (i32.const 1))"#;
    refused(&format!("{imported} {memory} (global (mut i64) (i64.const 1))"), "global 2 is not exported");
    refused(
        &format!(r#"{memory} (global (export "g") (mut funcref) (ref.null func))"#),
        "global 0 is a reference",
    );
    refused(r#"(import "a" "b" (memory 1)) (export "m" (memory 0))"#, r#"imports "b" of "a""#);
    refused(&format!(r#"(import "a" "b" (global (mut i32))) {memory}"#), r#"imports "b" of "a""#);
    refused(&format!(r#"(import "a" "b" (table 1 funcref)) {memory}"#), r#"imports "b" of "a""#);
    refused("", "0 memories");
    refused(&format!("{memory} (memory 1)"), "2 memories");
    refused("(memory 1)", "memory is not exported");
    let table = "(table 1 funcref) (elem $e func)";
    for (code, name) in [
        ("(table.set (i32.const 0) (ref.null func))", "TableSet"),
        ("(drop (table.grow (ref.null func) (i32.const 1)))", "TableGrow"),
        ("(table.fill (i32.const 0) (ref.null func) (i32.const 1))", "TableFill"),
        ("(table.copy (i32.const 0) (i32.const 0) (i32.const 1))", "TableCopy"),
        ("(table.init $e (i32.const 0) (i32.const 0) (i32.const 0))", "TableInit"),
        ("(elem.drop $e)", "ElemDrop"),
    ] {
        refused(&format!("{memory} {table} (func {code})"), name);
    }
    refused(&format!(r#"{memory} (data $d "x") (func (data.drop $d))"#), "DataDrop");
    Ok(())
}

#[test]
fn memories_that_cannot_be_views_are_refused() -> Result<()> {
    let creator = Memories::default();
    let shared = creator.new_memory(MemoryType::shared(1, 2), PAGE, Some(2 * PAGE), Some(2 * PAGE), 0);
    assert!(shared.err().is_some_and(|error| error.contains("shared")));

    let mut config = Config::new();
    config.wasm_custom_page_sizes(true);
    let program = Program::new(config, r#"(module (memory (export "m") 5 (pagesize 1)))"#)?;
    let error = start(&program).err().map(|error| format!("{error:#}")).unwrap_or_default();
    assert!(error.contains("pages of 1 bytes"), "{error}");

    let mut config = Config::new();
    config.allocation_strategy(wasmtime::InstanceAllocationStrategy::pooling());
    let program = Program::new(config, KV)?;
    let error = start(&program).err().map(|error| format!("{error:#}")).unwrap_or_default();
    assert!(error.contains("on-demand"), "{error}");
    Ok(())
}

#[test]
fn states_of_another_program_are_refused() -> Result<()> {
    let (mut one, mut other) = (store()?, store()?);
    request(&mut one, 1, 100)?;
    let (before, state) = (see(&mut one)?, other.take_snapshot()?);
    let error = one.restore_to(&state).expect_err("the state belongs to another program");
    assert!(error.to_string().contains("another program"));
    assert!(see(&mut one)? == before);
    Ok(())
}

/// Uses a memory without `Program`.
#[test]
fn a_memory_shows_only_what_its_type_allows() -> Result<()> {
    let memories = Memories::default();
    let mut config = Config::new();
    memories.configure(&mut config);
    let engine = Engine::new(&config)?;
    let module = Module::new(
        &engine,
        wat::parse_str(r#"(module (memory (export "m") 2 4) (data (i32.const 0) "abc"))"#)?,
    )?;
    let mut store = Store::new(&engine, ());
    let instance = wasmtime::Instance::new(&mut store, &module, &[])?;
    let memory = instance.get_memory(&mut store, "m").expect("it is exported");
    let view = memories.find(&store, memory).expect("it is memsnap's");
    assert!(Memories::default().find(&store, memory).is_none());

    for bytes in [0, 1, PAGE, 2 * PAGE + 4096, 5 * PAGE] {
        let error = view
            .restore_to(&mut store, &memsnap::Snapshot::zeroed(bytes)?)
            .expect_err("the type does not allow this length");
        assert!(error.to_string().contains("131072..=262144"), "{error}");
        assert_eq!((memory.size(&store), &memory.data(&store)[..3]), (2, &b"abc"[..]));
    }
    view.restore_to(&mut store, &memsnap::Snapshot::from_slice(&vec![7; 3 * PAGE])?)?;
    assert_eq!((memory.size(&store), memory.data(&store)[3 * PAGE - 1]), (3, 7));
    assert_eq!(memory.grow(&mut store, 1)?, 3);
    assert!(memory.grow(&mut store, 1).is_err());

    let other = Store::new(&Engine::default(), ());
    let foreign =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| view.take_snapshot(&other).is_ok()));
    assert!(foreign.is_err(), "the memory belongs to another store");
    assert_eq!(view.stats(&store).mapped, 4 * PAGE);
    drop(store);
    drop(view);
    Ok(())
}

/// Several threads use instances of their own at the same time.
#[test]
fn threads_each_have_an_instance() -> Result<()> {
    let mut instance = store()?;
    let state = Arc::new(instance.take_snapshot()?);
    let program = instance.program().clone();
    let work = |seed: i64| -> Result<Vec<i64>> {
        let mut branch = program.branch(&Linker::new(program.engine()), (), &state)?;
        let mut answers = Vec::new();
        for round in 0..20 {
            answers.push(request(&mut branch, seed + round % 2, 50)?);
            branch.restore_to(&state)?;
        }
        Ok(answers)
    };
    let answers: Vec<Vec<i64>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|seed| scope.spawn(move || work(seed))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Result<_>>()
    })?;
    for (seed, answers) in (0..).zip(answers) {
        for (round, answer) in (0..).zip(answers) {
            assert_eq!(request(&mut instance, seed + round % 2, 50)?, answer);
            instance.restore_to(&state)?;
        }
    }
    Ok(())
}

/// Saves a state with globals of all types, and continues it in an engine that has nothing in common with the first.
#[test]
fn a_saved_state_continues_in_another_engine() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let repository = Repository::create(folder.path())?;
    let mut instance = store()?;
    request(&mut instance, 1, 500)?;
    let (before, state) = (see(&mut instance)?, instance.take_snapshot()?);
    state.save(&repository, "warm")?;
    let answers: Vec<i64> = (2..6).map(|seed| request(&mut instance, seed, 500)).collect::<Result<_>>()?;
    drop((instance, state, repository));

    let repository = Repository::open(folder.path())?;
    let program = Program::new(Config::new(), KV)?;
    let loaded = repository.load("warm").run()?;
    // SAFETY: the folder is that of this test, which does not change the files in the cache.
    let mapped = unsafe { repository.map("warm") }?;
    for saved in [loaded, mapped] {
        let state = program.state_of(&repository, &saved)?;
        let mut instance = program.branch(&Linker::new(program.engine()), (), &state)?;
        assert!(see(&mut instance)? == before);
        let again: Vec<i64> = (2..6).map(|seed| request(&mut instance, seed, 500)).collect::<Result<_>>()?;
        assert_eq!(again, answers);
        instance.restore_to(&state)?;
        assert!(see(&mut instance)? == before);
    }
    Ok(())
}

#[test]
fn a_saved_state_keeps_globals_of_all_types() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let repository = Repository::create(folder.path())?;
    let module = r#"(module
        (memory (export "memory") 1)
        (global (export "a") (mut i32) (i32.const -3))
        (global (export "b") (mut i64) (i64.const 0x7fffffffffffffff))
        (global (export "c") (mut f32) (f32.const nan:0x200001))
        (global (export "d") (mut f64) (f64.const -0.0))
        (global (export "e") (mut v128) (v128.const i64x2 -1 1))
        (func (export "change")
          (global.set 0 (i32.const 0)) (global.set 1 (i64.const 0)) (global.set 2 (f32.const 0))
          (global.set 3 (f64.const 0)) (global.set 4 (v128.const i64x2 0 0))))"#;
    let globals = |instance: &mut Instance<()>| {
        ["a", "b", "c", "d", "e"].map(|name| format!("{:?}", instance.global(name)))
    };
    let program = Program::new(Config::new(), module)?;
    let mut instance = start(&program)?;
    let before = globals(&mut instance);
    let saved = instance.take_snapshot()?.save(&repository, "globals")?;
    instance.function::<(), ()>("change")?.call(instance.store_mut(), ())?;
    assert!(globals(&mut instance).iter().zip(&before).all(|(now, before)| now != before));
    instance.restore_to(&program.state_of(&repository, &saved)?)?;
    assert_eq!(globals(&mut instance), before);

    let error = Program::new(Config::new(), KV)?.state_of(&repository, &saved).err().expect("another module");
    assert!(error.to_string().contains("is the state of another module"), "{error:?}");
    let plain = repository.save(saved.snapshot()).run()?;
    let error = program.state_of(&repository, &plain).err().expect("no attachments");
    assert!(error.to_string().contains("has no module.wasm"), "{error:?}");
    Ok(())
}
