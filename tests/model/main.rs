//! Long random sequences of every operation, over a tree of snapshots and several views, against
//! plain byte vectors.
//!
//! `PROPTEST_CASES=1000000 cargo test --release --test model` runs it for longer.

#[path = "../common/mod.rs"]
mod common;
mod ops;
mod seeds;
mod system;
mod views;

use std::io::{ErrorKind, Write};
use std::mem;
use std::ops::Range;
use std::panic::{catch_unwind, resume_unwind};
use std::sync::Arc;

use common::assert_same;
use memsnap::{Access, Changes, Snapshot, Tracking, View, page_size};
use ops::{End, MutOp, Op, Options, Part, Span, Unprotect, content_len};
use proptest::prelude::*;
pub(crate) use seeds::Script;
use views::{AnyView, Logging, Step, step};

/// What a snapshot holds: whole pages, of which so many bytes are content.
#[derive(Clone)]
struct Memory {
    bytes: Vec<u8>,
    content_len: usize,
}

/// A snapshot and what it holds.
struct ModelSnapshot {
    real: Arc<Snapshot>,
    memory: Memory,
}

/// A view and what is known of it.
struct ModelView {
    real: AnyView<Arc<Snapshot>>,
    model: ViewModel,
}

/// What a view shows, what it was opened on, what it last agreed with, and the bytes to which it may grow.
struct ViewModel {
    shows: Memory,
    root: Memory,
    synced: Vec<u8>,
    most: usize,
}

struct Model {
    content_len: usize,
    snapshots: Vec<ModelSnapshot>,
    views: Vec<ModelView>,
}

impl Memory {
    fn new(mut bytes: Vec<u8>) -> Self {
        let content_len = bytes.len();
        bytes.resize(content_len.next_multiple_of(page_size()), 0);
        Self { bytes, content_len }
    }
}

fn pattern(len: usize, value: u8) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (i, piece) in bytes.chunks_mut(page_size() / 8).enumerate() {
        // The third one has holes, as far as there is room for any.
        if value != 3 || i / 8 % 3 == 0 {
            piece.fill(i.to_le_bytes()[0].wrapping_mul(value));
        }
    }
    bytes
}

/// The ranges of whole pages in which two slices differ, all of what only one has among them.
fn differing(left: &[u8], right: &[u8]) -> Vec<Range<usize>> {
    let page = page_size();
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for i in 0..left.len().max(right.len()) / page {
        let page_of = |bytes: &[u8]| bytes.get(i * page..(i + 1) * page).map(<[u8]>::to_vec);
        if page_of(left) != page_of(right) {
            match ranges.last_mut() {
                Some(last) if last.end == i * page => last.end += page,
                _ => ranges.push(i * page..(i + 1) * page),
            }
        }
    }
    ranges
}

/// Checks ranges and bytes.
fn assert_changes(changes: Changes<'_>, old: &[u8], new: &[u8]) {
    assert_eq!(changes.ranges(), differing(old, new));
    for change in changes {
        let mut offset = change.range().start;
        for page in change.pages() {
            assert_eq!(page.offset, offset);
            let end = offset + page_size();
            assert_same("changed from", page.old, old.get(offset..end).unwrap_or(&[]));
            assert_same("changed to", page.new, new.get(offset..end).unwrap_or(&[]));
            offset = end;
        }
        assert_eq!(offset, change.range().end);
    }
}

impl ViewModel {
    fn of(memory: &Memory, options: Options) -> Self {
        let most = options.reserve.next_multiple_of(page_size()).max(memory.bytes.len());
        Self { shows: memory.clone(), root: memory.clone(), synced: memory.bytes.clone(), most }
    }

    fn restored_to(&mut self, memory: &Memory) {
        self.shows = memory.clone();
        self.synced.clone_from(&memory.bytes);
    }

    fn check<S>(&self, what: &str, view: &AnyView<S>) {
        assert_same(what, view, &self.shows.bytes);
        assert_same(what, view.content(), &self.shows.bytes[..self.shows.content_len]);
    }

    fn run<S>(&mut self, mut view: AnyView<S>, part: Part, snapshots: &mut Vec<ModelSnapshot>) -> AnyView<S> {
        let len = self.shows.bytes.len();
        match part {
            Part::Grow(more) => {
                let wanted = self.shows.content_len + more;
                let grown = view.grow(wanted);
                if wanted.next_multiple_of(page_size()) > self.most {
                    assert_eq!(grown.unwrap_err().kind(), ErrorKind::InvalidInput);
                } else {
                    grown.unwrap();
                    self.shows.content_len = wanted;
                    self.shows.bytes.resize(wanted.next_multiple_of(page_size()), 0);
                }
                assert_eq!(view.len(), self.shows.bytes.len());
            }
            Part::Zero(span) => {
                let range = span.of(len);
                view.zero(range.clone()).unwrap();
                self.shows.bytes[range].fill(0);
            }
            Part::Discard(span) => {
                let range = span.of(len);
                view.discard(range.clone()).unwrap();
                let known = range.start.min(self.synced.len())..range.end.min(self.synced.len());
                self.shows.bytes[range].fill(0);
                self.shows.bytes[known.clone()].copy_from_slice(&self.synced[known]);
            }
            Part::Purge(span) => {
                // The log does not learn which pages other code discards.
                let AnyView::Open(open) = &mut view else { return view };
                system::purge(open, span.of(len));
                // What was below the private pages depends on how the view was mapped.
                self.shows.bytes.copy_from_slice(&view);
            }
            Part::RestoreExcluding(spans) => {
                let ranges: Vec<_> = spans.into_iter().map(|span| span.of(len)).collect();
                view.restore_excluding(&ranges).unwrap();
                let before = mem::replace(&mut self.shows, self.root.clone());
                self.synced.clone_from(&self.root.bytes);
                for range in ranges {
                    let range = range.start..range.end.min(self.shows.bytes.len());
                    if !range.is_empty() {
                        self.shows.bytes[range.clone()].copy_from_slice(&before.bytes[range]);
                    }
                }
                self.check("restored in part", &view);
            }
            Part::Protect(parts, back) => {
                let AnyView::Open(open) = view else { return view };
                view = AnyView::Open(self.protect(open, parts, back, snapshots));
                self.check("once protected", &view);
            }
        }
        view
    }

    /// Protects parts of a view, checks it, and makes all of it accessible again.
    fn protect<S>(
        &mut self,
        view: View<S>,
        parts: Vec<(Span, Access)>,
        back: Unprotect,
        snapshots: &mut Vec<ModelSnapshot>,
    ) -> View<S> {
        let len = self.shows.bytes.len();
        let mut protected = view.into_protected();
        let mut access = vec![Access::READ_WRITE; len / page_size()];
        for (span, kind) in parts {
            let range = span.of(len);
            access[range.start / page_size()..range.end / page_size()].fill(kind);
            protected.protect(range, kind).unwrap();
        }
        for (page, access) in access.iter().enumerate() {
            let range = page * page_size()..(page + 1) * page_size();
            let readable = (*access != Access::NONE).then(|| &self.shows.bytes[range.clone()]);
            assert!(protected.get(range.clone()) == readable, "page {page}");
            match protected.get_mut(range.clone()) {
                Some(bytes) => {
                    assert_eq!(*access, Access::READ_WRITE);
                    bytes[page % page_size()] ^= 0x55;
                    self.shows.bytes[range][page % page_size()] ^= 0x55;
                }
                None => assert_ne!(*access, Access::READ_WRITE),
            }
        }
        let taken = protected.take_snapshot().unwrap();
        self.synced.clone_from(&self.shows.bytes);
        snapshots.push(ModelSnapshot { real: Arc::new(taken), memory: self.shows.clone() });
        match back {
            Unprotect::ByTheSame => protected.protect(.., Access::READ_WRITE).unwrap(),
            Unprotect::ByRestore => {
                protected.restore().unwrap();
                let root = self.root.clone();
                self.restored_to(&root);
            }
        }
        protected.into_open().unwrap_or_else(|_| panic!("all access is back"))
    }
}

impl Model {
    fn new(content_len: usize) -> Self {
        let mut model = Self { content_len, snapshots: Vec::new(), views: Vec::new() };
        model.add_slice(1);
        model
    }

    fn add(&mut self, real: Snapshot, memory: Memory) {
        assert_eq!(real.content_len(), memory.content_len);
        assert_eq!(real.len(), memory.bytes.len());
        self.snapshots.push(ModelSnapshot { real: Arc::new(real), memory });
    }

    fn file(&self, value: u8) -> (std::fs::File, Memory) {
        let bytes = pattern(self.content_len, value);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        (file, Memory::new(bytes))
    }

    fn add_slice(&mut self, value: u8) {
        let bytes = pattern(self.content_len, value);
        self.add(Snapshot::from_slice(&bytes).unwrap(), Memory::new(bytes));
    }

    fn run(&mut self, Step { op, logging }: Step) {
        match op {
            Op::FromSlice { value } => self.add_slice(value),
            Op::FromFile { value } => {
                let (file, memory) = self.file(value);
                let again = file.try_clone().unwrap();
                self.add(Snapshot::from_file(file).unwrap(), memory);
                again.set_len(0).unwrap();
            }
            Op::FromReader { value } => {
                let bytes = pattern(self.content_len, value);
                self.add(Snapshot::from_reader(&bytes[..]).unwrap(), Memory::new(bytes));
            }
            Op::MapFile { value } => {
                let (file, memory) = self.file(value);
                // SAFETY: nobody else has the unnamed file, and it is not written again.
                let snapshot = unsafe { Snapshot::map_file(&file) }.unwrap();
                self.add(snapshot, memory);
            }
            Op::Zeroed => {
                let memory = Memory::new(vec![0; self.content_len]);
                self.add(Snapshot::zeroed(self.content_len).unwrap(), memory);
            }
            Op::Clone(i) | Op::TryClone(i) => {
                let Some(snapshot) = pick(&self.snapshots, i) else { return };
                let clone = match op {
                    Op::Clone(_) => Snapshot::clone(&snapshot.real),
                    _ => snapshot.real.try_clone().unwrap(),
                };
                let memory = snapshot.memory.clone();
                self.add(clone, memory);
            }
            Op::PassOn(i) => {
                let Some(snapshot) = pick(&self.snapshots, i) else { return };
                let Some(received) = system::passed_on(&snapshot.real) else { return };
                let memory = Memory::new(snapshot.memory.bytes.clone());
                self.add(received, memory);
            }
            Op::View(i, options) => {
                let Some(snapshot) = pick(&self.snapshots, i) else { return };
                let mut real = AnyView::open(&snapshot.real, options, logging);
                track(&mut real, options.tracking);
                let model = ViewModel::of(&snapshot.memory, options);
                model.check("new view", &real);
                self.views.push(ModelView { real, model });
            }
            Op::ViewOften(i) => {
                let Some(snapshot) = pick(&self.snapshots, i) else { return };
                for _ in 0..70 {
                    drop(snapshot.real.view().unwrap());
                }
                assert_same("often viewed", &snapshot.real.view().unwrap(), &snapshot.memory.bytes);
            }
            Op::Edit(i, edit) => {
                let Some(view) = pick_mut(&mut self.views, i) else { return };
                view.real.edit(edit, logging);
                edit.apply(&mut view.model.shows.bytes);
            }
            Op::Take(i) => {
                let Some(view) = pick_mut(&mut self.views, i) else { return };
                let taken = view.real.take_snapshot().unwrap();
                view.model.synced.clone_from(&view.model.shows.bytes);
                let memory = view.model.shows.clone();
                self.add(taken, memory);
            }
            Op::Restore(i) => {
                let Some(view) = pick_mut(&mut self.views, i) else { return };
                let address = view.real.as_ptr();
                view.real.restore().unwrap();
                assert_eq!(view.real.as_ptr(), address);
                let root = view.model.root.clone();
                view.model.restored_to(&root);
                view.model.check("restored", &view.real);
            }
            Op::RestoreTo(i, j) => {
                let Some(view) = pick_mut(&mut self.views, i) else { return };
                let Some(snapshot) = pick(&self.snapshots, j) else { return };
                let address = view.real.as_ptr();
                restore_to(&mut view.real, &mut view.model, snapshot);
                assert_eq!(view.real.as_ptr(), address);
                view.model.check("restored to", &view.real);
            }
            Op::Changes(i) => {
                let Some(view) = pick(&self.views, i) else { return };
                let changes = view.real.changes().unwrap();
                assert_changes(changes, &view.model.synced, &view.model.shows.bytes);
            }
            Op::Track(i, tracking) => {
                let Some(view) = pick_mut(&mut self.views, i) else { return };
                track(&mut view.real, tracking);
            }
            Op::Part(i, part) => {
                if self.views.is_empty() {
                    return;
                }
                let ModelView { real, mut model } = self.views.swap_remove(i.index(self.views.len()));
                let address = real.as_ptr();
                let real = model.run(real, part, &mut self.snapshots);
                assert_eq!(real.as_ptr(), address);
                self.views.push(ModelView { real, model });
            }
            Op::Diff(i, j) => {
                let Some(left) = pick(&self.snapshots, i) else { return };
                let Some(right) = pick(&self.snapshots, j) else { return };
                let changes = left.real.diff(&right.real).unwrap();
                assert_changes(changes, &left.memory.bytes, &right.memory.bytes);
            }
            Op::ReadAt(i, at, len) => {
                let Some(snapshot) = pick(&self.snapshots, i) else { return };
                let at = at.index(snapshot.memory.bytes.len() + 2);
                let mut buffer = vec![0xA5; len];
                let read = snapshot.real.read_at(&mut buffer, at).unwrap();
                let expected = snapshot.memory.bytes.get(at..).unwrap_or(&[]);
                assert_same("read_at", &buffer[..read], &expected[..len.min(expected.len())]);
            }
            Op::Mutate(i, options, ops, end) => self.mutate(i, options, logging, ops, end),
            Op::DropView(i) => {
                if !self.views.is_empty() {
                    self.views.swap_remove(i.index(self.views.len()));
                }
            }
            Op::DropSnapshot(i) => {
                if !self.snapshots.is_empty() {
                    self.snapshots.swap_remove(i.index(self.snapshots.len()));
                }
            }
        }
    }

    /// Opens a mutable view on a snapshot, or on a clone where views hold it.
    fn mutate(
        &mut self,
        i: prop::sample::Index,
        options: Options,
        logging: Logging,
        ops: Vec<MutOp>,
        end: End,
    ) {
        if self.snapshots.is_empty() {
            return;
        }
        let ModelSnapshot { real, memory } = self.snapshots.swap_remove(i.index(self.snapshots.len()));
        let mut real = Arc::try_unwrap(real).unwrap_or_else(|shared| Snapshot::clone(&shared));
        let earlier = (real.clone(), memory.clone());
        let leaked = Options { reserve: 0, guard: 0, ..options };
        let options = if let End::Forget = end { leaked } else { options };
        let mut model = ViewModel::of(&memory, options);
        let mut taken = Vec::new();
        let mut view = AnyView::open_mut(&mut real, options, logging);
        track(&mut view, options.tracking);
        let address = view.as_ptr();
        for op in ops {
            match op {
                MutOp::Edit(edit) => {
                    view.edit(edit, logging);
                    edit.apply(&mut model.shows.bytes);
                }
                MutOp::Track(tracking) => track(&mut view, tracking),
                MutOp::Part(part) => view = model.run(view, part, &mut self.snapshots),
                MutOp::Take => {
                    taken.push((view.take_snapshot().unwrap(), model.shows.clone()));
                    model.synced.clone_from(&model.shows.bytes);
                }
                MutOp::Restore => {
                    view.restore().unwrap();
                    let root = model.root.clone();
                    model.restored_to(&root);
                }
                MutOp::RestoreTo(j) => {
                    let Some(snapshot) = pick(&self.snapshots, j) else { continue };
                    restore_to(&mut view, &mut model, snapshot);
                }
                MutOp::Changes => {
                    assert_changes(view.changes().unwrap(), &model.synced, &model.shows.bytes);
                }
            }
            assert_eq!(view.as_ptr(), address);
            model.check("mutable view", &view);
        }
        let mut memory = model.shows;
        match end {
            End::Drop => drop(view),
            End::Commit => view.commit().unwrap(),
            End::Forget => {
                // SAFETY: the range was mapped by the view that is forgotten here, so that nobody unmaps it again
                // or refers to it.
                unsafe { view.forget() };
                memory = model.root;
            }
        }
        assert_same("mutated", &real.view().unwrap(), &memory.bytes);
        self.add(real, memory);
        self.add(earlier.0, earlier.1);
        for (snapshot, memory) in taken {
            self.add(snapshot, memory);
        }
    }

    fn check(&self) {
        for view in &self.views {
            view.model.check("view", &view.real);
        }
        for snapshot in &self.snapshots {
            let expected = &snapshot.memory.bytes;
            assert_same("snapshot", &snapshot.real.view().unwrap(), expected);
            let mut bytes = vec![0xA5; expected.len()];
            assert_eq!(snapshot.real.read_at(&mut bytes, 0).unwrap(), bytes.len());
            assert_same("snapshot read", &bytes, expected);
        }
    }
}

fn restore_to<S>(view: &mut AnyView<S>, model: &mut ViewModel, snapshot: &ModelSnapshot) {
    let restored = view.restore_to(&snapshot.real);
    if snapshot.memory.bytes.len() > model.most {
        assert_eq!(restored.unwrap_err().kind(), ErrorKind::InvalidInput);
    } else {
        restored.unwrap();
        model.restored_to(&snapshot.memory);
    }
}

/// Where it cannot work the view goes on as before.
fn track<S>(view: &mut AnyView<S>, tracking: Tracking) {
    if let Err(error) = view.set_tracking(tracking) {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
}

fn pick<T>(items: &[T], index: prop::sample::Index) -> Option<&T> {
    (!items.is_empty()).then(|| index.get(items))
}

fn pick_mut<T>(items: &mut [T], index: prop::sample::Index) -> Option<&mut T> {
    (!items.is_empty()).then(|| index.get_mut(items))
}

/// Runs `steps` on a first snapshot of `content_len` bytes, and compares all there is in the end.
fn run(content_len: usize, steps: Vec<Step>) {
    let mut model = Model::new(content_len);
    for step in steps {
        model.run(step);
    }
    model.check();
}

fn cases() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(2_000);
    ProptestConfig { cases, max_shrink_iters: 20_000, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn behaves_like_vectors(content_len in content_len(), steps in prop::collection::vec(step(), 1..60)) {
        run(content_len, steps);
    }
}

/// Runs the scripts that the fuzzer kept, because each reached something that the others do not.
#[test]
fn the_corpus_behaves_like_vectors() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/model");
    let Ok(files) = std::fs::read_dir(corpus) else {
        // Neither is it in the package, nor in a virtual machine that has the test only.
        return common::skip("the_corpus_behaves_like_vectors", "no fuzz/corpus/model here");
    };
    for file in files {
        let path = file.unwrap().path();
        let script = Script::from_bytes(&std::fs::read(&path).unwrap());
        if let Err(panic) = catch_unwind(|| script.clone().run()) {
            eprintln!("{}: {script:#?}", path.display());
            resume_unwind(panic);
        }
    }
}
