//! All operations on snapshots and views, in random order.

use std::fs::File;
use std::io::{self, Write as _};
use std::mem;
use std::rc::Rc;
use std::sync::Arc;

use super::chance::Chance;
use super::held::{By, Held, MAX_PAGES, Memory, was_kept};
use super::opening::Opening;
use super::watched::{Watched, allowed, assert_changes};
use crate::{Snapshot, page_size};

/// The greatest numbers of snapshots and views at a time.
const SNAPSHOTS: usize = 8;
const VIEWS: usize = 2;

/// The number of steps that mostly use the same view after an operation on it failed.
const FOCUS: usize = 6;

/// The snapshots and views that are checked after each step.
///
/// A check is an operation too, and may hide an error that shows without it.
#[derive(Clone, Copy)]
enum Checks {
    All(By),
    One,
    None,
}

#[derive(Clone, Copy)]
enum Op {
    Make,
    Clone,
    TryClone,
    PassOn,
    Open,
    OpenOften,
    OnView,
    Diff,
    ReadAt,
    Mutate,
    Write,
    Resize,
    DropView,
    DropSnapshot,
}

const OPS: [(usize, Op); 14] = [
    (3, Op::Make),
    (1, Op::Clone),
    (1, Op::TryClone),
    (1, Op::PassOn),
    (4, Op::Open),
    (1, Op::OpenOften),
    (50, Op::OnView),
    (2, Op::Diff),
    (1, Op::ReadAt),
    (3, Op::Mutate),
    (3, Op::Write),
    (2, Op::Resize),
    (1, Op::DropView),
    (2, Op::DropSnapshot),
];

/// The snapshots and views of one seed.
pub(super) struct Script {
    chance: Chance,
    checks: Checks,
    lengths: Vec<usize>,
    snapshots: Vec<Held>,
    views: Vec<Watched<Arc<Snapshot>>>,
    /// A view on which an operation failed, and the number of steps that mostly use it.
    focus: (String, usize),
}

impl Script {
    pub(super) fn new(mut chance: Chance) -> Self {
        let page = page_size();
        let short = chance.pick(&[0, 1, page - 1, page, page + 1, 3 * page, 9 * page]);
        let medium = chance.pick(&[17 * page + 5, 33 * page, 35 * page, 40 * page]);
        let long = chance.pick(&[64 * page, 80 * page - 1, MAX_PAGES * page]);
        let lengths = vec![short, medium, long];
        let checks =
            chance.pick(&[Checks::All(By::Reading), Checks::All(By::Viewing), Checks::One, Checks::None]);
        Self { chance, checks, lengths, snapshots: Vec::new(), views: Vec::new(), focus: (String::new(), 0) }
    }

    pub(super) fn chance(&self) -> &Chance {
        &self.chance
    }

    /// Runs one random operation, and then the checks.
    pub(super) fn step(&mut self) {
        self.chance.step += 1;
        self.focus.1 = self.focus.1.saturating_sub(1);
        let focused = self.focus.1 > 0 && !self.chance.one_in(4);
        let op = if focused { Op::OnView } else { self.chance.weighted(&OPS) };
        let op = match op {
            Op::OnView if self.views.is_empty() => Op::Open,
            op => op,
        };
        let op = if self.snapshots.is_empty() { Op::Make } else { op };
        self.run(op);
        while self.snapshots.len() > SNAPSHOTS {
            self.drop_snapshot();
        }
        if self.views.len() > VIEWS {
            self.drop_view();
        }
        self.check();
    }

    fn run(&mut self, op: Op) {
        let Self { chance, snapshots, .. } = self;
        match op {
            Op::Make => self.make(),
            Op::OnView => self.on_view(),
            Op::Open => self.open(),
            Op::Mutate => self.mutate(),
            Op::Write => self.write(),
            Op::Resize => self.resize(),
            Op::DropView => self.drop_view(),
            Op::DropSnapshot => self.drop_snapshot(),
            Op::PassOn => self.pass_on(),
            Op::Clone => {
                let Some(held) = Held::pick(chance, snapshots) else { return };
                let clone = Held::new(
                    chance,
                    Snapshot::clone(&held.real),
                    &format!("clone of {}", held.name),
                    &held.memory,
                );
                snapshots.push(Held { unreported: held.unreported, ..clone });
            }
            Op::TryClone => {
                let Some(held) = Held::pick(chance, snapshots) else { return };
                let what = format!("try_clone {}", held.name);
                let clone = held.call(chance, &what, || held.real.try_clone());
                if let Ok(clone) = allowed_or_kept(chance, clone) {
                    snapshots.push(Held::new(chance, clone, &what, &held.memory));
                }
            }
            Op::OpenOften => {
                let Some(held) = Held::pick(chance, snapshots) else { return };
                chance.note(format!("{}: open 60 views of {}", chance.step, held.name));
                held.settle();
                (0..60).for_each(|_| drop(held.real.view().expect("no call fails")));
                for _ in 0..8 {
                    let view =
                        chance.call(&format!("open one more view of {}", held.name), || held.real.view());
                    if let Ok(view) = allowed(chance, view) {
                        assert!(*view == *held.memory.bytes, "a view of {} does not show it", held.name);
                    }
                }
            }
            Op::Diff => {
                let (Some(old), Some(new)) = (Held::pick(chance, snapshots), Held::pick(chance, snapshots))
                else {
                    return;
                };
                let changes =
                    chance.call(&format!("diff {} and {}", old.name, new.name), || old.real.diff(&new.real));
                Held::reported(&[&old, &new], &changes);
                if let Ok(changes) = allowed_or_kept(chance, changes) {
                    assert_changes(changes, &old.memory.bytes, &new.memory.bytes);
                }
            }
            Op::ReadAt => {
                let Some(held) = Held::pick(chance, snapshots) else { return };
                let bytes = &held.memory.bytes;
                let (at, len) = (chance.below(bytes.len() + 2), chance.below(3 * page_size()));
                let mut buffer = vec![0xA5; len];
                let what = format!("read {len} bytes of {} at {at}", held.name);
                let read = held.call(chance, &what, || held.real.read_at(&mut buffer, at));
                if let Ok(read) = allowed_or_kept(chance, read) {
                    let expected = bytes.get(at..).unwrap_or(&[]);
                    assert!(
                        buffer[..read] == expected[..len.min(expected.len())],
                        "the read returned other bytes"
                    );
                }
            }
        }
    }

    fn check(&mut self) {
        let Self { chance, snapshots, views, .. } = self;
        snapshots.iter().for_each(Held::check_lengths);
        match self.checks {
            Checks::All(by) => {
                views.iter().for_each(Watched::check);
                // A check captures changes that are still to be captured. So they are sometimes left for
                // later.
                snapshots
                    .iter()
                    .filter(|held| !held.waits() || chance.one_in(2))
                    .for_each(|held| held.check(by));
            }
            Checks::One => {
                if let Some(held) = Held::pick(chance, snapshots) {
                    held.check(chance.pick(&[By::Reading, By::Viewing]));
                }
            }
            Checks::None => {}
        }
    }

    /// Checks all snapshots and views, and restores the views. No system call fails meanwhile.
    pub(super) fn finish(&mut self) {
        self.chance.step += 1;
        self.chance.note(format!("{}: the end", self.chance.step));
        let Self { chance, snapshots, views, .. } = self;
        views.iter_mut().for_each(|view| view.finish(chance, snapshots));
        for held in mem::take(snapshots) {
            held.check(By::Viewing);
            held.check(By::Reading);
        }
        views.clear();
    }

    fn make(&mut self) {
        let chance = &mut self.chance;
        let (len, value) = (chance.pick(&self.lengths), chance.pick(&[1, 2, 3]));
        let bytes = pattern(len, value);
        let made = match chance.below(6) {
            0 | 1 => {
                chance.call("zeroed", || Snapshot::zeroed(len)).map(|made| (made, "zeroed", vec![0; len]))
            }
            2 => {
                chance.call("from_slice", || Snapshot::from_slice(&bytes)).map(|made| (made, "bytes", bytes))
            }
            3 => chance
                .call("from_reader", || Snapshot::from_reader(&bytes[..]))
                .map(|made| (made, "stream", bytes)),
            4 => {
                let file = file(&bytes);
                chance.call("from_file", || Snapshot::from_file(file)).map(|made| (made, "file", bytes))
            }
            _ => {
                let file = file(&bytes);
                #[allow(unsafe_code)]
                // SAFETY: nobody else has the unnamed file, and it is not written again.
                let made = chance.call("map_file", || unsafe { Snapshot::map_file(&file) });
                made.map(|made| (made, "file in place", bytes))
            }
        };
        if let Ok((made, origin, bytes)) = allowed(chance, made) {
            let held = Held::new(chance, made, origin, &Memory::new(bytes));
            self.snapshots.push(held);
        }
    }

    fn open(&mut self) {
        let Self { chance, snapshots, .. } = self;
        let Some(held) = Held::pick(chance, snapshots) else { return };
        let opening = Opening::random(chance);
        let name = chance.name('v');
        let what = format!("open {name} of {}, {opening}", held.name);
        let view = held.call(chance, &what, || held.real.view_arc_with(&opening.options));
        match view {
            Ok(view) => self.views.push(Watched::new(view, name, &held.memory, &opening)),
            Err(error) => assert!(chance.failed || opening.may_fail(&error) || was_kept(&error), "{error}"),
        }
    }

    fn on_view(&mut self) {
        let Self { chance, snapshots, views, focus, .. } = self;
        let focused = views.iter().position(|view| focus.1 > 0 && view.name == focus.0);
        let at = focused.unwrap_or_else(|| chance.below(views.len()));
        let view = &mut views[at];
        if !view.step(chance, snapshots, focused.is_some()) {
            *focus = (view.name.clone(), FOCUS);
        }
    }

    /// Makes a snapshot of another one with some bytes changed.
    fn write(&mut self) {
        let Self { chance, snapshots, .. } = self;
        let Some(held) = Held::pick(chance, snapshots) else { return };
        let mut memory = Memory::clone(&held.memory);
        let len = memory.bytes.len();
        let mut changes = Vec::new();
        for _ in 0..chance.below(5) {
            let start = chance.below(len + 1);
            let longest = chance.pick(&[100, 3 * page_size(), 30 * page_size()]);
            let bytes = pattern(chance.below((len - start).min(longest) + 1), chance.pick(&[0, 1, 2, 3]));
            memory.bytes[start..start + bytes.len()].copy_from_slice(&bytes);
            changes.push((start, bytes));
        }
        let ranges: Vec<_> = changes.iter().map(|(start, bytes)| *start..start + bytes.len()).collect();
        let what = format!("write {ranges:?} of {}", held.name);
        let written = held.call(chance, &what, || held.real.with_changes(changes));
        if let Ok(written) = allowed_or_kept(chance, written) {
            let origin = format!("{} with changes", held.name);
            snapshots.push(Held::new(chance, written, &origin, &memory));
        }
    }

    /// Makes a snapshot of another one with another length.
    fn resize(&mut self) {
        let Self { chance, snapshots, .. } = self;
        let Some(held) = Held::pick(chance, snapshots) else { return };
        let mut memory = Memory::clone(&held.memory);
        let len = match chance.below(3) {
            0 => chance.below(memory.bytes.len() + 1),
            1 => memory.bytes.len(),
            _ => chance.below((MAX_PAGES + 10) * page_size()),
        };
        memory.content_len = chance.below(len + 1);
        memory.bytes.resize(len, 0);
        memory.bytes.resize(len.next_multiple_of(page_size()), 0);
        let what = format!("resize {} to {len} bytes, {} of content", held.name, memory.content_len);
        let resized = held.call(chance, &what, || held.real.resized(len, memory.content_len));
        if let Ok(resized) = allowed_or_kept(chance, resized) {
            let origin = format!("{}, resized", held.name);
            snapshots.push(Held::new(chance, resized, &origin, &memory));
        }
    }

    /// Opens a mutable view of a snapshot, or of a clone if views hold it.
    ///
    /// Runs operations on the view and ends it.
    fn mutate(&mut self) {
        let Self { chance, snapshots, .. } = self;
        let at = chance.below(snapshots.len());
        let Held { real, name, memory, unreported } = snapshots.swap_remove(at);
        let mut real = Arc::try_unwrap(real).unwrap_or_else(|shared| Snapshot::clone(&shared));
        if chance.one_in(2) {
            let origin = format!("clone of {name}");
            let earlier = Held::new(chance, real.clone(), &origin, &memory);
            snapshots.push(Held { unreported: Rc::clone(&unreported), ..earlier });
        }
        let opening = Opening::random(chance);
        let view_name = chance.name('m');
        let what = format!("open mutable {view_name} of {name}, {opening}");
        let is_due = unreported.get();
        let opened = chance.call(&what, || real.view_mut_with(&opening.options));
        let ended = opened.map(|view| {
            assert!(!is_due, "an earlier error was not reported");
            Self::live(chance, snapshots, Watched::new(view, view_name, &memory, &opening))
        });
        let (memory, reported) = match ended {
            Ok((written, reported)) => (Rc::new(written), reported),
            Err(error) => {
                assert_eq!(was_kept(&error), is_due, "{error}");
                assert!(chance.failed || opening.may_fail(&error) || is_due, "{error}");
                unreported.set(false);
                snapshots.push(Held { real: Arc::new(real), name, memory, unreported });
                return;
            }
        };
        let held = Held { real: Arc::new(real), name, memory, unreported: Rc::default() };
        assert!(chance.failed || !held.waits(), "a mutable view was not captured, without a failed call");
        match reported {
            Some(error) => assert!(was_kept(&error) && held.waits(), "{error}"),
            None => held.unreported.set(held.waits()),
        }
        if held.waits() {
            chance.note(format!("    changes wait in {}", held.name));
        }
        held.check_lengths();
        if chance.one_in(3) {
            held.check(By::Viewing);
        }
        snapshots.push(held);
    }

    /// Runs operations on a mutable view and ends it.
    ///
    /// Returns what it showed, and the error of its end if `commit` returned one.
    fn live(
        chance: &mut Chance,
        snapshots: &mut Vec<Held>,
        mut view: Watched<&mut Snapshot>,
    ) -> (Memory, Option<io::Error>) {
        let mut worked = true;
        for _ in 0..chance.below(10) {
            worked = view.step(chance, snapshots, !worked);
        }
        let written = view.shows.clone();
        let name = view.name.clone();
        let view = view.into_view();
        if chance.one_in(2) {
            (written, chance.call(&format!("commit {name}"), || view.commit()).err())
        } else {
            chance.drop(&name, view);
            (written, None)
        }
    }

    fn drop_view(&mut self) {
        let Self { chance, views, .. } = self;
        if !views.is_empty() {
            let view = views.swap_remove(chance.below(views.len()));
            view.check();
            chance.drop(&view.name.clone(), view);
        }
    }

    fn drop_snapshot(&mut self) {
        let Self { chance, snapshots, .. } = self;
        if !snapshots.is_empty() {
            let held = snapshots.swap_remove(chance.below(snapshots.len()));
            if !held.waits() {
                held.check(chance.pick(&[By::Reading, By::Viewing]));
            }
            chance.drop(&held.name.clone(), held);
        }
    }

    /// Passes a snapshot through a descriptor.
    #[cfg(all(target_os = "linux", not(memsnap_unix)))]
    fn pass_on(&mut self) {
        use std::os::unix::fs::FileExt as _;

        use crate::os::linux::SnapshotExt as _;

        let Self { chance, snapshots, .. } = self;
        let Some(held) = Held::pick(chance, snapshots) else { return };
        let sent = held.call(chance, &format!("to_fd {}", held.name), || held.real.to_fd());
        let Ok(sent) = allowed_or_kept(chance, sent) else { return };
        let sent = File::from(sent);
        let bytes = &held.memory.bytes;
        assert_eq!(sent.metadata().unwrap().len(), bytes.len() as u64);
        let mut read = vec![0xA5; bytes.len()];
        sent.read_exact_at(&mut read, 0).unwrap();
        assert!(read == *bytes, "the file of {} does not hold its bytes", held.name);
        let received = chance.call(&format!("from_fd of {}", held.name), || Snapshot::from_fd(sent.into()));
        if let Ok(received) = allowed(chance, received) {
            let origin = format!("received from {}", held.name);
            let received = Held::new(chance, received, &origin, &Memory::new(bytes.clone()));
            snapshots.push(received);
        }
    }

    #[cfg(not(all(target_os = "linux", not(memsnap_unix))))]
    fn pass_on(&mut self) {}
}

/// Checks that an error has a reason: a call failed in the operation, or an earlier failure is reported.
fn allowed_or_kept<T>(chance: &Chance, result: io::Result<T>) -> io::Result<T> {
    match result {
        Err(error) if was_kept(&error) => Err(error),
        result => allowed(chance, result),
    }
}

fn pattern(len: usize, value: u8) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (i, piece) in bytes.chunks_mut(page_size() / 8).enumerate() {
        // The third pattern has holes.
        if value != 3 || i / 8 % 3 == 0 {
            piece.fill(i.to_le_bytes()[0].wrapping_mul(value));
        }
    }
    bytes
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).expect("a temporary file can be written");
    file
}
