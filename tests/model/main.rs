//! Compares long random sequences of all operations with byte vectors.
//!
//! The operations use a tree of snapshots and several views.
//!
//! `PROPTEST_CASES=1000000 cargo test --release --test model` runs it for longer.

#[path = "../common/mod.rs"]
mod common;
mod ops;
mod seeds;
mod system;
mod view_model;
mod views;

use std::io::{ErrorKind, Write};
use std::panic::{catch_unwind, resume_unwind};
use std::sync::Arc;

use common::assert_same;
use common::script::differing;
use memsnap::{Changes, Snapshot, Tracking, page_size};
use ops::{End, Length, MutOp, Op, Options, Part, Span, content_len};
use proptest::prelude::*;
use proptest::sample::Index;
pub(crate) use seeds::Script;
use view_model::ViewModel;
use views::{AnyView, Logging, Step, step};

/// The bytes of a snapshot: whole pages, of which the first `content_len` bytes are content.
#[derive(Clone)]
struct Memory {
    bytes: Vec<u8>,
    content_len: usize,
}

/// A snapshot and the bytes that it must hold.
struct ModelSnapshot {
    real: Arc<Snapshot>,
    memory: Memory,
}

/// A view and what it must show.
struct ModelView {
    real: AnyView<Arc<Snapshot>>,
    model: ViewModel,
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
        // The third pattern has holes, if there are enough bytes.
        if value != 3 || i / 8 % 3 == 0 {
            piece.fill(i.to_le_bytes()[0].wrapping_mul(value));
        }
    }
    bytes
}

/// Checks the ranges and the bytes of changes.
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

    fn add_file(&mut self, value: u8) {
        let (file, memory) = self.file(value);
        let again = file.try_clone().unwrap();
        self.add(Snapshot::from_file(file).unwrap(), memory);
        again.set_len(0).unwrap();
    }

    fn add_stream(&mut self, value: u8) {
        let bytes = pattern(self.content_len, value);
        self.add(Snapshot::from_reader(&bytes[..]).unwrap(), Memory::new(bytes));
    }

    fn add_mapped(&mut self, value: u8) {
        let (file, memory) = self.file(value);
        // SAFETY: nobody else has the unnamed file, and it is not written again.
        let snapshot = unsafe { Snapshot::map_file(&file) }.unwrap();
        self.add(snapshot, memory);
    }

    fn add_zeroed(&mut self) {
        let memory = Memory::new(vec![0; self.content_len]);
        self.add(Snapshot::zeroed(self.content_len).unwrap(), memory);
    }

    fn add_clone(&mut self, i: Index, clone: impl Fn(&Snapshot) -> Snapshot) {
        let Some(snapshot) = pick(&self.snapshots, i) else { return };
        let (clone, memory) = (clone(&snapshot.real), snapshot.memory.clone());
        self.add(clone, memory);
    }

    fn add_passed_on(&mut self, i: Index) {
        let Some(snapshot) = pick(&self.snapshots, i) else { return };
        let Some(received) = system::passed_on(&snapshot.real) else { return };
        let memory = Memory::new(snapshot.memory.bytes.clone());
        self.add(received, memory);
    }

    fn open(&mut self, i: Index, options: Options, logging: Logging) {
        let Some(snapshot) = pick(&self.snapshots, i) else { return };
        let mut real = AnyView::open(&snapshot.real, options, logging);
        track(&mut real, options.tracking);
        let model = ViewModel::of(&snapshot.memory, options);
        model.check("new view", &real);
        self.views.push(ModelView { real, model });
    }

    fn open_often(&self, i: Index) {
        let Some(snapshot) = pick(&self.snapshots, i) else { return };
        for _ in 0..70 {
            drop(snapshot.real.view().unwrap());
        }
        assert_same("often viewed", &snapshot.real.view().unwrap(), &snapshot.memory.bytes);
    }

    fn take(&mut self, i: Index) {
        let Some(view) = pick_mut(&mut self.views, i) else { return };
        let taken = view.real.take_snapshot().unwrap();
        view.model.synced.clone_from(&view.model.shows.bytes);
        let memory = view.model.shows.clone();
        self.add(taken, memory);
    }

    fn restore(&mut self, i: Index) {
        let Some(view) = pick_mut(&mut self.views, i) else { return };
        let address = view.real.as_ptr();
        view.real.restore().unwrap();
        assert_eq!(view.real.as_ptr(), address);
        let root = view.model.root.clone();
        view.model.restored_to(&root);
        view.model.check("restored", &view.real);
    }

    fn restore_to(&mut self, i: Index, j: Index) {
        let Some(view) = pick_mut(&mut self.views, i) else { return };
        let Some(snapshot) = pick(&self.snapshots, j) else { return };
        let address = view.real.as_ptr();
        view.model.restore_to(&mut view.real, snapshot);
        assert_eq!(view.real.as_ptr(), address);
        view.model.check("restored to", &view.real);
    }

    fn change_part(&mut self, i: Index, part: Part) {
        if self.views.is_empty() {
            return;
        }
        let ModelView { real, mut model } = self.views.swap_remove(i.index(self.views.len()));
        let address = real.as_ptr();
        let real = model.run(real, part, &mut self.snapshots);
        assert_eq!(real.as_ptr(), address);
        self.views.push(ModelView { real, model });
    }

    fn diff(&self, i: Index, j: Index) {
        let Some(left) = pick(&self.snapshots, i) else { return };
        let Some(right) = pick(&self.snapshots, j) else { return };
        let changes = left.real.diff(&right.real).unwrap();
        assert_changes(changes, &left.memory.bytes, &right.memory.bytes);
    }

    fn read_at(&self, i: Index, at: Index, len: usize) {
        let Some(snapshot) = pick(&self.snapshots, i) else { return };
        let at = at.index(snapshot.memory.bytes.len() + 2);
        let mut buffer = vec![0xA5; len];
        let read = snapshot.real.read_at(&mut buffer, at).unwrap();
        let expected = snapshot.memory.bytes.get(at..).unwrap_or(&[]);
        assert_same("read_at", &buffer[..read], &expected[..len.min(expected.len())]);
    }

    fn write(&mut self, i: Index, writes: &[(Span, u8)]) {
        let Some(snapshot) = pick(&self.snapshots, i) else { return };
        let mut memory = snapshot.memory.clone();
        let mut changes = Vec::new();
        for (span, value) in writes {
            let range = span.of(memory.bytes.len());
            let bytes = pattern(range.len(), *value);
            memory.bytes[range.clone()].copy_from_slice(&bytes);
            changes.push((range.start, bytes));
        }
        let written = snapshot.real.with_changes(changes).unwrap();
        let changes = snapshot.real.diff(&written).unwrap();
        assert_changes(changes, &snapshot.memory.bytes, &memory.bytes);
        self.add(written, memory);
    }

    fn resize(&mut self, i: Index, length: Length, content: Index) {
        let Some(snapshot) = pick(&self.snapshots, i) else { return };
        let mut memory = snapshot.memory.clone();
        let len = match length {
            Length::AtMost(len) => len.index(memory.bytes.len() + 1),
            Length::More(more) => memory.bytes.len() + more,
            Length::Bytes(len) => len,
        };
        memory.content_len = content.index(len + 1);
        memory.bytes.resize(len, 0);
        memory.bytes.resize(len.next_multiple_of(page_size()), 0);
        let resized = snapshot.real.resized(len, memory.content_len).unwrap();
        self.add(resized, memory);
    }

    fn data_ranges(&self, i: Index) {
        let Some(snapshot) = pick(&self.snapshots, i) else { return };
        let mut rest = snapshot.memory.bytes.clone();
        let mut end = None;
        for range in snapshot.real.data_ranges().unwrap() {
            assert!(end.is_none_or(|end| end < range.start) && !range.is_empty());
            assert!(range.start.is_multiple_of(page_size()) && range.end.is_multiple_of(page_size()));
            rest[range.clone()].fill(0);
            end = Some(range.end);
        }
        assert!(rest.iter().all(|&byte| byte == 0), "data is outside of the ranges");
    }

    fn run(&mut self, Step { op, logging }: Step) {
        match op {
            Op::FromSlice { value } => self.add_slice(value),
            Op::FromFile { value } => self.add_file(value),
            Op::FromReader { value } => self.add_stream(value),
            Op::MapFile { value } => self.add_mapped(value),
            Op::Zeroed => self.add_zeroed(),
            Op::Clone(i) => self.add_clone(i, Snapshot::clone),
            Op::TryClone(i) => self.add_clone(i, |snapshot| snapshot.try_clone().unwrap()),
            Op::PassOn(i) => self.add_passed_on(i),
            Op::View(i, options) => self.open(i, options, logging),
            Op::ViewOften(i) => self.open_often(i),
            Op::Edit(i, edit) => {
                let Some(view) = pick_mut(&mut self.views, i) else { return };
                view.real.edit(edit, logging);
                edit.apply(&mut view.model.shows.bytes);
            }
            Op::Take(i) => self.take(i),
            Op::Restore(i) => self.restore(i),
            Op::RestoreTo(i, j) => self.restore_to(i, j),
            Op::Changes(i) => {
                let Some(view) = pick(&self.views, i) else { return };
                let changes = view.real.changes().unwrap();
                assert_changes(changes, &view.model.synced, &view.model.shows.bytes);
            }
            Op::Track(i, tracking) => {
                let Some(view) = pick_mut(&mut self.views, i) else { return };
                track(&mut view.real, tracking);
            }
            Op::Part(i, part) => self.change_part(i, part),
            Op::Diff(i, j) => self.diff(i, j),
            Op::ReadAt(i, at, len) => self.read_at(i, at, len),
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
            Op::Write(i, writes) => self.write(i, &writes),
            Op::Resize(i, length, content) => self.resize(i, length, content),
            Op::DataRanges(i) => self.data_ranges(i),
        }
    }

    /// Opens a mutable view of a snapshot, or of a clone if views hold the snapshot.
    fn mutate(&mut self, i: Index, options: Options, logging: Logging, ops: Vec<MutOp>, end: End) {
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
                    model.restore_to(&mut view, snapshot);
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
                // SAFETY: the view's pages were mapped by the view, which is forgotten here. So nothing
                // unmaps them again or refers to them.
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

/// Sets the tracking method. If it cannot work, the view keeps its present method.
fn track<S>(view: &mut AnyView<S>, tracking: Tracking) {
    if let Err(error) = view.set_tracking(tracking) {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
}

fn pick<T>(items: &[T], index: Index) -> Option<&T> {
    (!items.is_empty()).then(|| index.get(items))
}

fn pick_mut<T>(items: &mut [T], index: Index) -> Option<&mut T> {
    (!items.is_empty()).then(|| index.get_mut(items))
}

/// Runs `steps`, starting with one snapshot of `content_len` bytes, and checks all snapshots and views at the
/// end.
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

/// Runs the scripts that the fuzzer kept. Each script reaches code that the other ones do not reach.
#[test]
fn the_corpus_behaves_like_vectors() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/model");
    let Ok(files) = std::fs::read_dir(corpus) else {
        // The package does not have the corpus, nor does a virtual machine that has only the test binary.
        return common::skip("the_corpus_behaves_like_vectors", "there is no fuzz/corpus/model here");
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
