//! Long random sequences of every operation, over a tree of snapshots and several views, against
//! plain byte vectors.
//!
//! `PROPTEST_CASES=1000000 cargo test --release --test model` runs it for longer.

use std::io::Write;
use std::mem;
use std::sync::Arc;

use memsnap::{ArcView, Snapshot, Tracking, View, page_size};
use proptest::prelude::*;

/// Where to write. Resolved against the length of the view.
#[derive(Clone, Copy, Debug)]
enum Edit {
    /// A few bytes anywhere.
    Bytes { at: prop::sample::Index, len: usize, value: u8 },
    /// A run of pages, every byte.
    Run { at: prop::sample::Index, pages: usize, value: u8 },
    /// One byte in every n-th page.
    Stride { step: usize, value: u8 },
}

#[derive(Clone, Debug)]
enum Op {
    FromSlice { value: u8 },
    FromFile { value: u8 },
    FromReader { value: u8 },
    MapFile { value: u8 },
    Zeroed,
    Clone(prop::sample::Index),
    TryClone(prop::sample::Index),
    View(prop::sample::Index),
    ViewOften(prop::sample::Index),
    Edit(prop::sample::Index, Edit),
    Take(prop::sample::Index),
    Restore(prop::sample::Index),
    RestoreTo(prop::sample::Index, prop::sample::Index),
    Changes(prop::sample::Index),
    Track(prop::sample::Index, Tracking),
    Diff(prop::sample::Index, prop::sample::Index),
    ReadAt(prop::sample::Index, prop::sample::Index, usize),
    Mutate(prop::sample::Index, Vec<MutOp>, End),
    DropView(prop::sample::Index),
    DropSnapshot(prop::sample::Index),
}

/// What happens in the life of a mutable view.
#[derive(Clone, Debug)]
enum MutOp {
    Edit(Edit),
    Track(Tracking),
    Take,
    Restore,
    RestoreTo(prop::sample::Index),
    Changes,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Drop,
    Commit,
    Forget,
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        4 => (any::<prop::sample::Index>(), 1..300_usize, 0..4_u8)
            .prop_map(|(at, len, value)| Edit::Bytes { at, len, value }),
        2 => (any::<prop::sample::Index>(), prop_oneof![3 => 1..20_usize, 1 => 60..120_usize], 0..4_u8)
            .prop_map(|(at, pages, value)| Edit::Run { at, pages, value }),
        1 => (1..6_usize, 0..4_u8).prop_map(|(step, value)| Edit::Stride { step, value }),
    ]
}

fn mut_op() -> impl Strategy<Value = MutOp> {
    prop_oneof![
        4 => edit().prop_map(MutOp::Edit),
        2 => Just(MutOp::Take),
        1 => tracking().prop_map(MutOp::Track),
        1 => Just(MutOp::Restore),
        1 => any::<prop::sample::Index>().prop_map(MutOp::RestoreTo),
        1 => Just(MutOp::Changes),
    ]
}

fn tracking() -> impl Strategy<Value = Tracking> {
    use Tracking::{Armed, Auto, Compare, Pagemap, Scan};
    prop_oneof![4 => Just(Armed), 2 => Just(Auto), 1 => Just(Scan), 1 => Just(Pagemap), 1 => Just(Compare)]
}

fn op() -> impl Strategy<Value = Op> {
    let index = any::<prop::sample::Index>;
    let end = prop_oneof![3 => Just(End::Drop), 3 => Just(End::Commit), 1 => Just(End::Forget)];
    prop_oneof![
        1 => (0..4_u8).prop_map(|value| Op::FromSlice { value }),
        1 => (0..4_u8).prop_map(|value| Op::FromFile { value }),
        1 => (0..4_u8).prop_map(|value| Op::FromReader { value }),
        1 => (0..4_u8).prop_map(|value| Op::MapFile { value }),
        1 => Just(Op::Zeroed),
        1 => index().prop_map(Op::Clone),
        1 => index().prop_map(Op::TryClone),
        4 => index().prop_map(Op::View),
        1 => index().prop_map(Op::ViewOften),
        12 => (index(), edit()).prop_map(|(view, edit)| Op::Edit(view, edit)),
        6 => index().prop_map(Op::Take),
        4 => index().prop_map(Op::Restore),
        6 => (index(), index()).prop_map(|(view, snapshot)| Op::RestoreTo(view, snapshot)),
        2 => index().prop_map(Op::Changes),
        3 => (index(), tracking()).prop_map(|(view, tracking)| Op::Track(view, tracking)),
        2 => (index(), index()).prop_map(|(one, other)| Op::Diff(one, other)),
        1 => (index(), index(), 0..10_000_usize).prop_map(|(snapshot, at, len)| Op::ReadAt(snapshot, at, len)),
        3 => (index(), prop::collection::vec(mut_op(), 0..8), end)
            .prop_map(|(snapshot, ops, end)| Op::Mutate(snapshot, ops, end)),
        2 => index().prop_map(Op::DropView),
        2 => index().prop_map(Op::DropSnapshot),
    ]
}

/// Sizes at the edges of a page, large enough for runs to be mapped, and, seldom, large enough for more
/// scattered pages than the kernel reports at once (512).
fn content_len() -> impl Strategy<Value = usize> {
    let page = page_size();
    let usual = vec![0, 1, page - 1, page, page + 1, 3 * page, 17 * page + 5, 64 * page, 150 * page];
    prop_oneof![99 => prop::sample::select(usual), 1 => Just(1300 * page)]
}

/// A snapshot and what it holds.
struct ModelSnapshot {
    real: Arc<Snapshot>,
    bytes: Vec<u8>,
}

/// A view, what it shows, what it was opened on, and what it last agreed with.
struct ModelView {
    real: ArcView,
    bytes: Vec<u8>,
    root: Vec<u8>,
    synced: Vec<u8>,
}

struct Model {
    content_len: usize,
    snapshots: Vec<ModelSnapshot>,
    views: Vec<ModelView>,
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

fn apply(edit: Edit, bytes: &mut [u8]) {
    if bytes.is_empty() {
        return;
    }
    match edit {
        Edit::Bytes { at, len, value } => {
            let start = at.index(bytes.len());
            let end = bytes.len().min(start + len);
            bytes[start..end].fill(value);
        }
        Edit::Run { at, pages, value } => {
            let start = at.index(bytes.len() / page_size()) * page_size();
            let end = bytes.len().min(start + pages * page_size());
            bytes[start..end].fill(value);
        }
        Edit::Stride { step, value } => {
            bytes.iter_mut().step_by(step * page_size()).for_each(|byte| *byte = value);
        }
    }
}

/// The ranges of whole pages in which two slices of one length differ.
fn differing(left: &[u8], right: &[u8]) -> Vec<std::ops::Range<usize>> {
    let page = page_size();
    let mut ranges: Vec<std::ops::Range<usize>> = Vec::new();
    for (i, (left, right)) in left.chunks(page).zip(right.chunks(page)).enumerate() {
        if left != right {
            match ranges.last_mut() {
                Some(last) if last.end == i * page => last.end += page,
                _ => ranges.push(i * page..(i + 1) * page),
            }
        }
    }
    ranges
}

/// Compares without printing megabytes.
fn assert_same(what: &str, real: &[u8], model: &[u8]) {
    assert_eq!(real.len(), model.len(), "{what}: length");
    if real != model {
        let at = (0..real.len()).find(|&i| real[i] != model[i]).unwrap();
        panic!("{what}: byte {at} (page {}) is {}, expected {}", at / page_size(), real[at], model[at]);
    }
}

impl Model {
    fn new(content_len: usize) -> Self {
        let mut model = Self { content_len, snapshots: Vec::new(), views: Vec::new() };
        model.run(Op::FromSlice { value: 1 });
        model
    }

    fn len(&self) -> usize {
        self.content_len.next_multiple_of(page_size())
    }

    fn add(&mut self, real: Snapshot, mut bytes: Vec<u8>) {
        assert_eq!(real.content_len(), self.content_len);
        assert_eq!(real.len(), self.len());
        bytes.resize(self.len(), 0);
        self.snapshots.push(ModelSnapshot { real: Arc::new(real), bytes });
    }

    fn file(&self, value: u8) -> (std::fs::File, Vec<u8>) {
        let bytes = pattern(self.content_len, value);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        (file, bytes)
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::FromSlice { value } => {
                let bytes = pattern(self.content_len, value);
                self.add(Snapshot::from_slice(&bytes).unwrap(), bytes);
            }
            Op::FromFile { value } => {
                let (file, bytes) = self.file(value);
                let again = file.try_clone().unwrap();
                self.add(Snapshot::from_file(file).unwrap(), bytes);
                again.set_len(0).unwrap();
            }
            Op::FromReader { value } => {
                let bytes = pattern(self.content_len, value);
                self.add(Snapshot::from_reader(&bytes[..]).unwrap(), bytes);
            }
            Op::MapFile { value } => {
                let (file, bytes) = self.file(value);
                // SAFETY: nobody else has the unnamed file, and it is not written again.
                let snapshot = unsafe { Snapshot::map_file(&file) }.unwrap();
                self.add(snapshot, bytes);
            }
            Op::Zeroed => self.add(Snapshot::zeroed(self.content_len).unwrap(), vec![0; self.content_len]),
            Op::Clone(i) | Op::TryClone(i) => {
                let Some(snapshot) = pick(&self.snapshots, i) else { return };
                let clone = match op {
                    Op::Clone(_) => Snapshot::clone(&snapshot.real),
                    _ => snapshot.real.try_clone().unwrap(),
                };
                let bytes = snapshot.bytes.clone();
                self.add(clone, bytes);
            }
            Op::View(i) => {
                let Some(snapshot) = pick(&self.snapshots, i) else { return };
                let real = snapshot.real.view_arc().unwrap();
                let bytes = snapshot.bytes.clone();
                assert_same("new view", &real, &bytes);
                assert_same("content", real.content(), &bytes[..self.content_len]);
                self.views.push(ModelView { real, root: bytes.clone(), synced: bytes.clone(), bytes });
            }
            Op::ViewOften(i) => {
                let Some(snapshot) = pick(&self.snapshots, i) else { return };
                for _ in 0..70 {
                    drop(snapshot.real.view().unwrap());
                }
                assert_same("often viewed", &snapshot.real.view().unwrap(), &snapshot.bytes);
            }
            Op::Edit(i, edit) => {
                let Some(view) = pick_mut(&mut self.views, i) else { return };
                apply(edit, &mut view.real);
                apply(edit, &mut view.bytes);
            }
            Op::Take(i) => {
                let Some(view) = pick_mut(&mut self.views, i) else { return };
                let taken = view.real.take_snapshot().unwrap();
                view.synced.clone_from(&view.bytes);
                let bytes = view.bytes.clone();
                self.add(taken, bytes);
            }
            Op::Restore(i) => {
                let Some(view) = pick_mut(&mut self.views, i) else { return };
                let address = view.real.as_ptr();
                view.real.restore().unwrap();
                assert_eq!(view.real.as_ptr(), address);
                view.bytes.clone_from(&view.root);
                view.synced.clone_from(&view.root);
                assert_same("restored", &view.real, &view.bytes);
            }
            Op::RestoreTo(i, j) => {
                let Some(view) = pick_mut(&mut self.views, i) else { return };
                let Some(snapshot) = pick(&self.snapshots, j) else { return };
                let address = view.real.as_ptr();
                view.real.restore_to(&snapshot.real).unwrap();
                assert_eq!(view.real.as_ptr(), address);
                view.bytes.clone_from(&snapshot.bytes);
                view.synced.clone_from(&snapshot.bytes);
                assert_same("restored to", &view.real, &view.bytes);
            }
            Op::Changes(i) => {
                let Some(view) = pick(&self.views, i) else { return };
                assert_eq!(view.real.changes().unwrap().ranges(), differing(&view.bytes, &view.synced));
            }
            Op::Track(i, tracking) => {
                let Some(view) = pick_mut(&mut self.views, i) else { return };
                // Where it cannot work the view goes on as before.
                let _ = view.real.set_tracking(tracking);
            }
            Op::Diff(i, j) => {
                let Some(left) = pick(&self.snapshots, i) else { return };
                let Some(right) = pick(&self.snapshots, j) else { return };
                assert_eq!(
                    left.real.diff(&right.real).unwrap().ranges(),
                    differing(&left.bytes, &right.bytes)
                );
            }
            Op::ReadAt(i, at, len) => {
                let Some(snapshot) = pick(&self.snapshots, i) else { return };
                let at = at.index(snapshot.bytes.len() + 2);
                let mut buffer = vec![0xA5; len];
                let read = snapshot.real.read_at(&mut buffer, at).unwrap();
                let expected = snapshot.bytes.get(at..).unwrap_or(&[]);
                assert_same("read_at", &buffer[..read], &expected[..len.min(expected.len())]);
            }
            Op::Mutate(i, ops, end) => self.mutate(i, ops, end),
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
    fn mutate(&mut self, i: prop::sample::Index, ops: Vec<MutOp>, end: End) {
        if self.snapshots.is_empty() {
            return;
        }
        let ModelSnapshot { real, mut bytes } = self.snapshots.swap_remove(i.index(self.snapshots.len()));
        let mut real = Arc::try_unwrap(real).unwrap_or_else(|shared| Snapshot::clone(&shared));
        let earlier = (real.clone(), bytes.clone());
        let (root, mut synced) = (bytes.clone(), bytes.clone());
        let mut taken = Vec::new();
        let mut view = real.view_mut().unwrap();
        let address = view.as_ptr();
        for op in ops {
            match op {
                MutOp::Edit(edit) => {
                    apply(edit, &mut view);
                    apply(edit, &mut bytes);
                }
                MutOp::Track(tracking) => drop(view.set_tracking(tracking)),
                MutOp::Take => {
                    taken.push((view.take_snapshot().unwrap(), bytes.clone()));
                    synced.clone_from(&bytes);
                }
                MutOp::Restore => {
                    view.restore().unwrap();
                    bytes.clone_from(&root);
                    synced.clone_from(&root);
                }
                MutOp::RestoreTo(j) => {
                    let Some(snapshot) = pick(&self.snapshots, j) else { continue };
                    view.restore_to(&snapshot.real).unwrap();
                    bytes.clone_from(&snapshot.bytes);
                    synced.clone_from(&snapshot.bytes);
                }
                MutOp::Changes => assert_eq!(view.changes().unwrap().ranges(), differing(&bytes, &synced)),
            }
            assert_eq!(view.as_ptr(), address);
            assert_same("mutable view", &view, &bytes);
        }
        match end {
            End::Drop => drop(view),
            End::Commit => view.commit().unwrap(),
            End::Forget => {
                // SAFETY: the range was mapped by the view that is forgotten here, so that nobody unmaps it again
                // or refers to it.
                unsafe { unmap(view) };
                bytes = root;
            }
        }
        assert_same("mutated", &real.view().unwrap(), &bytes);
        self.add(real, bytes);
        self.add(earlier.0, earlier.1);
        for (snapshot, bytes) in taken {
            self.add(snapshot, bytes);
        }
    }

    fn check(&self) {
        for view in &self.views {
            assert_same("view", &view.real, &view.bytes);
        }
        for snapshot in &self.snapshots {
            assert_same("snapshot", &snapshot.real.view().unwrap(), &snapshot.bytes);
            let mut bytes = vec![0xA5; snapshot.bytes.len()];
            assert_eq!(snapshot.real.read_at(&mut bytes, 0).unwrap(), bytes.len());
            assert_same("snapshot read", &bytes, &snapshot.bytes);
        }
    }
}

/// Forgets a view without leaving its addresses taken for the rest of the test.
///
/// # Safety
///
/// No pointer into the view is used afterwards.
unsafe fn unmap<S>(mut view: View<S>) {
    let (start, len) = (view.as_mut_ptr(), view.len());
    mem::forget(view);
    if len > 0 {
        // SAFETY: the range was the forgotten view's, whose destructor does not run.
        unsafe { rustix::mm::munmap(start.cast(), len) }.unwrap();
    }
}

fn pick<T>(items: &[T], index: prop::sample::Index) -> Option<&T> {
    (!items.is_empty()).then(|| index.get(items))
}

fn pick_mut<T>(items: &mut [T], index: prop::sample::Index) -> Option<&mut T> {
    (!items.is_empty()).then(|| index.get_mut(items))
}

fn cases() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(2_000);
    ProptestConfig { cases, max_shrink_iters: 20_000, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn behaves_like_vectors(content_len in content_len(), ops in prop::collection::vec(op(), 1..60)) {
        let mut model = Model::new(content_len);
        for op in ops {
            model.run(op);
        }
        model.check();
    }
}
