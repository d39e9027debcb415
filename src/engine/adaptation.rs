//! Decides when a view moves its image into huge pages. `adapt.rs` moves the regions.
//!
//! To find the written pages, the kernel walks over the page-table entries of the view: 512 entries for 2 MiB, or one
//! if the 2 MiB are a huge page. If much of the view is in memory, taking or restoring a snapshot of few changed pages
//! spends most of its time on this walk. [`Adaptation`] adds up the times of the walks. Once the sum exceeds the
//! expected time of a *pass*, a pass begins: the view visits its regions of 2 MiB, some of them at the end of each
//! snapshot and restore. For each region, the kernel moves the pages of the file into a huge page.
//!
//! A pass skips regions where a move would save no time or would take memory:
//!
//! - regions with a private page: the view would still need an entry for each page
//! - regions that are in a huge page already
//! - regions of which few pages are in memory
//! - regions with many holes in their part of the file
//! - regions that do not show a single file in full
//!
//! All views of the file share its huge pages, in this process and in others. Views do not coordinate: if two views
//! move the same region at once, the kernel serializes the calls, and the second finds the region moved.

use std::time::Duration;

use crate::engine::cost::{nanoseconds, observe};
use crate::engine::decide::decide;
use crate::pages::PageRange;
use crate::stats::ViewCosts;
use crate::sys::{LARGE, Mapping, huge_region};

/// The nanoseconds of a search that system calls take, apart from the walk.
const CALLS: u64 = 10_000;

/// The nanoseconds that moving a region into a huge page is assumed to take, until a move is measured.
const MOVE: u64 = 1_000_000;

/// The most nanoseconds that a step should take. Each snapshot or restore does at most one step.
const STEP: u64 = 1_000_000;

/// The nanoseconds above which the visit to a region is slow.
///
/// After a slow visit, the machine likely has no free huge pages.
const SLOW: u64 = 2_000_000;

/// The length of a pause, as a multiple of the time of a visit.
///
/// After a slow visit, and after a refusal, the pass pauses until walks have taken this many times as long as the
/// visit.
const PAUSE: u64 = 16;

/// The most nanoseconds of a visit that count for the length of a pause.
///
/// A visit that takes longer was probably interrupted, so its time says little about the next region.
const SLOWEST: u64 = 8_000_000;

/// The number of refusals, without a move in between, after which a pass ends.
///
/// After that many refusals, the kernel will likely refuse the other regions too.
const REFUSALS: u32 = 8;

/// The number of searches after a pass by which the view measures how much time the pass saves.
const TRIAL: u32 = 16;

/// Decides when a view moves its image into huge pages, and keeps track of the pass.
pub(crate) struct Adaptation {
    /// The number of pages in a region, or `None` if the view never moves a region.
    region: Option<usize>,
    /// The nanoseconds that walks have taken since the last pass began or ended.
    walked: u64,
    /// The nanoseconds of a walk, as a moving average.
    walk: u64,
    /// The nanoseconds that moving a region into a huge page takes, as a moving average.
    cost: u64,
    /// The nanoseconds that the last pass took for each region, including the regions that it skipped.
    visit: u64,
    /// A pass begins once walks have taken this many times the expected time of a pass.
    ///
    /// Each pass that saves little time doubles the factor. Each other pass halves it, down to 1.
    factor: u64,
    /// The pass that has begun and not ended.
    pass: Option<Box<Pass>>,
    /// The value of `walk` when the last pass began, and the number of searches until `walk` is compared with it.
    ///
    /// The comparison shows how much time the pass saves. `None` after it was made.
    trial: Option<(u64, u32)>,
}

/// A pass over the regions of a view.
#[derive(Default)]
struct Pass {
    /// The number of the next region to visit.
    next: usize,
    /// The number of regions that were moved.
    moved: usize,
    /// The number of refusals since the last region that was moved.
    refused: u32,
    /// The nanoseconds that the pass has taken so far.
    spent: u64,
    /// The value of [`Adaptation::walked`] until which the pass pauses.
    resume: u64,
    /// The value of [`Adaptation::walk`] when the pass began.
    walk: u64,
}

/// The outcome of a visit to a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Visit {
    /// The region is in a huge page now.
    Moved,
    /// The region should not be moved, or cannot be.
    Skipped,
    /// The kernel failed to move the region.
    Refused,
}

impl Adaptation {
    /// The state of a view that shows `mapping`, whose address never changes, before its first pass.
    pub(crate) fn new(mapping: &Mapping, may_adapt: bool) -> Self {
        let is_fit = |&pages: &usize| {
            let region = PageRange::new(0, pages).bytes().len();
            may_adapt && mapping.len() >= LARGE && mapping.as_ptr().addr().get().is_multiple_of(region)
        };
        Self::of(huge_region().filter(is_fit))
    }

    /// The state before the first pass, with regions of `region` pages.
    fn of(region: Option<usize>) -> Self {
        Self { region, walked: 0, walk: 0, cost: MOVE, visit: MOVE, factor: 1, pass: None, trial: None }
    }

    /// The number of pages in a region, or `None` if the view never moves anything.
    pub(super) fn region(&self) -> Option<usize> {
        self.region
    }

    /// Forgets everything except the cost of a move, after all of the view was mapped anew.
    pub(crate) fn mapped_anew(&mut self) {
        let cost = self.cost;
        *self = Self { cost, ..Self::of(self.region) };
    }

    /// Notes how long a search for written pages took.
    pub(crate) fn searched(&mut self, took: Duration) {
        if self.region.is_none() {
            return;
        }
        let took = nanoseconds(took).saturating_sub(CALLS);
        self.walked = self.walked.saturating_add(took);
        if self.walk == 0 {
            self.walk = took;
        } else {
            observe(&mut self.walk, took);
        }
        if let Some((before, left)) = &mut self.trial {
            *left -= 1;
            if *left == 0 {
                let saves_time = self.walk <= *before / 4 * 3;
                self.factor =
                    if saves_time { (self.factor / 2).max(1) } else { self.factor.saturating_mul(2) };
                self.trial = None;
            }
        }
    }

    /// Returns whether a pass over `regions` regions may go on. Begins a pass if one is due.
    pub(super) fn may_step(&mut self, regions: usize) -> bool {
        if let Some(pass) = &self.pass {
            return decide(self.walked >= pass.resume);
        }
        let expected = self.factor.saturating_mul(self.visit).saturating_mul(regions as u64);
        // No pass begins before the time that the last one saves is known.
        if regions == 0 || !decide(self.trial.is_none() && self.walked > expected) {
            return false;
        }
        self.walked = 0;
        self.trial = None;
        self.pass = Some(Box::new(Pass { walk: self.walk, ..Pass::default() }));
        true
    }

    /// Notes the outcome of the visit to the next region, which took `took` nanoseconds.
    ///
    /// Returns whether the pass may go on without a pause.
    pub(super) fn visited(&mut self, visit: Visit, took: u64) -> bool {
        let Some(pass) = &mut self.pass else { return false };
        pass.next += 1;
        pass.spent += took;
        match visit {
            Visit::Moved => {
                (pass.moved, pass.refused) = (pass.moved + 1, 0);
                observe(&mut self.cost, took);
            }
            Visit::Skipped => {}
            Visit::Refused => pass.refused += 1,
        }
        let pauses = visit == Visit::Refused || took > SLOW;
        if pauses {
            pass.resume = self.walked.saturating_add(took.min(SLOWEST) * PAUSE);
        }
        !pauses
    }

    /// Whether a step that has taken `step` nanoseconds so far likely has time for another region.
    ///
    /// `moved` is whether the step has moved a region already.
    pub(super) fn has_time(&self, step: u64, moved: bool) -> bool {
        if moved { step + self.cost <= STEP } else { step <= STEP / 4 }
    }

    /// Returns the next region of the pass over `regions` regions.
    ///
    /// If there is none, ends the pass and returns the number of regions that it moved as an `Err`.
    pub(super) fn next(&mut self, regions: usize) -> Result<usize, usize> {
        let Some(pass) = &self.pass else { return Err(0) };
        if pass.next < regions && pass.refused < REFUSALS {
            return Ok(pass.next);
        }
        self.visit = (pass.spent / pass.next.max(1) as u64).max(1);
        self.walked = 0;
        self.trial = Some((pass.walk, TRIAL));
        let moved = pass.moved;
        self.pass = None;
        Err(moved)
    }

    /// Makes the next step due.
    #[cfg(all(test, unix))]
    pub(crate) fn make_step_due(&mut self) {
        self.walked = u64::MAX;
        self.factor = 1;
    }

    /// Returns `costs` with the costs that this type measures filled in.
    pub(crate) fn add_to(&self, costs: ViewCosts) -> ViewCosts {
        match self.region {
            Some(_) => ViewCosts { move_to_huge_page: self.cost, spent_on_walks: self.walked, ..costs },
            None => costs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGIONS: usize = 10;

    fn view() -> Adaptation {
        Adaptation::of(Some(512))
    }

    /// Notes searches with walks of `walk` nanoseconds until a pass begins.
    ///
    /// Returns the number of searches.
    fn until_pass(adaptation: &mut Adaptation, walk: u64) -> u64 {
        let search = Duration::from_nanos(walk + CALLS);
        for searches in 1..1_000_000 {
            adaptation.searched(search);
            if adaptation.may_step(REGIONS) {
                return searches;
            }
        }
        panic!("no pass begins");
    }

    /// Visits all other regions of the pass, each for `took` nanoseconds.
    ///
    /// Returns how many regions the pass moved.
    fn end_pass(adaptation: &mut Adaptation, visit: Visit, took: u64) -> usize {
        loop {
            match adaptation.next(REGIONS) {
                Ok(_) => _ = adaptation.visited(visit, took),
                Err(moved) => return moved,
            }
        }
    }

    #[test]
    fn a_pass_begins_when_walks_have_cost_as_much() {
        let mut adaptation = view();
        assert_eq!(until_pass(&mut adaptation, 100_000), REGIONS as u64 * MOVE / 100_000 + 1);
        // After the pass has begun, a step may follow each search.
        adaptation.searched(Duration::ZERO);
        assert!(adaptation.may_step(REGIONS));
        assert_eq!(end_pass(&mut adaptation, Visit::Moved, 600_000), REGIONS);
        assert_eq!(adaptation.next(REGIONS), Err(0));
        // The next pass is expected to take as long as this one.
        assert_eq!(until_pass(&mut adaptation, 50_000), REGIONS as u64 * 600_000 / 50_000 + 1);

        let mut never = Adaptation::of(None);
        (0..100).for_each(|_| never.searched(Duration::from_secs(1)));
        assert_eq!(never.add_to(ViewCosts::default()), ViewCosts::default());
        assert!(!view().may_step(0));
    }

    #[test]
    fn a_step_takes_about_a_millisecond() {
        let mut adaptation = view();
        until_pass(&mut adaptation, 100_000);
        (0..30).for_each(|_| assert!(adaptation.visited(Visit::Moved, 300_000)));
        assert!(adaptation.has_time(600_000, true) && !adaptation.has_time(900_000, true));
        // A step that has moved nothing takes up to a quarter of a millisecond.
        assert!(adaptation.has_time(200_000, false) && !adaptation.has_time(300_000, false));
    }

    /// If no huge page is free, the kernel takes many milliseconds to move a region, or refuses.
    #[test]
    fn a_pass_pauses_after_a_slow_region_and_ends_after_refusals() {
        let mut adaptation = view();
        until_pass(&mut adaptation, 100_000);
        assert!(!adaptation.visited(Visit::Moved, 5_000_000));
        let mut searches = 0;
        while !adaptation.may_step(REGIONS) {
            adaptation.searched(Duration::from_nanos(100_000 + CALLS));
            searches += 1;
        }
        assert_eq!(searches, PAUSE * 5_000_000 / 100_000);
        assert_eq!(end_pass(&mut adaptation, Visit::Refused, 5_000), 1);
        let mut all_refused = view();
        until_pass(&mut all_refused, 100_000);
        let visits = (0..).take_while(|_| {
            all_refused.visited(Visit::Refused, 5_000);
            all_refused.next(REGIONS).is_ok()
        });
        assert_eq!(visits.count() + 1, REFUSALS as usize);
    }

    #[test]
    fn passes_that_save_no_time_become_rare() {
        let mut adaptation = view();
        let mut waited = Vec::new();
        for _ in 0..5 {
            waited.push(until_pass(&mut adaptation, 100_000));
            end_pass(&mut adaptation, Visit::Skipped, 10_000);
        }
        // The first pass waits for an assumed time. Each later one waits for the searches that show what the last one
        // saves.
        assert_eq!(waited, [101, 16, 16, 16, 17]);
        // If walks take less time after a pass, passes become more frequent again.
        let rare = adaptation.factor;
        (0..TRIAL).for_each(|_| adaptation.searched(Duration::from_nanos(10_000 + CALLS)));
        assert!(adaptation.factor < rare);
        adaptation.mapped_anew();
        assert_eq!(adaptation.factor, 1);
    }
}
