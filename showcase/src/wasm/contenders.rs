//! Ways to give each request the same initialised state.

use std::time::Instant;

use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, InstancePre, Linker, Module,
    PoolingAllocationConfig, Result, Store, TypedFunc, Val, bail, ensure,
};

use crate::report::Times;
use crate::wasm::{Instance, KV, Program, State};

/// A way to give each request the same state.
pub(crate) trait Contender {
    /// Serves one request, and prepares for the next.
    fn serve(&mut self, seed: i64, operations: i32) -> Result<i64>;
}

/// One instance that is rolled back after each request.
pub(crate) struct Rollback {
    pub(crate) instance: Instance<()>,
    pub(crate) state: State,
    request: TypedFunc<(i64, i32), i64>,
    /// The times of the rollbacks.
    pub(crate) rollbacks: Times,
}

impl Rollback {
    pub(crate) fn new(program: &Program, entries: i32) -> Result<Self> {
        let mut instance = program.instantiate(&Linker::new(program.engine()), ())?;
        let init = instance.function::<i32, ()>("init")?;
        init.call(instance.store_mut(), entries)?;
        let state = instance.take_snapshot()?;
        let request = instance.function("request")?;
        Ok(Self { instance, state, request, rollbacks: Times::default() })
    }

    pub(crate) fn request(&mut self, seed: i64, operations: i32) -> Result<i64> {
        self.request.call(self.instance.store_mut(), (seed, operations))
    }
}

impl Contender for Rollback {
    fn serve(&mut self, seed: i64, operations: i32) -> Result<i64> {
        let answer = self.request(seed, operations)?;
        let start = Instant::now();
        self.instance.restore_to(&self.state)?;
        self.rollbacks.extend([start.elapsed()]);
        Ok(answer)
    }
}

/// A new instance for each request.
pub(crate) struct Fresh {
    module: InstancePre<()>,
    /// The number of entries that each instance makes first, unless the module contains them.
    entries: Option<i32>,
}

impl Fresh {
    pub(crate) fn new(config: &Config, module: &[u8], entries: Option<i32>) -> Result<Self> {
        let engine = Engine::new(config)?;
        let module = Module::from_binary(&engine, &wat::parse_bytes(module)?)?;
        Ok(Self { module: Linker::new(&engine).instantiate_pre(&module)?, entries })
    }

    /// Returns whether each instance makes its entries first.
    pub(crate) fn initialises(&self) -> bool {
        self.entries.is_some()
    }
}

impl Contender for Fresh {
    fn serve(&mut self, seed: i64, operations: i32) -> Result<i64> {
        let mut store = Store::new(self.module.module().engine(), ());
        let instance = self.module.instantiate(&mut store)?;
        if let Some(entries) = self.entries {
            instance.get_typed_func::<i32, ()>(&mut store, "init")?.call(&mut store, entries)?;
        }
        let request = instance.get_typed_func::<(i64, i32), i64>(&mut store, "request")?;
        request.call(&mut store, (seed, operations))
    }
}

/// Returns a configuration with the pooling allocator, and with copy-on-write images for data segments of any size.
pub(crate) fn pooling(keep_resident: usize, scan: Enabled) -> Config {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_core_instances(8)
        .total_memories(8)
        .linear_memory_keep_resident(keep_resident)
        .pagemap_scan(scan);
    let mut config = Config::new();
    config.memory_init_cow(true).memory_guaranteed_dense_image_size(u64::MAX);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}

/// Makes a binary module of the key-value store that starts in the state of this instance, like Wizer does.
///
/// The memory is in data segments, and the globals have their current values as initial values.
pub(crate) fn initialised(instance: &mut Instance<()>) -> Result<Vec<u8>> {
    let memory = instance.memory().to_vec();
    let (Some(Val::I32(top)), Some(Val::I64(requests))) =
        (instance.global("top"), instance.global("requests"))
    else {
        bail!("the key-value store does not have the globals `top` and `requests`");
    };
    let mut module = KV.trim_end().to_owned();
    for (line, with) in [
        (r#"(export "memory") 1 "#, format!(r#"(export "memory") {} "#, memory.len() >> 16)),
        (
            r#"(export "top") (mut i32) (i32.const 1024)"#,
            format!(r#"(export "top") (mut i32) (i32.const {top})"#),
        ),
        (
            r#"(export "requests") (mut i64) (i64.const 0)"#,
            format!(r#"(export "requests") (mut i64) (i64.const {requests})"#),
        ),
    ] {
        ensure!(module.contains(line), "the text of the key-value store does not contain {line:?}");
        module = module.replacen(line, &with, 1);
    }
    let mut module = wat::parse_str(module)?;
    // The module has no section of data segments, which must be the last section. So this appends one.
    let bytes: Vec<&[u8]> = memory.chunks(1 << 16).collect();
    let mut section = Vec::new();
    leb128(&mut section, bytes.len());
    for (page, bytes) in bytes.iter().enumerate() {
        // An active segment of memory 0, at the address that `i32.const` gives.
        section.extend([0, 0x41]);
        signed_leb128(&mut section, page << 16);
        section.push(0x0b);
        leb128(&mut section, bytes.len());
        section.extend(*bytes);
    }
    module.push(11);
    leb128(&mut module, section.len());
    module.extend(section);
    Ok(module)
}

/// Appends an unsigned number in LEB128.
fn leb128(bytes: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        bytes.push(0x80 | (number & 0x7f).to_le_bytes()[0]);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

/// Appends a signed number in LEB128, in which bit 6 of the last byte is the sign.
fn signed_leb128(bytes: &mut Vec<u8>, mut number: usize) {
    while number >= 0x40 {
        bytes.push(0x80 | (number & 0x7f).to_le_bytes()[0]);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}
