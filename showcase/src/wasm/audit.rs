//! Finds where the state of a module's instances is, and refuses modules with state that is not exported.

use wasmtime::wasmparser::{
    Export, ExternalKind, FunctionBody, GlobalType, Operator, Parser, Payload, TypeRef, ValType,
};
use wasmtime::{Result, bail, ensure, format_err};

/// The exports that contain the state of a module's instances.
pub(crate) struct StateExports {
    /// The name of the linear memory.
    pub(crate) memory: String,
    /// A name of each mutable global.
    pub(crate) globals: Vec<String>,
}

/// Finds the exports that contain the state of this module, which must be valid.
///
/// # Errors
///
/// Fails if the module has other state: a mutable global that is not exported or is a reference, tables or segments that
/// the code changes, or imported memories, tables and mutable globals, which other instances can change too.
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
                            "the module has state outside of its instances: it imports {:?} of {:?}; define it in the module",
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
    ensure!(memories == 1, "the module has {memories} memories; a snapshot needs exactly one");

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
            "mutable global {index} is a reference, which belongs to one instance and cannot be restored in another"
        );
        name(ExternalKind::Global, index).ok_or_else(|| {
            format_err!(
                "mutable global {index} is not exported, so it could not be restored; export it (for Rust and C, pass \
                 `--export=__stack_pointer` to wasm-ld)"
            )
        })
    });
    Ok(StateExports { memory, globals: globals.collect::<Result<_>>()? })
}

/// Fails if the code has instructions that change state that is not in the exports.
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
            bail!("the code changes state that could not be restored: {operator:?}");
        }
    }
    Ok(())
}
