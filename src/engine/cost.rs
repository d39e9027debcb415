//! What operations cost, and the decisions that depend on it.
//!
//! The constants are nanoseconds for a page of 4 KiB, rounded, measured on Linux 6.18 in a virtual machine
//! (`cargo run --release -p memsnap-bench -- --only costs` measures them). A view starts with them, and then measures
//! the time that its own calls take ([`Costs`]). The time to compare pages depends on whether they are in a cache. The
//! time to discard or to write-protect pages depends on how many processors run the process, because the TLB of each
//! must be flushed.
//!
//! Decisions that depend on what the program will do next follow the ski-rental rule: the dearer way is
//! taken once the cheaper one has cost as much in vain. So none costs more than twice what the best choice
//! would have cost.
//!
//! No decision changes what a view shows. A build for tests can make all decisions at random; see [`decide`].

use std::time::Duration;

use crate::page_size;
use crate::stats::ViewCosts;

/// To look at a page-table entry in use, and at the page behind it to tell whether that is a file's.
const SCAN: u64 = 20;

/// To look at a page-table entry alone: a mapped one rather than an empty one.
const WALK: u64 = 2;

/// To compare a page with another and find them equal, or to copy it.
const COMPARE: u64 = 600;

/// The first write to a private page after it was closed.
const CLOSED_WRITE: u64 = 1_000;

/// To close a page: its entry and the flush of the processor's copy.
const CLOSE: u64 = 25;

/// The first write to a page: a fault and a copy by the kernel.
const FIRST_WRITE: u64 = 2_500;

/// To unmap a page of a file, and to map it again when it is read, together with its neighbours.
const MAP_AGAIN: u64 = 200;

/// To discard a run of pages, and each of its pages.
const DISCARD_RUN: u64 = 600;
const DISCARD: u64 = 120;

/// The fixed part of what an operation on a whole view costs: system calls, the check for pinned memory and a few
/// cache misses.
const CALLS: u64 = 10_000;

/// Entries of a page table.
const TABLE: usize = 512;

/// Private memory that a view keeps through `restore`, unless told otherwise, for the writes that will likely come
/// again: to copy the old bytes back takes a quarter of what it takes to discard the page and write to it again.
pub(crate) const KEPT_BYTES: usize = 64 << 20;

/// Whether to rewrite `moved` of `pages` pages costs less than to map all of them anew and have the program
/// fault in what it needs.
pub(crate) fn should_rewrite(moved: usize, pages: usize) -> bool {
    moved <= pages / 3 * 2 + 1
}

/// The nanoseconds that `count` pages take. With addresses of 32 bits, a number of pages times a cost can be more than a
/// `usize` holds.
fn times(count: usize, cost: u64) -> u64 {
    count as u64 * cost
}

/// Of `runs` runs of `pages` pages together, those that `part` of the pages take up, if the runs are alike.
pub(crate) fn runs_of(runs: usize, part: usize, pages: usize) -> usize {
    let share = runs as u128 * part as u128 / pages.max(1) as u128;
    usize::try_from(share).unwrap_or(runs)
}

/// What operations of a view cost, in nanoseconds, as the view has measured them.
///
/// Each cost but `close` starts as a constant. A measurement moves the cost a quarter of the way towards it. A
/// measurement counts as at most eight times the present cost, since the process may have been interrupted.
#[derive(Clone, Copy)]
pub(crate) struct Costs {
    /// To compare or copy a page.
    pub(crate) compare: u64,
    /// To discard a run of pages, without the share of each page.
    pub(crate) discard_run: u64,
    /// To close all pages. `None` until it is measured; then [`Costs::close`] estimates it from the number of pages.
    close: Option<u64>,
    /// To list the written pages, without closing any.
    search: u64,
}

impl Default for Costs {
    fn default() -> Self {
        Self { compare: COMPARE, discard_run: DISCARD_RUN, close: None, search: CALLS }
    }
}

/// Fewer operations than this are not measured: reading the clock would be too large a part of the time.
pub(crate) const OBSERVED: usize = 8;

pub(crate) fn observe(cost: &mut u64, took: u64) {
    let took = took.min(cost.saturating_mul(8));
    *cost = (*cost * 3 + took) / 4;
}

pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 64)
}

impl Costs {
    /// Notes how long it took to compare or copy `pages` pages.
    pub(crate) fn compared(&mut self, pages: usize, took: Duration) {
        if pages >= OBSERVED {
            observe(&mut self.compare, (nanoseconds(took) / pages as u64).max(20));
        }
    }

    /// Notes how long it took to discard `pages` pages in `runs` runs.
    pub(crate) fn discarded(&mut self, runs: usize, pages: usize, took: Duration) {
        if runs >= OBSERVED {
            let of_runs = nanoseconds(took).saturating_sub(times(pages, DISCARD));
            observe(&mut self.discard_run, (of_runs / runs as u64).max(50));
        }
    }

    /// Notes how long it took to list the written pages.
    pub(crate) fn searched(&mut self, took: Duration) {
        // The limit is lower than for other costs: a single search that was interrupted must not decide that page
        // tables are made for the whole view.
        let took = nanoseconds(took).min(2 * self.search);
        observe(&mut self.search, took);
    }

    /// Notes how long it took to close all pages; with `listed`, also to list the written pages in the same call.
    pub(crate) fn closed(&mut self, listed: bool, took: Duration) {
        let search = if listed { self.search } else { 0 };
        let took = nanoseconds(took).saturating_sub(search).max(1_000);
        observe(self.close.get_or_insert(took), took);
    }

    /// The cost of closing all pages of a view of `pages` pages.
    pub(crate) fn close(&self, pages: usize) -> u64 {
        self.close.unwrap_or(CALLS + times(pages, WALK))
    }

    /// The cost of the first write to a page that has no frame of its own. The kernel copies the page then, and that
    /// page is as likely to be in a cache as the pages that are compared. So this follows the cost of comparing.
    pub(crate) fn first_write(&self) -> u64 {
        FIRST_WRITE - COMPARE + self.compare
    }
}

/// What the search for written pages of one view has cost in vain, and what is known of the view.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) costs: Costs,
    /// Private pages that the view keeps through `restore`.
    pub(crate) kept_pages: usize,
    /// Searches among all pages since the view was mapped or started over.
    searches: usize,
    /// Pages in memory that are not the view's own, as of the last search that counted them.
    others: Option<usize>,
    /// Whether the last search took much longer than the known number of pages in memory explains.
    was_unexpectedly_slow: bool,
    /// Pages that are the view's own, as of the last search.
    private: usize,
    /// Pages that had been written, as of the last take or restore.
    written: usize,
    /// Nanoseconds spent on looking at pages in memory, that a search of closed pages would not have spent. Counted
    /// since closing pages was last tried.
    spent_looking: u64,
    /// Nanoseconds spent on comparing private pages that had not been written, less the faults that open pages were
    /// spared. Counted since closing pages was last tried.
    spent_comparing: u64,
    /// Private pages that were closed since all of them were last looked at.
    closed: usize,
    /// Open pages, as of the last search for pages written since pages were closed.
    open: usize,
    /// How many more pages were open in that search than in the one before it. Writes have opened these.
    opened: usize,
    recurrence: Recurrence,
    /// The view was started over before.
    started_over: bool,
    /// The system refused it: locked memory cannot be discarded.
    cannot_start_over: bool,
}

/// How often a restore relies on the same pages having been written as before the last one, without comparing them.
#[derive(Clone, Copy)]
struct Recurrence {
    /// Restores since the pages were last compared.
    trusted: u32,
    /// The number of such restores after which the next one compares the pages.
    most: u32,
}

impl Default for Recurrence {
    fn default() -> Self {
        Self { trusted: 0, most: 7 }
    }
}

impl Ledger {
    /// Of a view that keeps so many bytes of private memory through `restore`.
    pub(crate) fn new(kept_bytes: usize) -> Self {
        Self { kept_pages: kept_bytes / page_size(), ..Self::default() }
    }

    /// Whether the next search should count the other pages.
    ///
    /// It should each time that the number of searches has doubled, which hardly adds to their cost. It also should
    /// after a search that took longer than the known pages explain.
    pub(crate) fn should_count_others(&self) -> bool {
        (self.searches + 1).is_power_of_two() || self.was_unexpectedly_slow
    }

    /// Notes a search among all of `pages` pages, which took `took` and found `private` private ones.
    pub(crate) fn searched_all(
        &mut self,
        private: usize,
        pages: usize,
        others: Option<usize>,
        took: Duration,
    ) {
        if self.should_count_others() {
            self.others = others;
        }
        self.searches += 1;
        self.private = private;
        self.closed = 0;
        // What closing would spare: to look at the page behind each entry, but not at the entries.
        let mut looked = times(self.present(), SCAN);
        // If the search took less time than so many entries take on any machine, some entries are those of huge pages.
        let took = nanoseconds(took);
        if took < looked / 8 {
            looked = took;
        }
        // More pages may be in memory now. For example, the pages of a huge page may have got entries of their own.
        self.was_unexpectedly_slow = took > 4 * (CALLS + looked);
        let walked = times(pages.min(self.present().saturating_mul(TABLE)), WALK);
        self.spent_looking += looked.saturating_sub(walked);
    }

    /// Notes that a search for pages written since they were closed found `open` open pages.
    pub(crate) fn searched_open(&mut self, open: usize) {
        self.opened = open.saturating_sub(self.open);
        self.open = open;
    }

    /// Pages in memory.
    fn present(&self) -> usize {
        self.private + self.others.unwrap_or(0)
    }

    /// Whether so few of `pages` pages are in memory that listing only those costs less than the kernel's fastest walk
    /// over all pages.
    pub(crate) fn is_sparse(&self, pages: usize) -> bool {
        decide(self.others.is_some() && self.present() < pages / 4)
    }

    /// Whether searches that list only pages in memory still take no longer than a walk over all of `pages` pages
    /// would.
    pub(crate) fn stays_sparse(&self, pages: usize) -> bool {
        decide(self.costs.search <= CALLS + times(pages, WALK))
    }

    /// Notes what a take or a restore found: `written` pages that had been written, `idle` private pages that had not,
    /// and `clean` other pages.
    pub(crate) fn found(&mut self, written: usize, idle: usize, clean: usize) {
        self.written = written;
        self.spent_comparing += times(idle, self.costs.compare);
        self.spent_looking += times(clean, SCAN);
    }

    /// Notes that `written` pages had been written since the last take or restore. Those that were open already took no
    /// fault. The time of these faults is subtracted from that of comparing, since it is why pages are left open.
    pub(crate) fn found_written(&mut self, written: usize) {
        if self.open > 0 {
            let reused = written.saturating_sub(self.opened);
            self.spent_comparing = self.spent_comparing.saturating_sub(times(reused, CLOSED_WRITE));
        }
    }

    /// Whether starting to close pages costs less than has been spent because they were not closed, if the pages
    /// written last will be written again.
    pub(crate) fn should_arm(&self) -> bool {
        let cost = CALLS + times(self.present(), CLOSE) + times(self.written, CLOSED_WRITE);
        decide(self.spent_looking + self.spent_comparing > cost)
    }

    /// Whether that cost would rather be spared by starting over, which comes first.
    pub(crate) fn should_defer_arming(&self) -> bool {
        !self.started_over && !self.cannot_start_over && self.spent_looking > self.spent_comparing
    }

    /// Whether to close all of `pages` costs less than not to have done it.
    pub(crate) fn should_write_protect(&self, pages: usize) -> bool {
        decide(
            self.spent_looking + self.spent_comparing
                > self.costs.close(pages) + times(self.written, CLOSED_WRITE),
        )
    }

    /// Whether to start over, with an image of `captured` captured pages, costs less than what the search among
    /// pages that were mapped once and may not be needed again has cost. Only once: where they are needed,
    /// closing them is better.
    pub(crate) fn should_start_over(&self, captured: usize) -> bool {
        let cost = CALLS
            + times(self.present(), MAP_AGAIN)
            + times(self.private.saturating_add(captured), self.costs.first_write());
        !self.started_over && !self.cannot_start_over && decide(self.spent_looking > cost)
    }

    /// Whether to start over costs less than to discard so many runs of so many pages, if `needed` private pages
    /// have to be made again then.
    pub(crate) fn should_start_over_instead_of_discarding(
        &self,
        runs: usize,
        pages: usize,
        needed: usize,
    ) -> bool {
        let cost = |others| {
            let made_again = times(needed, self.costs.first_write());
            CALLS + times(others, MAP_AGAIN) + times(pages, DISCARD) + made_again
        };
        let discard = times(runs, self.costs.discard_run) + times(pages, DISCARD);
        !self.cannot_start_over && decide(self.others.is_some_and(|others| discard > cost(others)))
    }

    /// Whether to believe that the pages written before the last restore, no others being private now, have all
    /// been written again. They are compared after 7 such restores, and after more of them each time that all had been.
    pub(crate) fn should_assume_recurrence(&mut self) -> bool {
        let Recurrence { trusted, most } = &mut self.recurrence;
        *trusted = (*trusted + 1) % (*most + 1);
        decide(*trusted != 0)
    }

    /// Notes whether a restore that compared the pages written before the last one found `all` of them written again.
    pub(crate) fn checked_recurrence(&mut self, all: bool) {
        let most = self.recurrence.most;
        self.recurrence = Recurrence { trusted: 0, most: if all { (2 * most + 1).min(127) } else { 7 } };
    }

    /// Whether a restore of a view of `pages` pages keeps the pages that were written for the first time.
    ///
    /// Keeping a page is in vain if it is not written again. In an armed view this costs little, since the page can be
    /// closed. In a view that may keep all of its pages, a page is likely to be written again.
    pub(crate) fn keeps_first_writes(&self, pages: usize, is_armed: bool) -> bool {
        decide(is_armed || pages <= self.kept_pages)
    }

    /// The most open pages that the restore of a view of `pages` pages may leave private, if `hidden` pages have to be
    /// private to show the image.
    pub(crate) fn room(&self, hidden: usize, pages: usize) -> usize {
        if pages <= self.kept_pages { pages } else { (self.kept_pages + hidden).saturating_sub(self.closed) }
    }

    /// The number of restores for which a page is kept without being written. Comparing it in each of them then costs
    /// as much as discarding it and taking a fault at its next write.
    pub(crate) fn idle_restores(&self) -> u64 {
        let Costs { compare, discard_run, .. } = self.costs;
        ((self.costs.first_write() + discard_run + DISCARD) / compare.max(1)).clamp(2, 32)
    }

    /// The costs of a view of `pages` pages, for `View::stats`.
    pub(crate) fn stats(&self, pages: usize) -> ViewCosts {
        ViewCosts {
            compare_page: self.costs.compare,
            discard_run: self.costs.discard_run,
            first_write: self.costs.first_write(),
            protect: self.costs.close(pages),
            spent_in_vain: self.spent_looking + self.spent_comparing,
            ..ViewCosts::default()
        }
    }

    /// Notes that closing pages was tried, and that `private` private pages were closed.
    pub(crate) fn closed(&mut self, private: usize) {
        self.open = 0;
        self.spent_looking = 0;
        self.spent_comparing = 0;
        self.closed += private;
    }

    /// Whether the closed pages of a view of `pages` pages may be more than the view is to keep, not counting `hidden`
    /// pages that have to be private to show the image.
    pub(crate) fn keeps_too_many(&self, hidden: usize, pages: usize) -> bool {
        decide(self.closed.min(pages) > self.kept_pages + hidden)
    }

    /// After nothing of the view is in memory any more.
    pub(crate) fn started_over(&mut self) {
        let Self { costs, kept_pages, cannot_start_over, .. } = *self;
        *self = Self { costs, kept_pages, cannot_start_over, started_over: true, ..Self::default() };
    }

    pub(crate) fn cannot_start_over(&mut self) {
        self.cannot_start_over = true;
    }
}

/// Returns the decision, which is `by_cost` except in tests.
///
/// A library that was built with `MEMSNAP_TESTING` set decides at random if `MEMSNAP_DECISIONS` is `arbitrary`. So
/// short tests reach both outcomes of each decision, and can check that none changes a byte.
pub(crate) fn decide(by_cost: bool) -> bool {
    if option_env!("MEMSNAP_TESTING").is_none() { by_cost } else { arbitrary::decide(by_cost) }
}

mod arbitrary {
    use std::env;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static WANTED: LazyLock<bool> =
        LazyLock::new(|| env::var("MEMSNAP_DECISIONS").is_ok_and(|how| how == "arbitrary"));

    /// The state of the random number generator (`splitmix32`).
    static STATE: AtomicU32 = AtomicU32::new(0);

    pub(super) fn decide(by_cost: bool) -> bool {
        if !*WANTED {
            return by_cost;
        }
        let mut bits = STATE.fetch_add(0x9e37_79b9, Ordering::Relaxed);
        bits = (bits ^ (bits >> 16)).wrapping_mul(0x21f0_aaad);
        bits = (bits ^ (bits >> 15)).wrapping_mul(0x735a_2d97);
        (bits ^ (bits >> 15)) & 1 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of runs times the number of pages once overflowed a `usize` of 32 bits, for views that have more than
    /// 65,536 runs to discard.
    #[test]
    fn shares_and_prices_do_not_overflow() {
        assert_eq!(runs_of(1 << 20, (1 << 20) - 1, 1 << 20), (1 << 20) - 1);
        assert_eq!(runs_of(usize::MAX, usize::MAX, usize::MAX), usize::MAX);
        assert_eq!(runs_of(0, 0, 0), 0);
        // All the pages that 32 bits can address.
        const PAGES: usize = 1 << 20;
        let mut ledger = Ledger::new(0);
        ledger.searched_all(PAGES, PAGES, Some(PAGES), ns(1_000_000_000));
        ledger.found(0, PAGES, PAGES);
        assert!(!ledger.should_start_over_instead_of_discarding(0, PAGES, PAGES));
        assert!(ledger.should_arm() && !ledger.should_start_over(PAGES));
    }
    const fn ns(nanoseconds: u64) -> Duration {
        Duration::from_nanos(nanoseconds)
    }

    #[test]
    fn costs_follow_what_is_observed_and_not_what_interrupts_it() {
        let mut costs = Costs::default();
        costs.compared(OBSERVED - 1, ns(1));
        assert_eq!(costs.compare, COMPARE);
        for _ in 0..30 {
            costs.compared(100, ns(100 * 150));
        }
        assert!((145..160).contains(&costs.compare), "{}", costs.compare);
        assert_eq!(costs.first_write(), FIRST_WRITE - COMPARE + costs.compare);
        // The thread was interrupted for a second.
        costs.compared(100, ns(1_000_000_000));
        assert!(costs.compare < 500, "{}", costs.compare);
        costs.compared(100, ns(0));
        assert!(costs.compare > 0);

        for _ in 0..30 {
            costs.discarded(16, 32, ns(16 * 5_000 + 32 * DISCARD));
        }
        assert!((4_900..5_100).contains(&costs.discard_run), "{}", costs.discard_run);

        assert_eq!(costs.close(1_000), CALLS + 1_000 * WALK);
        (0..50).for_each(|_| costs.searched(ns(30_000)));
        assert!((29_000..31_000).contains(&costs.search), "{}", costs.search);
        for _ in 0..30 {
            // The search is 30,000 ns of this.
            costs.closed(true, ns(1_030_000));
        }
        assert!((990_000..1_010_000).contains(&costs.close(1_000)), "{}", costs.close(1_000));
    }

    #[test]
    fn pages_are_closed_when_comparing_them_has_cost_as_much() {
        let mut ledger = Ledger::new(0);
        ledger.costs.closed(false, ns(100_000));
        let mut rounds = 0;
        while !ledger.should_write_protect(1_000) {
            ledger.found(10, 20, 0);
            rounds += 1;
        }
        // Each round compares 20 pages in vain; closing costs 100,000 ns and 10 faults.
        assert_eq!(rounds, (100_000 + 10 * CLOSED_WRITE) / (20 * COMPARE) + 1);
        ledger.closed(20);
        assert!(!ledger.should_write_protect(1_000));
        assert_eq!(ledger.stats(1_000).spent_in_vain, 0);
        // Pages that recur are not compared in vain.
        (0..10_000).for_each(|_| ledger.found(10, 0, 0));
        assert!(!ledger.should_write_protect(1_000));
    }

    /// Each of a few pages is written now and then. Most comparisons are in vain, but if the pages were closed, each of
    /// them would take a fault again.
    #[test]
    fn open_pages_that_are_written_now_and_then_stay_open() {
        let mut ledger = Ledger::new(0);
        (0..50).for_each(|_| ledger.costs.compared(100, ns(100 * 130)));
        for _ in 0..1_000 {
            ledger.searched_open(250);
            ledger.found(46, 250 - 46, 0);
            ledger.found_written(46);
        }
        assert!(!ledger.should_write_protect(250), "{}", ledger.stats(250).spent_in_vain);
        // Most of the pages are not written any more.
        for _ in 0..1_000 {
            ledger.searched_open(250);
            ledger.found(5, 250 - 5, 0);
            ledger.found_written(5);
        }
        assert!(ledger.should_write_protect(250));
        // Different pages are written each time. Leaving pages open saves none of their faults.
        ledger.closed(250);
        for round in 1..20 {
            ledger.searched_open(46 * round);
            ledger.found(46, 46 * (round - 1), 0);
            ledger.found_written(46);
        }
        assert!(ledger.should_write_protect(250));
    }

    /// After the first write to a huge page, its pages get entries of their own. A view whose other pages were last
    /// counted when they were in huge pages once stayed at `scan`, although its searches took many milliseconds.
    #[test]
    fn pages_are_counted_again_when_searches_take_longer() {
        let mut ledger = Ledger::new(0);
        let search = |ledger: &mut Ledger, others: usize, took: u64| {
            let others = ledger.should_count_others().then_some(others);
            ledger.searched_all(10, 100_000, others, ns(took));
            others.is_some()
        };
        // In huge pages, the time of a search counts, not the time that as many small pages would take.
        assert!((0..100).filter(|_| search(&mut ledger, 100_000, 15_000)).count() < 8);
        assert!(!ledger.should_arm());
        let mut ledger = Ledger::new(0);
        (0..99).for_each(|_| _ = search(&mut ledger, 0, 10_000));
        assert!(!search(&mut ledger, 100_000, 2_000_000) && search(&mut ledger, 100_000, 2_000_000));
        assert!((0..5).any(|_| {
            search(&mut ledger, 100_000, 2_000_000);
            ledger.should_arm()
        }));
        assert!(!search(&mut ledger, 100_000, 2_000_000), "it was explained");
    }

    #[test]
    fn recurrence_is_checked_less_often_each_time_that_it_holds() {
        let mut ledger = Ledger::new(0);
        let mut until_checked = || {
            let mut trusted = 0;
            while ledger.should_assume_recurrence() {
                trusted += 1;
            }
            ledger.checked_recurrence(trusted < 100);
            trusted
        };
        assert_eq!([(); 6].map(|()| until_checked()), [7, 15, 31, 63, 127, 7]);
    }

    #[test]
    fn a_view_is_sparse_as_long_as_little_of_it_is_in_memory() {
        let mut ledger = Ledger::new(0);
        assert!(!ledger.is_sparse(1_000), "not known");
        ledger.searched_all(100, 1_000, Some(100), ns(10_000));
        assert!(ledger.is_sparse(1_000) && !ledger.is_sparse(800));
        assert!(ledger.stays_sparse(1_000_000));
        ledger.costs.searched(ns(1_000_000));
        assert!(ledger.stays_sparse(10_000), "it may have been interrupted");
        (0..50).for_each(|_| ledger.costs.searched(ns(1_000_000)));
        assert!(ledger.stays_sparse(1_000_000) && !ledger.stays_sparse(100_000));
    }
}
