//! States of instances in a repository: the memory as a snapshot, the globals and the module as attachments.

use std::collections::BTreeMap;

use memsnap_store::{Repository, Saved};
use serde::{Deserialize, Serialize};
use wasmtime::error::Context as _;
use wasmtime::{Result, Val, bail, ensure, format_err};

use crate::wasm::{Program, State};

/// The attachment that has the values of the globals, as JSON.
const GLOBALS: &str = "globals.json";
/// The attachment that has the module that the state belongs to.
const MODULE: &str = "module.wasm";

/// The value of a global. Floating-point numbers are their bits, so that every NaN is kept.
#[derive(Serialize, Deserialize)]
enum Value {
    I32(i32),
    I64(i64),
    F32(u32),
    F64(u64),
    V128(u128),
}

impl State {
    /// Saves the state in a repository, under a name.
    ///
    /// # Errors
    ///
    /// Returns the errors of the store.
    pub fn save(&self, repository: &Repository, name: &str) -> Result<Saved> {
        let globals = self.program().globals().iter().zip(self.globals());
        let globals: BTreeMap<&str, Value> =
            globals.map(|(name, value)| Ok((name.as_str(), encode(value)?))).collect::<Result<_>>()?;
        let globals = serde_json::to_vec(&globals).context("writing the globals as JSON")?;
        let save = repository.save(self.memory()).name(name);
        let save = save.attach(GLOBALS, globals).attach(MODULE, self.program().wasm());
        save.run().context("saving the state of an instance")
    }
}

impl Program {
    /// Returns the state of this program that `saved` has. Another process may have saved it.
    ///
    /// # Errors
    ///
    /// Fails if the snapshot is not a state of this program, and returns the errors of the store.
    pub fn state_of(&self, repository: &Repository, saved: &Saved) -> Result<State> {
        let mut manifest = repository.manifest(saved).context("reading the manifest of a state")?;
        let id = manifest.id.short();
        let mut attachment = |name: &str| {
            let bytes = manifest.attachments.remove(name);
            bytes.ok_or_else(|| format_err!("{id} is not the state of an instance: it has no {name}"))
        };
        ensure!(attachment(MODULE)? == self.wasm(), "{id} is the state of another module");
        let globals: BTreeMap<String, Value> = serde_json::from_slice(&attachment(GLOBALS)?)
            .with_context(|| format!("the attachment {GLOBALS} of {id} does not have values of globals"))?;
        let values = self.globals().iter().map(|name| {
            let value = globals.get(name);
            value.map(decode).ok_or_else(|| format_err!("{id} has no value of the global {name:?}"))
        });
        Ok(State::new(self, saved.snapshot().clone(), values.collect::<Result<_>>()?))
    }
}

fn encode(value: &Val) -> Result<Value> {
    Ok(match value {
        Val::I32(value) => Value::I32(*value),
        Val::I64(value) => Value::I64(*value),
        Val::F32(bits) => Value::F32(*bits),
        Val::F64(bits) => Value::F64(*bits),
        Val::V128(value) => Value::V128(value.as_u128()),
        other => bail!("a global is {other:?}, which cannot be saved"),
    })
}

fn decode(value: &Value) -> Val {
    match *value {
        Value::I32(value) => Val::I32(value),
        Value::I64(value) => Val::I64(value),
        Value::F32(bits) => Val::F32(bits),
        Value::F64(bits) => Val::F64(bits),
        Value::V128(value) => Val::V128(value.into()),
    }
}
