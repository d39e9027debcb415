//! The thread that owns the views: in each round, it makes others write to them, and then calls them.

use std::collections::VecDeque;
use std::sync::{Arc, RwLock};
use std::thread::{self, Scope};
use std::time::Duration;

use memsnap::{HugePages, Populate, Snapshot, Tracking, ViewOptions, page_size};

use crate::account::{self, Kind, VIEWS, WRITES, at_least, count, done, has, is_active, refused};
use crate::common::linux::ksm;
use crate::common::script::Random;
use crate::common::unix::Child;
use crate::common::{noise, pattern};
use crate::ring::Pins;
use crate::subject::{AllShown, Held, Shown, Subject, check_held, some_range, write};
use crate::writers::{Job, Lanes, Peers};
use crate::{forks, nuisances};

/// The number of pages of a small view.
const SMALL: usize = 150;

/// The lengths of the large views, over bytes and over zeroes.
const LARGE: [usize; 2] = [4 << 20, 16 << 20];

/// The greatest number of children at a time.
const CHILDREN: usize = 2;

pub(crate) struct Rounds {
    tracking: Tracking,
    random: Random,
    shown: AllShown,
    owned: Vec<Subject<Snapshot>>,
    /// Snapshots of mutable views that ended.
    committed: Vec<Held>,
    lanes: Lanes,
    pins: Option<Pins>,
    pinned: Option<Pinned>,
    children: VecDeque<Child>,
    rounds: usize,
}

/// Pages of a view that are registered as a fixed buffer, and how many rounds they stay registered.
struct Pinned {
    index: usize,
    range: std::ops::Range<usize>,
    rounds: usize,
}

impl Rounds {
    /// Starts all other threads.
    pub(crate) fn new<'scope>(
        scope: &'scope Scope<'scope, '_>,
        tracking: Tracking,
        peers: &'scope Peers,
        mut seed: impl FnMut() -> u64,
    ) -> Self {
        let shown = Arc::new(RwLock::new(vec![Shown::default(); VIEWS]));
        let pins = Pins::new().map_err(|error| refused(Kind::Fixed, &error)).ok();
        let lanes = Lanes::start(scope, 4, peers);
        let mut rounds = Self {
            tracking,
            random: Random(seed()),
            shown,
            owned: Vec::new(),
            committed: Vec::new(),
            lanes,
            pins,
            pinned: None,
            children: VecDeque::new(),
            rounds: 0,
        };
        let large = LARGE.map(|len| len / page_size());
        for (name, pages, bytes) in [
            ("small view of bytes", SMALL, Some(pattern(SMALL, 1))),
            ("small view of zeroes", SMALL, None),
            ("large view of bytes", large[0], Some(noise(LARGE[0], 5))),
            ("large view of zeroes", large[1], None),
        ] {
            let snapshot = match &bytes {
                Some(bytes) => Snapshot::from_slice(bytes).unwrap(),
                None => Snapshot::zeroed(pages * page_size()).unwrap(),
            };
            let root = bytes.unwrap_or_else(|| vec![0; pages * page_size()]);
            rounds.open(rounds.owned.len(), name, snapshot, root.into());
        }
        for _ in 0..2 {
            let seed = seed();
            scope.spawn(move || nuisances::run(seed));
        }
        let (shown, seeds) = (Arc::clone(&rounds.shown), (seed(), seed()));
        scope.spawn(move || nuisances::look(&shown, seeds.0));
        scope.spawn(move || forks::elsewhere(tracking, seeds.1));
        rounds
    }

    fn options(&mut self) -> ViewOptions {
        let mut options = ViewOptions::new();
        options.tracking(self.tracking);
        match self.random.below(6) {
            0 => options.keep_resident(0),
            1 => options.populate(Populate::Write),
            2 => options.populate(Populate::Read),
            3 | 4 => options.huge_pages(HugePages::Advise),
            _ => options.pinned(self.tracking == Tracking::Auto),
        };
        options
    }

    fn open(&mut self, index: usize, name: &'static str, snapshot: Snapshot, root: Arc<[u8]>) {
        let options = self.options();
        let view = snapshot.into_view_with(&options).unwrap();
        let most_held = if root.len() >= LARGE[0] { 2 } else { 4 };
        self.owned.push(Subject::new((index, name), view, root, most_held, &self.shown));
    }

    /// Runs rounds with the other views and one mutable view, from its opening to its end.
    pub(crate) fn epoch(&mut self) {
        let options = self.options();
        let mut snapshot = Snapshot::zeroed(2 * SMALL * page_size()).unwrap();
        let (view, root) = (snapshot.view_mut_with(&options).unwrap(), vec![0; 2 * SMALL * page_size()]);
        let mut mutable = Subject::new((VIEWS - 1, "mutable view"), view, root.into(), 2, &self.shown);
        for round in 0..self.random.below(25) {
            if round % 6 == 0 {
                self.choose_active();
            }
            assert!(!account::is_over(), "another thread has failed");
            self.round(&mut mutable);
        }
        if self.pinned.as_ref().is_some_and(|pinned| pinned.index == mutable.index()) {
            self.unpin();
        }
        let bytes: Arc<[u8]> = mutable.bytes();
        mutable.check("in the end");
        let held = std::mem::take(&mut mutable.held);
        let view = mutable.retire();
        match self.random.below(2) {
            0 => view.commit().unwrap(),
            _ => drop(view),
        }
        done(Kind::Commit);
        self.committed.push((snapshot, bytes));
        self.committed.extend(held.into_iter().next());
        self.committed.iter().for_each(|held| check_held("mutable view that ended", held, &mut self.random));
        while self.committed.len() > 3 {
            let dropped = self.random.below(self.committed.len());
            self.committed.swap_remove(dropped);
        }
        if self.random.below(2) == 0 {
            self.reopen();
        }
    }

    /// Replaces one of the views by a view of another snapshot.
    fn reopen(&mut self) {
        let i = self.random.below(self.owned.len());
        self.unpin();
        let mut subject = self.owned.swap_remove(i);
        let (index, name, held) = (subject.index(), subject.name, subject.held.pop());
        let view = subject.retire();
        let (snapshot, root) = held.unwrap_or_else(|| (view.take_snapshot().unwrap(), view.to_vec().into()));
        drop(view);
        self.open(index, name, snapshot, root);
    }

    fn choose_active(&mut self) {
        let first = self.rounds == 0;
        let random = &mut self.random;
        let mut allowed = |&kind: &Kind| match kind {
            // While memory is locked, no view is armed. So this kind is rare.
            Kind::Lock => random.below(5) == 0,
            _ => first || random.below(4) > 0,
        };
        let kinds: Vec<_> = Kind::ALL.iter().copied().filter(&mut allowed).collect();
        nuisances::unlocked(|| account::set_active(kinds.into_iter()));
        at_least(Kind::Merged, usize::try_from(ksm::merged_pages()).unwrap());
        at_least(Kind::MergedZero, usize::try_from(ksm::zero_pages()).unwrap());
    }

    fn round(&mut self, mutable: &mut Subject<&mut Snapshot>) {
        self.rounds += 1;
        self.pin(mutable);
        self.write();
        self.settle();
        let strangers: Vec<Held> =
            self.owned.iter().flat_map(|subject| subject.held.last().cloned()).collect();
        for subject in &mut self.owned {
            if subject.view.len() < LARGE[0] || self.random.below(4) == 0 {
                subject.act(&mut self.random, &strangers);
            }
        }
        mutable.act(&mut self.random, &strangers);
        match self.random.below(8) {
            0 => mutable.check_held(&mut self.random),
            1 => {
                let i = self.random.below(self.owned.len());
                self.owned[i].check_held(&mut self.random);
            }
            2 => {
                if self.children.len() == CHILDREN {
                    forks::join(self.children.pop_front().unwrap());
                }
                let seed = self.random.below(usize::MAX) as u64;
                self.children.push_back(forks::inherit(&mut self.owned, mutable, &self.shown, seed));
            }
            _ => {}
        }
    }

    /// Makes all threads and processes write.
    fn write(&mut self) {
        let mut shown = write(&self.shown);
        let ways: Vec<_> =
            Kind::ALL[WRITES].iter().copied().filter(|&kind| kind != Kind::Fixed && has(kind)).collect();
        let (random, mut jobs, mut fixed) = (&mut self.random, Vec::new(), Vec::new());
        for (index, view) in shown.iter_mut().enumerate().filter(|(_, view)| !view.bytes.is_empty()) {
            view.writes.clear();
            if let Some(pinned) = self.pinned.as_ref().filter(|pinned| pinned.index == index) {
                fixed = noise(pinned.range.len(), self.rounds as u64);
                view.bytes[pinned.range.clone()].copy_from_slice(&fixed);
                view.writes.push((pinned.range.clone(), Kind::Fixed));
            }
            for _ in 0..random.below(8) {
                let kind = ways[random.below(ways.len())];
                let mut range = some_range(random, view.bytes.len());
                if kind == Kind::Direct {
                    range = range.start / page_size() * page_size()..range.end.next_multiple_of(page_size());
                }
                if view.writes.iter().any(|(taken, _)| taken.start < range.end && range.start < taken.end) {
                    continue;
                }
                let bytes = match random.below(5) {
                    0 => noise(range.len(), random.below(1 << 30) as u64),
                    // Zeroes are more frequent, since KSM merges them into the zero page.
                    value => vec![value.saturating_sub(2).to_le_bytes()[0]; range.len()],
                };
                view.bytes[range.clone()].copy_from_slice(&bytes);
                jobs.push(Job { kind, address: view.address + range.start, bytes });
                view.writes.push((range, kind));
            }
        }
        let pins = &mut self.pins;
        self.lanes.write(jobs, || {
            if let Some(pins) = pins.as_mut().filter(|_| !fixed.is_empty()) {
                pins.write(&fixed).unwrap();
                done(Kind::Fixed);
            }
        });
    }

    /// Sometimes waits until the kernel has swapped out or merged written pages, before they are captured.
    fn settle(&mut self) {
        let patience = Duration::from_millis(1);
        match self.random.below(8) {
            0 if has(Kind::Merge) && is_active(Kind::Merge) => {
                // KSM merges a page once it was the same in two scans.
                account::views().iter().for_each(|view| drop(crate::raw::advise(view, libc::MADV_MERGEABLE)));
                let start = ksm::full_scans();
                (0..300).take_while(|_| ksm::full_scans() < start + 3).for_each(|_| thread::sleep(patience));
            }
            1 | 2 if is_active(Kind::PageOut) => {
                let start = count(Kind::PageOut);
                (0..100)
                    .take_while(|_| count(Kind::PageOut) < start + 5)
                    .for_each(|_| thread::sleep(patience));
            }
            _ => {}
        }
    }

    /// Pins pages of a view for some rounds.
    ///
    /// Pins them again if the memory of the view may have been replaced.
    fn pin(&mut self, mutable: &mut Subject<&mut Snapshot>) {
        if let Some(mut pinned) = self.pinned.take() {
            pinned.rounds -= 1;
            let i = self.owned.iter().position(|subject| subject.index() == pinned.index);
            let replaced = i.map_or(&mut mutable.replaced, |i| &mut self.owned[i].replaced);
            if pinned.rounds == 0 {
                self.release(&pinned);
                return;
            }
            if std::mem::take(replaced) {
                self.release(&pinned);
                self.register(&pinned);
            }
            self.pinned = Some(pinned);
            return;
        }
        if self.pins.is_none() || self.random.below(6) > 0 {
            return;
        }
        let rounds = 2 + self.random.below(6);
        // While a view is written in place, this pins pages of the file that becomes the base of a snapshot.
        let in_place = mutable.is_in_place() && self.random.below(2) == 0;
        let i = if in_place { self.owned.len() } else { self.random.below(self.owned.len() + 1) };
        let (index, len) = match self.owned.get_mut(i) {
            Some(subject) => {
                subject.replaced = false;
                (subject.index(), subject.view.len())
            }
            None => {
                mutable.replaced = false;
                (mutable.index(), mutable.view.len())
            }
        };
        let start = self.random.below(len / page_size() - 4) * page_size();
        let pinned = Pinned { index, range: start..start + (1 + self.random.below(4)) * page_size(), rounds };
        self.register(&pinned);
        self.pinned = Some(pinned);
    }

    fn register(&mut self, pinned: &Pinned) {
        let start = write(&self.shown)[pinned.index].address + pinned.range.start;
        self.pins.as_mut().unwrap().pin(start..start + pinned.range.len()).unwrap();
    }

    /// Unpins the pages, after marking them as dirty.
    ///
    /// The kernel does not mark pages as dirty when io_uring writes to a fixed buffer. Once such a page is
    /// unpinned, the kernel may discard it with all that was written, if its page-table entry was only used
    /// for reading. Storing the byte that is there already marks the page while it is still pinned.
    fn release(&mut self, pinned: &Pinned) {
        let shown = write(&self.shown);
        let view = &shown[pinned.index];
        for start in pinned.range.clone().step_by(page_size()) {
            crate::raw::store(view.address + start, &view.bytes[start..start + 1]);
        }
        self.pins.as_mut().unwrap().unpin().unwrap();
    }

    fn unpin(&mut self) {
        if let Some(pinned) = self.pinned.take() {
            self.release(&pinned);
        }
    }

    /// Checks all views and snapshots, and makes the other threads end. Returns the number of rounds.
    pub(crate) fn end(mut self) -> usize {
        for subject in &self.owned {
            subject.check("in the end");
            subject.check_held(&mut self.random);
        }
        self.children.drain(..).for_each(forks::join);
        account::stop();
        self.rounds
    }
}
