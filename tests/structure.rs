//! The structure of the source: no two modules use each other, folders use only the folders below them, files
//! and functions are short, and documents name files and items that exist.
//!
//! A module uses another one if it names a path that starts with `crate::` or `super::`. The declarations and
//! re-exports in a `mod.rs` do not count, nor does code that is compiled for tests only.
#![cfg(unix)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::Span;
use quote::ToTokens;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// Folders of `src/`, from the top down. A folder may use the folders after it.
const FOLDERS: [&str; 6] = ["interop", "view", "snapshot", "engine", "image", "sys"];

/// The folders with code that the rules for all files concern.
const FOLDERS_OF_CODE: [&str; 10] =
    ["src", "tests", "examples", "bench", "cli", "compare", "heap", "showcase", "store", "fuzz/fuzz_targets"];

const MOST_LINES_OF_A_FILE: usize = 600;
const MOST_LINES_OF_A_FUNCTION: usize = 80;

/// The modules that each module uses.
type Uses = BTreeMap<String, BTreeSet<String>>;

#[test]
fn no_two_modules_use_each_other() {
    let ring = ring(&uses());
    assert!(ring.is_empty(), "these modules of src/ use each other in a ring, or are used by one: {ring:#?}");
}

#[test]
fn folders_use_only_the_folders_below() {
    let level = |module: &str| FOLDERS.iter().position(|folder| module.split("::").next() == Some(folder));
    for (user, used) in uses() {
        for used in used {
            if let (Some(above), Some(below)) = (level(&user), level(&used)) {
                assert!(above <= below, "{user} uses {used}, which is in a folder above");
            }
        }
    }
}

#[test]
fn files_and_functions_are_short() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut long = Vec::new();
    for folder in FOLDERS_OF_CODE {
        for path in rust_files(&root.join(folder)) {
            let (name, text) =
                (path.strip_prefix(root).unwrap().display(), fs::read_to_string(&path).unwrap());
            let lines = text.lines().count();
            if lines > MOST_LINES_OF_A_FILE {
                long.push(format!("{name}: {lines} lines"));
            }
            let mut functions = Functions(Vec::new());
            functions.visit_file(&syn::parse_file(&text).unwrap());
            for (function, lines) in functions.0 {
                if lines > MOST_LINES_OF_A_FUNCTION {
                    long.push(format!("{name}: {lines} lines in {function}"));
                }
            }
        }
    }
    assert!(long.is_empty(), "too long: {long:#?}");
}

/// Checks the file names (`state.rs`) and the paths of items (`Image::capture`) in the documents.
#[test]
fn documents_name_what_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = FOLDERS_OF_CODE;
    let files: Vec<PathBuf> = folders.iter().flat_map(|folder| rust_files(&root.join(folder))).collect();
    let text: String = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let is_part_of_name = |character: char| character.is_alphanumeric() || character == '_';
    let words: BTreeSet<&str> = text.split(|character| !is_part_of_name(character)).collect();
    let mut missing = Vec::new();
    for document in ["README.md", "DESIGN.md", "PLATFORM.md", "CONTRIBUTING.md", "bench/README.md"] {
        let text = fs::read_to_string(root.join(document)).unwrap();
        // Every other part is between backticks, or in a block of code.
        for span in text.split('`').skip(1).step_by(2) {
            let is_file = span.ends_with(".rs") && !span.contains(char::is_whitespace);
            let names: Vec<_> = span.trim_end_matches("()").split("::").collect();
            let is_item = names.len() > 1
                && names.iter().all(|name| !name.is_empty() && name.chars().all(is_part_of_name));
            if is_file && !files.iter().any(|path| path.ends_with(span))
                || is_item && !names.iter().all(|name| words.contains(name))
            {
                missing.push(format!("{document}: {span}"));
            }
        }
    }
    assert!(missing.is_empty(), "these do not exist: {missing:#?}");
}

#[test]
fn rings_are_found() {
    let uses = |pairs: &[(&str, &str)]| {
        let mut uses = Uses::new();
        for (user, used) in pairs {
            uses.entry((*user).into()).or_default().insert((*used).into());
        }
        uses
    };
    assert!(ring(&uses(&[("a", "b"), ("b", "c"), ("a", "c")])).is_empty());
    let ring = ring(&uses(&[("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")]));
    assert_eq!(ring.into_keys().collect::<Vec<_>>(), ["b", "c"]);
}

/// Returns the modules of all rings, and the modules on the paths between two rings.
fn ring(uses: &Uses) -> Uses {
    let mut uses = uses.clone();
    loop {
        // A module that uses no other, or that no other uses, is in no ring.
        let used: BTreeSet<_> = uses.values().flatten().cloned().collect();
        let users: BTreeSet<_> = uses.keys().cloned().collect();
        let before = (uses.len(), uses.values().map(BTreeSet::len).sum::<usize>());
        uses.values_mut().for_each(|of| of.retain(|module| users.contains(module)));
        uses.retain(|user, of| !of.is_empty() && used.contains(user));
        if before == (uses.len(), uses.values().map(BTreeSet::len).sum()) {
            return uses;
        }
    }
}

fn uses() -> Uses {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = BTreeMap::new();
    for path in rust_files(&root) {
        let text = fs::read_to_string(&path).unwrap();
        files.insert(module_name(path.strip_prefix(&root).unwrap()), syn::parse_file(&text).unwrap());
    }
    // Files that are declared for tests only, and those below them.
    let tests: Vec<String> = files
        .iter()
        .flat_map(|(parent, file)| file.items.iter().map(move |item| (parent, item)))
        .filter_map(|(parent, item)| match item {
            syn::Item::Mod(module) if is_for_tests(&module.attrs) => {
                Some(child(parent, &module.ident.to_string()))
            }
            _ => None,
        })
        .collect();
    files.retain(|module, _| {
        !tests.iter().any(|test| module == test || module.starts_with(&format!("{test}::")))
    });
    // `crate::View` means the module that the root re-exports it from.
    let exported = exported(&files["lib"]);
    let names: BTreeSet<String> = files.keys().cloned().collect();
    let mut uses = Uses::new();
    for (module, file) in files.iter().filter(|(module, _)| *module != "lib") {
        let mut paths = Paths::default();
        paths.visit_file(file);
        let used = paths.found.into_iter().filter_map(|path| {
            let mut path = absolute(module, path)?;
            if let Some(origin) = path.first().and_then(|name| exported.get(name)) {
                path.splice(..1, origin.iter().cloned());
            }
            let modules = (1..=path.len()).rev().map(|len| path[..len].join("::"));
            modules.into_iter().find(|name| names.contains(name))
        });
        uses.insert(module.clone(), used.filter(|used| used != module).collect());
    }
    assert!(uses.values().map(BTreeSet::len).sum::<usize>() > 100, "few uses were found: {uses:#?}");
    uses
}

/// Returns `path` from the root of the crate, without `crate`, or `None` if it is not of this crate.
fn absolute(module: &str, path: Vec<String>) -> Option<Vec<String>> {
    let mut segments = path.into_iter().peekable();
    let mut from: Vec<String> = match segments.next()?.as_str() {
        "crate" => Vec::new(),
        "super" => module.split("::").map(String::from).collect(),
        _ => return None,
    };
    from.pop();
    while segments.next_if(|segment| segment == "super").is_some() {
        from.pop();
    }
    from.extend(segments);
    Some(from)
}

/// Returns the names that the root re-exports, each with the path that it comes from.
fn exported(root: &syn::File) -> BTreeMap<String, Vec<String>> {
    let mut paths = Paths::default();
    for item in &root.items {
        if let syn::Item::Use(item) = item {
            paths.visit_item_use(item);
        }
    }
    let named = paths.found.into_iter().filter_map(|path| Some((path.last()?.clone(), path)));
    named.filter(|(name, path)| path.len() > 1 || path[0] != *name).collect()
}

/// The paths that code names, except code for tests.
#[derive(Default)]
struct Paths {
    found: Vec<Vec<String>>,
    /// The number of modules around the code, within its file.
    depth: usize,
}

impl Paths {
    fn add(&mut self, path: Vec<String>) {
        let supers = path.iter().take_while(|segment| *segment == "super").count();
        let inside = supers.min(self.depth);
        if inside == 0 || supers > inside {
            self.found.push(path[inside..].to_vec());
        }
    }

    fn add_tree(&mut self, mut path: Vec<String>, tree: &syn::UseTree) {
        match tree {
            syn::UseTree::Path(segment) => {
                path.push(segment.ident.to_string());
                self.add_tree(path, &segment.tree);
            }
            syn::UseTree::Name(name) => {
                if name.ident != "self" {
                    path.push(name.ident.to_string());
                }
                self.add(path);
            }
            syn::UseTree::Rename(name) => {
                path.push(name.ident.to_string());
                self.add(path);
            }
            syn::UseTree::Glob(_) => self.add(path),
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.add_tree(path.clone(), tree));
            }
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes = match item {
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_for_tests(attributes) {
            let is_module = usize::from(matches!(item, syn::Item::Mod(_)));
            self.depth += is_module;
            visit::visit_item(self, item);
            self.depth -= is_module;
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !is_for_tests(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_tree(Vec::new(), &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.add(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }
}

/// The functions of a file, with their numbers of lines.
struct Functions(Vec<(String, usize)>);

impl Functions {
    fn add(&mut self, signature: &syn::Signature, all: Span) {
        let lines = all.end().line + 1 - signature.span().start().line;
        self.0.push((signature.ident.to_string(), lines));
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.add(&function.sig, function.span());
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.add(&function.sig, function.span());
        visit::visit_impl_item_fn(self, function);
    }
}

/// Returns whether an attribute is `cfg(test)`, or `cfg(all(test, ...))`.
fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let condition = attribute.meta.to_token_stream().to_string().replace(' ', "");
        condition == "cfg(test)" || condition.starts_with("cfg(all(test,")
    })
}

/// Returns the name of the module in a file of `src/`.
fn module_name(path: &Path) -> String {
    let names: Vec<_> =
        path.with_extension("").iter().map(|name| name.to_str().unwrap().to_owned()).collect();
    match names.split_last() {
        Some((last, folders)) if last == "mod" => folders.join("::"),
        _ => names.join("::"),
    }
}

fn child(parent: &str, name: &str) -> String {
    if parent == "lib" { name.to_owned() } else { format!("{parent}::{name}") }
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
