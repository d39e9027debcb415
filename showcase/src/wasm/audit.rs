//! Whether all state of a module's instances can be seen from outside.

use wasmtime::wasmparser::{
    Export, ExternalKind, FunctionBody, GlobalType, Operator, Parser, Payload, TypeRef, ValType,
};
use wasmtime::{Result, bail, ensure, format_err};

/// Where the state of a module's instances is.
pub(crate) struct StateExports {
    /// The export that is the linear memory.
    pub(crate) memory: String,
    /// For each mutable global, an export that it is.
    pub(crate) globals: Vec<String>,
}

/// Finds the exports that are the state of this module, which must be valid.
///
/// # Errors
///
/// Where there is other state: a mutable global that is not exported, or is a reference; tables and segments, if the
/// code changes them; imported memories, tables and mutable globals, which others can change as well.
pub(crate) fn state_exports(wasm: &[u8]) -> Result<StateExports> {
    let mut globals: Vec<GlobalType> = Vec::new();
    let mut exports: Vec<Export<'_>> = Vec::new();
    let mut memories = 0;
    for payload in Parser::new(0).parse_all(wasm) {
        match payload? {
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import?;
                    match import.ty {
                        TypeRef::Global(global) if !global.mutable => globals.push(global),
                        TypeRef::Global(_) | TypeRef::Memory(_) | TypeRef::Table(_) => bail!(
                            "state outside of the instance: it imports {:?} of {:?}; define it in the module",
                            import.name,
                            import.module
                        ),
                        _ => {}
                    }
                }
            }
            Payload::MemorySection(section) => memories = section.count(),
            Payload::GlobalSection(section) => {
                for global in section {
                    globals.push(global?.ty);
                }
            }
            Payload::ExportSection(section) => exports = section.into_iter().collect::<Result<_, _>>()?,
            Payload::CodeSectionEntry(body) => no_hidden_changes(&body)?,
            _ => {}
        }
    }
    ensure!(memories == 1, "a module with {memories} memories; one is what can be snapshotted");

    let name = |kind, index| {
        let export = exports.iter().find(|export| export.kind == kind && export.index == index);
        export.map(|export| export.name.to_owned())
    };
    let memory = name(ExternalKind::Memory, 0);
    let memory = memory.ok_or_else(|| format_err!("the module's memory is not exported; export it"))?;
    let mutable = (0..).zip(&globals).filter(|(_, global)| global.mutable);
    let globals = mutable.map(|(index, global)| {
        ensure!(
            !matches!(global.content_type, ValType::Ref(_)),
            "mutable global {index} is a reference, which belongs to one instance and cannot be put back in another"
        );
        name(ExternalKind::Global, index).ok_or_else(|| {
            format_err!(
                "mutable global {index} is not exported, so a restore could not put it back; export it (for Rust and \
                 C, tell wasm-ld `--export=__stack_pointer`)"
            )
        })
    });
    Ok(StateExports { memory, globals: globals.collect::<Result<_>>()? })
}

/// Refuses instructions that change state which no export shows in full.
fn no_hidden_changes(body: &FunctionBody<'_>) -> Result<()> {
    for operator in body.get_operators_reader()? {
        let operator = operator?;
        if let Operator::TableSet { .. }
        | Operator::TableGrow { .. }
        | Operator::TableFill { .. }
        | Operator::TableCopy { .. }
        | Operator::TableInit { .. }
        | Operator::ElemDrop { .. }
        | Operator::DataDrop { .. } = operator
        {
            bail!("the code changes state that a restore could not put back: {operator:?}");
        }
    }
    Ok(())
}
