//! Instances that go back: their memory and their globals.

use std::sync::Arc;

use memsnap::{Snapshot, ViewStats};
use wasmtime::error::Context as _;
use wasmtime::{Config, Engine, Global, Linker, Module, Result, Store, Val, ensure, format_err};

use crate::wasm::audit::{self, StateExports};
use crate::wasm::memory::{Memories, MemoryView};

/// A module of which all state can be snapshotted: one exported memory, exported mutable globals, and nothing else
/// that its code changes.
///
/// What cannot be seen is what the host has: the `T` of its [`Store`], fuel, what imported functions did, tables
/// that the host writes to.
///
/// # Examples
///
/// ```
/// use memsnap_showcase::wasm::Program;
/// use wasmtime::{Config, Linker};
///
/// # fn main() -> wasmtime::Result<()> {
/// let program = Program::new(
///     Config::new(),
///     r#"(module
///          (memory (export "memory") 1 10)
///          (global $calls (export "calls") (mut i32) (i32.const 0))
///          (func (export "call") (result i32)
///            (drop (memory.grow (i32.const 1)))
///            (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
///            (i32.mul (memory.size) (global.get $calls))))"#,
/// )?;
/// let mut instance = program.instantiate(&Linker::new(program.engine()), ())?;
/// let call = instance.function::<(), i32>("call")?;
/// assert_eq!(call.call(instance.store_mut(), ())?, 2);
///
/// let state = instance.take_snapshot()?;
/// assert_eq!(call.call(instance.store_mut(), ())?, 3 * 2);
/// assert_eq!(call.call(instance.store_mut(), ())?, 4 * 3);
/// instance.restore_to(&state)?;
/// assert_eq!(call.call(instance.store_mut(), ())?, 3 * 2);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Program(Arc<Inner>);

struct Inner {
    module: Module,
    memories: Memories,
    state: StateExports,
}

impl Program {
    /// Compiles a module, in its binary or its text format, for an engine with this configuration and memsnap's memory.
    ///
    /// # Errors
    ///
    /// Those of Wasmtime for a module that is not valid; a module with state that a restore could not put back.
    pub fn new(mut config: Config, wasm: impl AsRef<[u8]>) -> Result<Self> {
        let memories = Memories::default();
        memories.configure(&mut config);
        let wasm = wat::parse_bytes(wasm.as_ref())?;
        let module = Module::from_binary(&Engine::new(&config)?, &wasm)?;
        let state = audit::state_exports(&wasm).context("the module cannot be rolled back")?;
        Ok(Self(Arc::new(Inner { module, memories, state })))
    }

    /// The engine that the module is compiled for.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        self.0.module.engine()
    }

    /// A new instance with a store of its own.
    ///
    /// # Errors
    ///
    /// Those of Wasmtime: missing imports, a trap of the start function, no memory; the pooling allocator, which takes
    /// no memory from elsewhere.
    ///
    /// # Panics
    ///
    /// As all of Wasmtime, if the linker is of another engine.
    pub fn instantiate<T: 'static>(&self, linker: &Linker<T>, data: T) -> Result<Instance<T>> {
        let Inner { module, memories, state } = &*self.0;
        let mut store = Store::new(module.engine(), data);
        let instance = linker.instantiate(&mut store, module)?;
        let memory = instance.get_memory(&mut store, &state.memory);
        let memory = memory.and_then(|memory| memories.find(&store, memory)).ok_or_else(|| {
            format_err!("the instance's memory is not memsnap's; use the on-demand allocation strategy")
        })?;
        let globals = state.globals.iter().map(|name| {
            instance
                .get_global(&mut store, name)
                .ok_or_else(|| format_err!("the instance has no global {name:?}"))
        });
        let globals = globals.collect::<Result<_>>()?;
        Ok(Instance { program: self.clone(), store, instance, memory, globals })
    }

    /// A new instance with a store of its own that goes on from this state.
    ///
    /// Data segments are written and the start function runs as for any instance, and then the state takes the place of
    /// what they did. What the start function does to the host stays.
    ///
    /// # Errors
    ///
    /// Those of [`instantiate`](Self::instantiate) and of [`Instance::restore_to`].
    ///
    /// # Panics
    ///
    /// As [`instantiate`](Self::instantiate).
    pub fn branch<T: 'static>(&self, linker: &Linker<T>, data: T, state: &State) -> Result<Instance<T>> {
        let mut instance = self.instantiate(linker, data)?;
        instance.restore_to(state)?;
        Ok(instance)
    }
}

/// The state of an instance between two calls: its memory and its mutable globals. Immutable; clones share all memory.
#[derive(Clone)]
pub struct State {
    program: Program,
    memory: Snapshot,
    globals: Vec<Val>,
}

impl State {
    /// The memory.
    #[must_use]
    pub fn memory(&self) -> &Snapshot {
        &self.memory
    }
}

/// An instance, with its store, whose state can be snapshotted and put back between calls. See [`Program`].
pub struct Instance<T: 'static> {
    program: Program,
    store: Store<T>,
    instance: wasmtime::Instance,
    memory: MemoryView,
    globals: Vec<Global>,
}

impl<T: 'static> Instance<T> {
    /// The state as it is now. Costs what changed since the last snapshot taken or restored.
    ///
    /// Also after a trap: then it is what the call had done until then.
    ///
    /// # Errors
    ///
    /// Those of [`MemoryView::take_snapshot`].
    pub fn take_snapshot(&mut self) -> Result<State> {
        let memory = self.memory.take_snapshot(&self.store)?;
        let globals = self.globals.iter().map(|global| global.get(&mut self.store)).collect();
        Ok(State { program: self.program.clone(), memory, globals })
    }

    /// Goes back, or over, to a state of this program: taken of this instance or another. Costs what changed and what
    /// differs.
    ///
    /// # Errors
    ///
    /// A state of another program, which changes nothing; those of [`MemoryView::restore_to`], after which the instance
    /// can be restored again.
    pub fn restore_to(&mut self, state: &State) -> Result<()> {
        ensure!(
            Arc::ptr_eq(&self.program.0, &state.program.0),
            "an instance cannot be restored to the state of another program"
        );
        self.memory.restore_to(&mut self.store, &state.memory)?;
        for (global, value) in self.globals.iter().zip(&state.globals) {
            global.set(&mut self.store, *value)?;
        }
        Ok(())
    }

    /// An exported function, to be called with [`store_mut`](Self::store_mut).
    ///
    /// # Errors
    ///
    /// Those of Wasmtime, if there is no function of this name and type.
    pub fn function<P, R>(&mut self, name: &str) -> Result<wasmtime::TypedFunc<P, R>>
    where
        P: wasmtime::WasmParams,
        R: wasmtime::WasmResults,
    {
        self.instance.get_typed_func(&mut self.store, name)
    }

    /// The value of an exported global.
    #[must_use]
    pub fn global(&mut self, name: &str) -> Option<Val> {
        Some(self.instance.get_global(&mut self.store, name)?.get(&mut self.store))
    }

    /// The bytes of the memory.
    #[must_use]
    pub fn memory(&self) -> &[u8] {
        self.memory.bytes(&self.store)
    }

    /// What the view holds that the memory is.
    #[must_use]
    pub fn stats(&self) -> ViewStats {
        self.memory.stats(&self.store)
    }

    /// What it is an instance of.
    #[must_use]
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The store, for calls and for the host's data.
    pub fn store_mut(&mut self) -> &mut Store<T> {
        &mut self.store
    }
}
