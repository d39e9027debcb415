//! Instances whose state can be saved and restored: their memory and their globals.

use std::sync::Arc;

use memsnap::{Snapshot, ViewStats};
use wasmtime::error::Context as _;
use wasmtime::{Config, Engine, Global, Linker, Module, Result, Store, Val, ensure, format_err};

use crate::wasm::audit::{self, StateExports};
use crate::wasm::memory::{Memories, MemoryView};

/// A compiled module. All state of its instances can be saved and restored.
///
/// The state is one exported memory and exported mutable globals. The code of the module changes nothing else. State of
/// the host is not included: the `T` of its [`Store`], fuel, effects of imported functions, and tables that the host
/// writes to.
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
    /// The binary module.
    wasm: Vec<u8>,
}

impl Program {
    /// Compiles a module in binary or text format. Its engine has this configuration, and memories that are views.
    ///
    /// # Errors
    ///
    /// Returns errors of Wasmtime if the module is not valid, and an error if it has state that could not be restored.
    pub fn new(mut config: Config, wasm: impl AsRef<[u8]>) -> Result<Self> {
        let memories = Memories::default();
        memories.configure(&mut config);
        let wasm = wat::parse_bytes(wasm.as_ref())?.into_owned();
        let module = Module::from_binary(&Engine::new(&config)?, &wasm)?;
        let state = audit::state_exports(&wasm).context("instances of this module cannot be restored")?;
        Ok(Self(Arc::new(Inner { module, memories, state, wasm })))
    }

    /// Returns the engine that the module is compiled for.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        self.0.module.engine()
    }

    /// Returns the binary module.
    pub(super) fn wasm(&self) -> &[u8] {
        &self.0.wasm
    }

    /// Returns the names of the exported globals that are part of the state.
    pub(super) fn globals(&self) -> &[String] {
        &self.0.state.globals
    }

    /// Makes a new instance with a store of its own.
    ///
    /// # Errors
    ///
    /// Returns errors of Wasmtime: missing imports, a trap of the start function, or not enough memory. Also fails with
    /// the pooling allocator, which does not use memory of the host.
    ///
    /// # Panics
    ///
    /// Panics if the linker belongs to another engine, like all of Wasmtime.
    pub fn instantiate<T: 'static>(&self, linker: &Linker<T>, data: T) -> Result<Instance<T>> {
        let Inner { module, memories, state, .. } = &*self.0;
        let mut store = Store::new(module.engine(), data);
        let instance = linker.instantiate(&mut store, module)?;
        let memory = instance.get_memory(&mut store, &state.memory);
        let memory = memory.and_then(|memory| memories.find(&store, memory)).ok_or_else(|| {
            format_err!("the memory of the instance is not a view; use the on-demand allocation strategy")
        })?;
        let globals = state.globals.iter().map(|name| {
            instance
                .get_global(&mut store, name)
                .ok_or_else(|| format_err!("the instance has no global {name:?}"))
        });
        let globals = globals.collect::<Result<_>>()?;
        Ok(Instance { program: self.clone(), store, instance, memory, globals })
    }

    /// Makes a new instance with a store of its own that continues from this state.
    ///
    /// Wasmtime writes data segments and runs the start function, as for any instance. Then the state replaces their
    /// results. Effects of the start function on the host remain.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`instantiate`](Self::instantiate) and of [`Instance::restore_to`].
    ///
    /// # Panics
    ///
    /// Panics in the same cases as [`instantiate`](Self::instantiate).
    pub fn branch<T: 'static>(&self, linker: &Linker<T>, data: T, state: &State) -> Result<Instance<T>> {
        let mut instance = self.instantiate(linker, data)?;
        instance.restore_to(state)?;
        Ok(instance)
    }
}

/// The state of an instance between two calls: its memory and its mutable globals.
///
/// A state never changes. Clones share all of its memory.
#[derive(Clone)]
pub struct State {
    program: Program,
    memory: Snapshot,
    globals: Vec<Val>,
}

impl State {
    /// Makes a state of this program from a snapshot of its memory and the values of its globals, in their order.
    pub(super) fn new(program: &Program, memory: Snapshot, globals: Vec<Val>) -> Self {
        Self { program: program.clone(), memory, globals }
    }

    /// Returns the program.
    pub(super) fn program(&self) -> &Program {
        &self.program
    }

    /// Returns the values of the globals.
    pub(super) fn globals(&self) -> &[Val] {
        &self.globals
    }

    /// Returns the snapshot of the memory.
    #[must_use]
    pub fn memory(&self) -> &Snapshot {
        &self.memory
    }
}

/// An instance with its store. Its state can be saved and restored between calls. See [`Program`].
pub struct Instance<T: 'static> {
    program: Program,
    store: Store<T>,
    instance: wasmtime::Instance,
    memory: MemoryView,
    globals: Vec<Global>,
}

impl<T: 'static> Instance<T> {
    /// Takes a snapshot of the current state.
    ///
    /// The cost depends on what changed since the last snapshot or restore. After a trap, the state includes everything
    /// that the call did before the trap.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`MemoryView::take_snapshot`].
    pub fn take_snapshot(&mut self) -> Result<State> {
        let memory = self.memory.take_snapshot(&self.store)?;
        let globals = self.globals.iter().map(|global| global.get(&mut self.store)).collect();
        Ok(State { program: self.program.clone(), memory, globals })
    }

    /// Restores a state of this program, which can be a state of another instance.
    ///
    /// The cost depends on what changed since the last snapshot or restore, and on what differs between the states.
    ///
    /// # Errors
    ///
    /// Fails if the state belongs to another program. The instance has not changed then. Also returns the errors of
    /// [`MemoryView::restore_to`]. The instance can be restored again after these.
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

    /// Returns an exported function. Call it with [`store_mut`](Self::store_mut).
    ///
    /// # Errors
    ///
    /// Returns an error of Wasmtime if there is no function of this name and type.
    pub fn function<P, R>(&mut self, name: &str) -> Result<wasmtime::TypedFunc<P, R>>
    where
        P: wasmtime::WasmParams,
        R: wasmtime::WasmResults,
    {
        self.instance.get_typed_func(&mut self.store, name)
    }

    /// Returns the value of an exported global.
    #[must_use]
    pub fn global(&mut self, name: &str) -> Option<Val> {
        Some(self.instance.get_global(&mut self.store, name)?.get(&mut self.store))
    }

    /// Borrows the bytes of the memory.
    #[must_use]
    pub fn memory(&self) -> &[u8] {
        self.memory.bytes(&self.store)
    }

    /// Returns statistics of the view that is the memory.
    #[must_use]
    pub fn stats(&self) -> ViewStats {
        self.memory.stats(&self.store)
    }

    /// Returns the program of this instance.
    #[must_use]
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Borrows the store, for calls and for the host's data.
    pub fn store_mut(&mut self) -> &mut Store<T> {
        &mut self.store
    }
}
