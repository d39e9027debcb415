//! A view, what it must show, and all operations on it.

use std::io::{self, ErrorKind};
use std::ops::Range;

use super::chance::Chance;
use super::held::{By, Held, Memory, was_kept};
use super::opening::{Opening, tracking};
use crate::engine::worktree::Worktree;
use crate::view::ProtectedView;
use crate::{Access, Changes, Snapshot, Tracking, View, page_size};

/// A view, and the bytes that it must show.
pub(super) struct Watched<S> {
    /// The view. It has the type of a view whose parts can be protected, even while no part is.
    ///
    /// `None` during some operations.
    view: Option<ProtectedView<S>>,
    pub(super) name: String,
    address: *const u8,
    pub(super) shows: Memory,
    /// The bytes that the view was opened on.
    root: Memory,
    /// The bytes at the last snapshot or restore of the view.
    synced: Vec<u8>,
    /// The access to each page.
    access: Vec<Access>,
    /// The greatest length of the view, in bytes.
    most: usize,
    /// Whether the view is logged, so that writes are reported.
    ///
    /// A logged view has the same type as the others here, so that the operations exist only once. No part of
    /// it is ever protected.
    logged: bool,
}

#[derive(Clone, Copy)]
enum ViewOp {
    Edit,
    Take,
    Restore,
    RestoreTo,
    RestoreExcluding,
    Grow,
    Zero,
    Discard,
    Protect,
    Unprotect,
    Changes,
    Track,
    Stats,
}

const OPS: [(usize, ViewOp); 13] = [
    (8, ViewOp::Edit),
    (6, ViewOp::Take),
    (3, ViewOp::Restore),
    (8, ViewOp::RestoreTo),
    (4, ViewOp::RestoreExcluding),
    (5, ViewOp::Grow),
    (3, ViewOp::Zero),
    (2, ViewOp::Discard),
    (4, ViewOp::Protect),
    (1, ViewOp::Unprotect),
    (2, ViewOp::Changes),
    (1, ViewOp::Track),
    (1, ViewOp::Stats),
];

/// The weights after a failure.
///
/// Operations that continue with the view as a failed restore left it are more frequent.
const OPS_AFTERWARDS: [(usize, ViewOp); 10] = [
    (2, ViewOp::Edit),
    (3, ViewOp::Take),
    (1, ViewOp::Restore),
    (3, ViewOp::RestoreTo),
    (2, ViewOp::RestoreExcluding),
    (6, ViewOp::Grow),
    (1, ViewOp::Zero),
    (1, ViewOp::Discard),
    (2, ViewOp::Unprotect),
    (3, ViewOp::Changes),
];

/// Returns a range of bytes of a view. It often consists of whole pages.
fn range(chance: &mut Chance, len: usize) -> Range<usize> {
    let page = page_size();
    let most = chance.pick(&[300, 12 * page, 12 * page, len + 1]);
    let start = chance.below(len + 1);
    let end = len.min(start + chance.below(most));
    if chance.one_in(3) { start..end } else { start / page * page..end.next_multiple_of(page).min(len) }
}

impl<S> Watched<S> {
    pub(super) fn new(view: View<S>, name: String, memory: &Memory, opening: &Opening) -> Self {
        let most = opening.reserve.next_multiple_of(page_size()).max(memory.bytes.len());
        let access = vec![Access::READ_WRITE; memory.pages()];
        let (address, shows, root, synced) =
            (view.as_ptr(), memory.clone(), memory.clone(), memory.bytes.clone());
        let view = Some(view.into_protected());
        let logged = opening.options.settings.logged.is_some();
        Self { view, name, address, shows, root, synced, access, most, logged }
    }

    fn view(&self) -> &ProtectedView<S> {
        self.view.as_ref().expect("the view is not in an operation")
    }

    fn view_mut(&mut self) -> &mut ProtectedView<S> {
        self.view.as_mut().expect("the view is not in an operation")
    }

    pub(super) fn into_view(self) -> ProtectedView<S> {
        self.view.expect("the view is not in an operation")
    }

    /// Checks that the view has the expected address, length, access and bytes.
    pub(super) fn check(&self) {
        let (view, name) = (self.view(), &self.name);
        assert_eq!(view.as_ptr(), self.address, "{name} moved");
        assert_eq!(view.len(), self.shows.bytes.len(), "the length of {name}");
        assert_eq!(content_len(view), self.shows.content_len, "the content of {name}");
        for (page, access) in self.access.iter().enumerate() {
            let range = page * page_size()..(page + 1) * page_size();
            let readable = (*access != Access::NONE).then(|| &self.shows.bytes[range.clone()]);
            let shown = view.get(range);
            assert_eq!(shown.is_some(), readable.is_some(), "access to page {page} of {name}");
            if shown != readable {
                let differing = shown.zip(readable).and_then(|(shown, expected)| {
                    let at = shown.iter().zip(expected).position(|(shown, expected)| shown != expected)?;
                    Some((at, shown[at], expected[at]))
                });
                panic!("page {page} of {name} differs: (offset, byte shown, byte expected) is {differing:?}");
            }
        }
    }

    /// Runs one random operation. Snapshots are added to `snapshots`.
    ///
    /// If the last operation `failed`, other operations are more likely. Returns whether the operation
    /// worked.
    pub(super) fn step(&mut self, chance: &mut Chance, snapshots: &mut Vec<Held>, failed: bool) -> bool {
        let op = match chance.weighted(if failed { &OPS_AFTERWARDS[..] } else { &OPS }) {
            ViewOp::Protect | ViewOp::Unprotect if self.logged => ViewOp::Edit,
            op => op,
        };
        let done = match op {
            ViewOp::Edit => {
                self.edit(chance);
                Ok(())
            }
            ViewOp::Take => self.take(chance, snapshots),
            ViewOp::Restore => self.restore(chance, &[]),
            ViewOp::RestoreTo => match Held::pick(chance, snapshots) {
                Some(target) => self.restore_to(chance, &target),
                None => Ok(()),
            },
            ViewOp::RestoreExcluding => {
                let len = self.shows.bytes.len();
                let ranges: Vec<_> = (0..1 + chance.below(3)).map(|_| range(chance, len)).collect();
                self.restore(chance, &ranges)
            }
            ViewOp::Grow => self.grow(chance),
            ViewOp::Zero => self.give_back(chance, false),
            ViewOp::Discard => self.give_back(chance, true),
            ViewOp::Protect => {
                let range = range(chance, self.access.len() * page_size());
                let access = chance.pick(&[Access::NONE, Access::NONE, Access::READ, Access::READ_WRITE]);
                self.protect(chance, range.start / page_size()..range.end.div_ceil(page_size()), access)
            }
            ViewOp::Unprotect => self.protect(chance, 0..self.access.len(), Access::READ_WRITE),
            ViewOp::Changes => self.changes(chance),
            ViewOp::Track => self.track(chance),
            ViewOp::Stats => self.stats(chance),
        };
        // Reading a page is an operation too, so not all pages are read after each step.
        if done.is_err() || chance.one_in(3) {
            self.check();
        }
        if done.is_err() && chance.one_in(6) {
            self.probe(chance, snapshots);
        }
        done.is_ok()
    }

    /// Checks that a snapshot holds what the view shows, and that nothing differs from it.
    ///
    /// No system call fails meanwhile.
    fn probe(&mut self, chance: &mut Chance, snapshots: &mut Vec<Held>) {
        let taken = self.view().take_snapshot().expect("no call fails");
        self.taken(chance, taken, snapshots).check(chance.pick(&[By::Reading, By::Viewing]));
        self.check();
        self.with_open(|view| {
            assert!(
                view.changes().expect("no call fails").is_empty(),
                "there are changes directly after a snapshot"
            );
        });
    }

    /// Checks and restores the view at the end of the script. No system call fails meanwhile.
    pub(super) fn finish(&mut self, chance: &mut Chance, snapshots: &mut Vec<Held>) {
        self.check();
        if chance.one_in(2) {
            self.probe(chance, snapshots);
        }
        for restore_to in [chance.one_in(2), chance.one_in(2)] {
            let fitting = snapshots.iter().filter(|held| held.memory.bytes.len() <= self.most);
            let fitting: Vec<_> = fitting.cloned().collect();
            if restore_to && let Some(target) = Held::pick(chance, &fitting) {
                target.settle();
                self.view_mut().restore_to(&target.real).expect("no call fails");
                self.restored(&target.memory, &[]);
            } else {
                self.view_mut().restore().expect("no call fails");
                self.restored(&self.root.clone(), &[]);
            }
            self.check();
        }
        self.probe(chance, snapshots);
    }

    /// Runs `operation` on the view as a slice, if no part is protected.
    fn with_open<T>(&mut self, operation: impl FnOnce(&View<S>) -> T) -> Option<T> {
        let view = self.view.take().expect("the view is not in an operation");
        let may_be_open = self.access.iter().all(|&access| access == Access::READ_WRITE);
        let (view, result) = match view.into_open() {
            Ok(open) => {
                assert!(may_be_open, "a protected view became a slice");
                let result = operation(&open);
                (open.into_protected(), Some(result))
            }
            Err(protected) => {
                assert!(!may_be_open, "a view without protected parts did not become a slice");
                (protected, None)
            }
        };
        self.view = Some(view);
        result
    }

    /// Writes at a random position, often near the end.
    fn edit(&mut self, chance: &mut Chance) {
        let len = self.shows.bytes.len();
        if len == 0 {
            return;
        }
        let page = page_size();
        let value = chance.pick(&[0, 1, 2, 3]);
        let start =
            if chance.one_in(3) { len.saturating_sub(1 + chance.below(4 * page)) } else { chance.below(len) };
        let run = |pages: usize| start / page * page..len.min((start / page + pages) * page);
        let parts: Vec<_> = match chance.below(7) {
            0..3 => vec![start..len.min(start + 1 + chance.below(300))],
            3 | 4 => vec![run(1 + chance.below(20))],
            5 => vec![run(60 + chance.below(60))],
            _ => (0..len).step_by((1 + chance.below(5)) * page).map(|at| at..at + 1).collect(),
        };
        let (first, last) = (parts[0].start, parts[parts.len() - 1].end);
        chance.note(format!(
            "{}: edit {}: {value} in {} parts of {first}..{last}",
            chance.step,
            self.name,
            parts.len()
        ));
        for part in parts {
            let mut at = part.start;
            while at < part.end {
                let end = part.end.min((at / page + 1) * page);
                let writable = self.access[at / page] == Access::READ_WRITE;
                let bytes = self.view_mut().get_mut(at..end);
                assert_eq!(bytes.is_some(), writable, "access to page {}", at / page);
                if let Some(bytes) = bytes {
                    bytes.fill(value);
                    self.shows.bytes[at..end].fill(value);
                    self.report(at..end);
                }
                at = end;
            }
        }
        if chance.one_in(3) {
            self.report(range(chance, len));
        }
    }

    /// Reports bytes of a logged view as written.
    fn report(&self, range: Range<usize>) {
        if self.logged
            && let Some(tree) = &self.view().tree
        {
            tree.report(&range);
        }
    }

    fn taken(&mut self, chance: &mut Chance, taken: Snapshot, snapshots: &mut Vec<Held>) -> Held {
        self.synced.clone_from(&self.shows.bytes);
        let held = Held::new(chance, taken, &format!("taken of {}", self.name), &self.shows);
        snapshots.push(held.clone());
        held
    }

    fn take(&mut self, chance: &mut Chance, snapshots: &mut Vec<Held>) -> io::Result<()> {
        let taken = chance.call(&format!("take {}", self.name), || self.view().take_snapshot());
        let taken = allowed(chance, taken)?;
        self.taken(chance, taken, snapshots);
        Ok(())
    }

    fn restore(&mut self, chance: &mut Chance, keep: &[Range<usize>]) -> io::Result<()> {
        let what = format!("restore {}, excluding {keep:?}", self.name);
        let view = self.view_mut();
        let restored = match keep {
            [] => chance.call(&what, || view.restore()),
            _ => chance.call(&what, || view.restore_excluding(keep)),
        };
        let root = self.root.clone();
        self.after_restore(chance, restored, &root, keep)
    }

    pub(super) fn restore_to(&mut self, chance: &mut Chance, target: &Held) -> io::Result<()> {
        let what = format!("restore {} to {}", self.name, target.name);
        let view = self.view_mut();
        let restored = target.call(chance, &what, || view.restore_to(&target.real));
        if target.memory.bytes.len() > self.most {
            let error = restored.expect_err("the view has no room for this length");
            assert!(chance.failed || error.kind() == ErrorKind::InvalidInput || was_kept(&error), "{error}");
            self.check();
            return Err(error);
        }
        self.after_restore(chance, restored, &target.memory, &[])
    }

    fn after_restore(
        &mut self,
        chance: &Chance,
        restored: io::Result<()>,
        target: &Memory,
        keep: &[Range<usize>],
    ) -> io::Result<()> {
        match restored {
            Ok(()) => self.restored(target, keep),
            Err(error) if was_kept(&error) => return Err(error),
            Err(error) => {
                assert!(chance.failed, "an error without a failed call: {error}");
                self.torn(target, keep);
                return Err(error);
            }
        }
        Ok(())
    }

    fn restored(&mut self, target: &Memory, keep: &[Range<usize>]) {
        let before = std::mem::replace(&mut self.shows, target.clone());
        for range in keep {
            let range = range.start..range.end.min(target.bytes.len());
            if !range.is_empty() {
                self.shows.bytes[range.clone()].copy_from_slice(&before.bytes[range]);
            }
        }
        self.synced.clone_from(&target.bytes);
        self.access = vec![Access::READ_WRITE; target.pages()];
    }

    /// Returns whether a failure left the view without memory, and restores it in this case.
    ///
    /// This happens on Windows if there is no memory for zeroes either. Only a restore works on such a view.
    fn was_lost(&mut self) -> bool {
        let lost = self.view().tree.as_ref().is_some_and(|tree| tree.check_usable().is_err());
        if lost {
            assert!(self.view().is_empty(), "a view without memory has bytes");
            assert!(self.view().take_snapshot().is_err(), "a snapshot of a view without memory was taken");
            self.view_mut().restore().expect("no call fails");
            self.restored(&self.root.clone(), &[]);
        }
        lost
    }

    /// Records what the view shows after a failed restore to `target`.
    ///
    /// Outside of `keep`, it may show any bytes.
    fn torn(&mut self, target: &Memory, keep: &[Range<usize>]) {
        if self.was_lost() {
            return;
        }
        let name = self.name.clone();
        let (len, content_len) = (self.view().len(), content_len(self.view()));
        let before = &self.shows.bytes;
        assert!(len == before.len() || len == target.bytes.len(), "{name} is {len} bytes long");
        assert!(content_len <= len, "the content of {name} is longer than it is");
        let (mut bytes, mut access) = (Vec::with_capacity(len), Vec::new());
        for start in (0..len).step_by(page_size()) {
            let range = start..start + page_size();
            let writable = self.view_mut().get_mut(range.clone()).is_some();
            match self.view().get(range.clone()) {
                Some(shown) => {
                    access.push(if writable { Access::READ_WRITE } else { Access::READ });
                    bytes.extend_from_slice(shown);
                }
                None => {
                    // A restore makes all pages accessible before it changes any of them. So this page is
                    // unchanged.
                    access.push(Access::NONE);
                    bytes.extend_from_slice(&self.shows.bytes[range]);
                }
            }
        }
        for range in keep {
            let range = range.start..range.end.min(len).min(target.bytes.len());
            if !range.is_empty() {
                let stayed = bytes[range.clone()] == self.shows.bytes[range.clone()];
                assert!(
                    stayed,
                    "a failed restore of {name} changed bytes among {range:?}, which it excludes"
                );
            }
        }
        self.shows = Memory { bytes, content_len };
        self.access = access;
    }

    fn grow(&mut self, chance: &mut Chance) -> io::Result<()> {
        let (page, content, most) = (page_size(), self.shows.content_len, self.most);
        let len = match chance.below(12) {
            0 => chance.below(content + 1),
            1 => most + 1 + chance.below(page),
            2..6 => most,
            6 => content + chance.below(100),
            _ => content + chance.below(most.saturating_sub(content).min(30 * page) + 1),
        };
        let what =
            format!("grow {} from {content} (of {}) to {len} bytes", self.name, self.shows.bytes.len());
        let view = self.view_mut();
        let grown = chance.call(&what, || view.grow(len));
        if len < content || len.next_multiple_of(page) > most {
            let error = grown.expect_err("the view cannot have this length");
            assert!(chance.failed || error.kind() == ErrorKind::InvalidInput, "{error}");
            return Err(error);
        }
        allowed(chance, grown)?;
        self.shows.content_len = len;
        self.shows.bytes.resize(len.next_multiple_of(page).max(self.shows.bytes.len()), 0);
        self.access.resize(self.shows.pages(), Access::READ_WRITE);
        if chance.one_in(2) {
            self.edit(chance);
        }
        Ok(())
    }

    /// Zeroes a range, or discards it.
    fn give_back(&mut self, chance: &mut Chance, discard: bool) -> io::Result<()> {
        let range = range(chance, self.shows.bytes.len());
        let what = format!("{} {range:?} of {}", if discard { "discard" } else { "zero" }, self.name);
        let view = self.view_mut();
        let bytes = range.clone();
        let done = chance.call(&what, || if discard { view.discard(bytes) } else { view.zero(bytes) });
        let mut pages = range.start / page_size()..range.end.div_ceil(page_size());
        if !range.is_empty() && pages.any(|page| self.access[page] != Access::READ_WRITE) {
            let error = done.expect_err("protected bytes must not change");
            assert!(chance.failed || error.kind() == ErrorKind::PermissionDenied, "{error}");
            return Err(error);
        }
        allowed(chance, done).inspect_err(|_| _ = self.was_lost())?;
        self.shows.bytes[range.clone()].fill(0);
        let both = range.start..range.end.min(self.synced.len());
        if discard && !both.is_empty() {
            self.shows.bytes[both.clone()].copy_from_slice(&self.synced[both]);
        }
        Ok(())
    }

    fn protect(&mut self, chance: &mut Chance, pages: Range<usize>, access: Access) -> io::Result<()> {
        let range = pages.start * page_size()..pages.end * page_size();
        let what = format!("protect {range:?} of {}: {access:?}", self.name);
        let view = self.view_mut();
        let protected = chance.call(&what, || view.protect(range, access));
        let protected = allowed(chance, protected);
        // After an error, no access to these pages is allowed.
        self.access[pages].fill(if protected.is_ok() { access } else { Access::NONE });
        protected
    }

    fn changes(&mut self, chance: &mut Chance) -> io::Result<()> {
        let (synced, shows) = (self.synced.clone(), self.shows.bytes.clone());
        let what = format!("changes of {}", self.name);
        let changes = self.with_open(|view| {
            let changes = chance.call(&what, || view.changes());
            allowed(chance, changes).map(|changes| assert_changes(changes, &synced, &shows))
        });
        changes.unwrap_or(Ok(()))
    }

    fn track(&mut self, chance: &mut Chance) -> io::Result<()> {
        let tracking = tracking(chance);
        let what = format!("track {} by {tracking}", self.name);
        let view = self.view_mut();
        let tracked = chance.call(&what, || view.set_tracking(tracking));
        match &tracked {
            Err(error) if error.kind() == ErrorKind::Unsupported && tracking != Tracking::Auto => tracked,
            _ => allowed(chance, tracked),
        }
    }

    fn stats(&mut self, chance: &mut Chance) -> io::Result<()> {
        let what = format!("stats of {}", self.name);
        let stats = chance.call(&what, || Ok(self.view().stats()))?;
        assert_eq!(
            stats.mapped,
            self.shows.bytes.len(),
            "the mapped length in the statistics of {}",
            self.name
        );
        Ok(())
    }
}

fn content_len<S, A>(view: &View<S, A>) -> usize {
    view.tree.as_ref().map_or(0, Worktree::content_len)
}

/// Checks that an error has a reason: a call failed in the operation.
pub(super) fn allowed<T>(chance: &Chance, result: io::Result<T>) -> io::Result<T> {
    if let Err(error) = &result {
        assert!(chance.failed, "an error without a failed call: {error}");
    }
    result
}

/// Checks the ranges of the changes, and their old and new bytes.
pub(super) fn assert_changes(changes: Changes<'_>, old: &[u8], new: &[u8]) {
    let page = page_size();
    let page_of = |bytes: &[u8], at: usize| bytes.get(at..at + page).unwrap_or(&[]).to_vec();
    let mut expected: Vec<Range<usize>> = Vec::new();
    for at in (0..old.len().max(new.len())).step_by(page) {
        if page_of(old, at) != page_of(new, at) {
            match expected.last_mut() {
                Some(last) if last.end == at => last.end += page,
                _ => expected.push(at..at + page),
            }
        }
    }
    assert_eq!(changes.ranges(), expected, "the ranges of the changes");
    for change in changes {
        for part in change.pages() {
            assert!(part.old == page_of(old, part.offset), "the old bytes of page {}", part.offset / page);
            assert!(part.new == page_of(new, part.offset), "the new bytes of page {}", part.offset / page);
        }
    }
}
