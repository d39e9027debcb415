//! The cost model: observes what the operations of a view cost, and chooses between them.
//!
//! The callers measure the times and carry the decisions out.
//!
//! The constants are nanoseconds for a page of 4 KiB, rounded, measured on Linux 6.18 in a virtual machine
//! (`cargo run --release -p memsnap-bench -- --only costs` measures them). A view starts with them, and then measures
//! the time that its own calls take ([`Costs`]). The time to compare pages depends on whether they are in a cache. The
//! time to discard or to write-protect pages depends on how many processors run the process, because the TLB of each
//! must be flushed.
//!
//! Some decisions depend on what the program will do next. They follow the ski-rental rule: the view takes the cheaper
//! way until the time that this has wasted reaches the cost of the more expensive way. So a decision costs at most
//! twice as much as the best choice would have.
//!
//! No decision changes what a view shows. A build for tests can make all decisions at random; see [`decide`].

use std::time::Duration;

use crate::engine::decide::decide;
use crate::page_size;
use crate::stats::ViewCosts;

/// The time to read a page-table entry in use, and to find out whether its page belongs to a file.
const SCAN: u64 = 20;

/// The time to read a page-table entry alone, if it maps a page. An empty entry takes less.
const WALK: u64 = 2;

/// The time to compare two pages that are equal, or to copy a page.
const COMPARE: u64 = 600;

/// The time of the first write to a private page after it was write-protected.
const WRITE_FAULT: u64 = 1_000;

/// The time to write-protect a page.
///
/// The kernel changes the page-table entry, and flushes it from the TLB.
const WRITE_PROTECT: u64 = 25;

/// The time of the first write to a page that is not private: a copy-on-write fault.
const FIRST_WRITE: u64 = 2_500;

/// The time to unmap a page of a file, and to map it again when it is read.
///
/// The kernel maps it together with its neighbours.
const MAP_AGAIN: u64 = 200;

/// The time to discard a run of pages, in addition to [`DISCARD`] for each page.
const DISCARD_RUN: u64 = 600;

/// The time that each page adds to discarding a run of pages.
const DISCARD: u64 = 120;

/// The fixed part of the cost of an operation on a whole view.
///
/// It consists of system calls, the check for pinned memory and a few cache misses.
const CALLS: u64 = 10_000;

/// How many times in a row a view is write-protected at once, before it is observed again whether that saves time.
const MOST_AT_ONCE: u32 = 31;

/// The number of entries in a kernel page table.
const TABLE: usize = 512;

/// The bytes of private memory that a view may keep through `restore` by default.
///
/// The pages that a program wrote will likely be written again. Copying the old bytes back to a private page takes a
/// quarter of the time that discarding it and writing to it again takes.
pub(crate) const KEPT_BYTES: usize = 64 << 20;

/// Whether to rewrite `moved` of `pages` pages rather than map all pages anew.
///
/// After all pages were mapped anew, the program takes a fault for each page that it needs.
pub(crate) fn should_rewrite(moved: usize, pages: usize) -> bool {
    moved <= pages / 3 * 2 + 1
}

/// The cost of `count` operations that each cost `cost` nanoseconds.
///
/// The product is a `u64` because it can be too large for a `usize` of 32 bits.
fn times(count: usize, cost: u64) -> u64 {
    count as u64 * cost
}

/// The number of runs that `part` of `pages` pages form.
///
/// All the pages together form `runs` runs, which are assumed to have the same length.
pub(crate) fn runs_of(runs: usize, part: usize, pages: usize) -> usize {
    let share = runs as u128 * part as u128 / pages.max(1) as u128;
    usize::try_from(share).unwrap_or(runs)
}

/// The costs of a view's operations in nanoseconds, as the view has measured them.
///
/// Each cost except `write_protect` starts as a constant. A measurement moves the cost a quarter of the way towards the
/// measured time. That time counts as at most eight times the present cost, since the process may have been
/// interrupted.
#[derive(Clone, Copy)]
pub(crate) struct Costs {
    /// The cost of comparing or copying a page.
    pub(crate) compare: u64,
    /// The cost of discarding a run of pages, in addition to [`DISCARD`] for each page.
    pub(crate) discard_run: u64,
    /// The cost of write-protecting all pages.
    ///
    /// `None` until it is measured. Until then, [`Costs::write_protect`] estimates it from the number of pages.
    write_protect: Option<u64>,
    /// The cost of listing the written pages in an armed view, without write-protecting any.
    search: u64,
}

impl Default for Costs {
    fn default() -> Self {
        Self { compare: COMPARE, discard_run: DISCARD_RUN, write_protect: None, search: CALLS }
    }
}

/// The least number of operations whose time is measured.
///
/// For fewer operations, reading the clock would be too large a part of the measured time.
pub(crate) const OBSERVED: usize = 8;

/// Moves `cost` a quarter of the way towards the measured time `took`, as [`Costs`] describes.
pub(crate) fn observe(cost: &mut u64, took: u64) {
    let took = took.min(cost.saturating_mul(8));
    *cost = (*cost * 3 + took) / 4;
}

/// Converts `time` to nanoseconds. A time that does not fit becomes `u64::MAX / 64`.
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
        // The limit is lower than for other costs. Otherwise a single search that was interrupted could make the view
        // write-protect all pages, for which the kernel allocates its page tables for the whole view.
        let took = nanoseconds(took).min(2 * self.search);
        observe(&mut self.search, took);
    }

    /// Notes how long it took to write-protect all pages.
    ///
    /// `listed` is whether the same call also listed the written pages.
    pub(crate) fn write_protected(&mut self, listed: bool, took: Duration) {
        let search = if listed { self.search } else { 0 };
        let took = nanoseconds(took).saturating_sub(search).max(1_000);
        observe(self.write_protect.get_or_insert(took), took);
    }

    /// The cost of write-protecting all pages of a view of `pages` pages.
    pub(crate) fn write_protect(&self, pages: usize) -> u64 {
        self.write_protect.unwrap_or(CALLS + times(pages, WALK))
    }

    /// The cost of the first write to a page that is not private.
    ///
    /// The system copies the page at this write. That page is as likely to be in a cache as the pages that are
    /// compared. So this cost changes with the cost of comparing.
    pub(crate) fn first_write(&self) -> u64 {
        FIRST_WRITE - COMPARE + self.compare
    }
}

/// The observed costs of one view, and the decisions that depend on them.
///
/// The costs include the time that its searches for written pages have wasted. The ledger also has the numbers of pages
/// on which the decisions depend.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) costs: Costs,
    /// The number of private pages that the view may keep through `restore`.
    pub(crate) kept_pages: usize,
    /// The number of searches among all pages since the view was mapped or started over.
    searches: usize,
    /// The number of resident pages that are not private, as of the last search that counted them.
    others: Option<usize>,
    /// Whether the last search took much longer than the known number of resident pages explains.
    was_unexpectedly_slow: bool,
    /// The number of private pages, as of the last search among all pages.
    private: usize,
    /// The number of dirty pages that the last snapshot or restore found.
    written: usize,
    /// The nanoseconds spent on looking at resident pages. Write-protection would have saved them.
    ///
    /// Counted since the view last tried to write-protect pages.
    spent_looking: u64,
    /// The nanoseconds of comparing private pages that had not been written.
    ///
    /// The time of the write faults that were saved because pages were not write-protected is subtracted. Counted since
    /// the view last tried to write-protect pages.
    spent_comparing: u64,
    /// The number of private pages that were write-protected since the last search among all pages.
    protected: usize,
    /// The number of pages that were not write-protected, as of the last search in an armed view.
    unprotected: usize,
    /// By how much `unprotected` grew in that search. These pages took a write fault.
    newly_unprotected: usize,
    /// How many of the pages that were not write-protected were written again.
    ///
    /// As of the last snapshot or restore that observed this.
    reused: Option<usize>,
    /// How many times the view was write-protected at once since `reused` was observed.
    at_once: u32,
    recurrence: Recurrence,
    /// Whether the view has started over.
    started_over: bool,
    /// Whether the system refused to discard all pages. For example, locked memory cannot be discarded.
    cannot_start_over: bool,
}

/// How often restores assume that the same pages were written as before the last restore.
#[derive(Clone, Copy)]
struct Recurrence {
    /// The number of restores since the pages were last compared.
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
    /// The ledger of a view that may keep `kept_bytes` bytes of private memory through `restore`.
    pub(crate) fn new(kept_bytes: usize) -> Self {
        Self { kept_pages: kept_bytes / page_size(), ..Self::default() }
    }

    /// Whether the next search should also count the resident pages that are not private.
    ///
    /// It should count them each time that the number of searches has doubled. So counting adds little to the cost of
    /// all searches. It should also count them after a search that took longer than the known number of pages explains.
    pub(crate) fn should_count_others(&self) -> bool {
        (self.searches + 1).is_power_of_two() || self.was_unexpectedly_slow
    }

    /// Notes a search among all of `pages` pages, which took `took` and found `private` private pages.
    ///
    /// `others` is the number of other resident pages, if the search counted them.
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
        self.protected = 0;
        // In an armed view, a search also reads the entries, but does not look at the page of each.
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

    /// Notes that a search in an armed view found `unprotected` pages that are not write-protected.
    pub(crate) fn searched_unprotected(&mut self, unprotected: usize) {
        self.newly_unprotected = unprotected.saturating_sub(self.unprotected);
        self.unprotected = unprotected;
    }

    /// The number of resident pages.
    fn present(&self) -> usize {
        self.private + self.others.unwrap_or(0)
    }

    /// Whether to write-protect and list only the resident pages of a view of `pages` pages.
    ///
    /// If few pages are resident, this costs less than the kernel's fastest walk over all pages.
    pub(crate) fn is_sparse(&self, pages: usize) -> bool {
        decide(self.others.is_some() && self.present() < pages / 4)
    }

    /// Whether searches among the resident pages are no slower than a walk over all of `pages` pages.
    pub(crate) fn stays_sparse(&self, pages: usize) -> bool {
        decide(self.costs.search <= CALLS + times(pages, WALK))
    }

    /// Notes the numbers of pages that a snapshot or a restore looked at.
    ///
    /// `written` pages had been written, `idle` private pages had been compared but not written, and `clean` other
    /// pages had been looked at but not written.
    pub(crate) fn found(&mut self, written: usize, idle: usize, clean: usize) {
        self.written = written;
        self.spent_comparing += times(idle, self.costs.compare);
        self.spent_looking += times(clean, SCAN);
    }

    /// Notes that `written` pages had been written since the last snapshot or restore.
    ///
    /// Pages that were not write-protected before took no write fault. The time that this saved is subtracted from the
    /// time of comparing: not write-protecting pages costs comparisons, but saves faults.
    pub(crate) fn found_written(&mut self, written: usize) {
        if self.unprotected > 0 {
            let reused = written.saturating_sub(self.newly_unprotected);
            self.spent_comparing = self.spent_comparing.saturating_sub(times(reused, WRITE_FAULT));
            if self.unprotected - self.newly_unprotected >= OBSERVED {
                (self.reused, self.at_once) = (Some(reused), 0);
            }
        }
    }

    /// Whether to arm the view.
    ///
    /// The view should be armed once searches without write-protection have wasted more time than arming costs. That
    /// cost includes a write fault for each page that was written last, because it will likely be written again.
    pub(crate) fn should_arm(&self) -> bool {
        let cost = CALLS + times(self.present(), WRITE_PROTECT) + times(self.written, WRITE_FAULT);
        decide(self.spent_looking + self.spent_comparing > cost)
    }

    /// Whether not to arm the view yet, because starting over may save the same time.
    ///
    /// Starting over is tried first. It may save time if looking at resident pages took longer than comparing them.
    pub(crate) fn should_defer_arming(&self) -> bool {
        !self.started_over && !self.cannot_start_over && self.spent_looking > self.spent_comparing
    }

    /// Whether to write-protect all pages of an armed view of `pages` pages again.
    ///
    /// They should be write-protected once not doing so has wasted more time than it costs, with a write fault for each
    /// page that was written last.
    pub(crate) fn should_write_protect(&self, pages: usize) -> bool {
        decide(
            self.spent_looking + self.spent_comparing
                > self.costs.write_protect(pages) + times(self.written, WRITE_FAULT),
        )
    }

    /// Whether to write-protect all pages of an armed view of `pages` pages again, although not doing so has wasted no time
    /// yet.
    ///
    /// If other pages are written each time, write-protection saves comparing the pages that were written last, and adds
    /// few write faults. As long as all pages are write-protected, nothing shows whether the same pages are written again.
    /// So some calls do not write-protect them, to observe it.
    pub(crate) fn should_write_protect_at_once(&mut self, pages: usize) -> bool {
        let Some(reused) = self.reused else { return false };
        let again = reused.min(self.written);
        let cost = self.costs.write_protect(pages) + times(again, WRITE_FAULT);
        let saves = times(self.written - again, self.costs.compare) > cost;
        let at_once = self.at_once < MOST_AT_ONCE && decide(saves);
        self.at_once += u32::from(at_once);
        at_once
    }

    /// Whether to start over, to unmap pages that were only read once.
    ///
    /// `captured` is the number of captured pages of the image. The view should start over once looking at resident
    /// pages has wasted more time than starting over costs. It does so only once. If the program reads the same pages
    /// again, arming the view is better.
    pub(crate) fn should_start_over(&self, captured: usize) -> bool {
        let cost = CALLS
            + times(self.present(), MAP_AGAIN)
            + times(self.private.saturating_add(captured), self.costs.first_write());
        !self.started_over && !self.cannot_start_over && decide(self.spent_looking > cost)
    }

    /// Whether to start over rather than discard `pages` pages in `runs` runs.
    ///
    /// After starting over, `needed` pages have to become private again.
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

    /// Whether a restore should assume that the same pages were written as before the last one.
    ///
    /// Then it does not compare them. The caller asks this only if no other page has to be put back. After 7 such
    /// restores, the next one compares the pages. Each time that all of them had been written, the number of restores
    /// without comparing doubles, up to 127. Otherwise it becomes 7 again.
    pub(crate) fn should_assume_recurrence(&mut self) -> bool {
        let Recurrence { trusted, most } = &mut self.recurrence;
        *trusted = (*trusted + 1) % (*most + 1);
        decide(*trusted != 0)
    }

    /// Notes that a restore compared the pages written before the last one.
    ///
    /// `all` is whether all were written again.
    pub(crate) fn checked_recurrence(&mut self, all: bool) {
        let most = self.recurrence.most;
        self.recurrence = Recurrence { trusted: 0, most: if all { (2 * most + 1).min(127) } else { 7 } };
    }

    /// Whether a restore should keep the pages that were written for the first time.
    ///
    /// The view has `pages` pages. If a page is not written again, keeping it saves no time. In an armed view this
    /// costs little, since the page can be write-protected. In a view that may keep all of its pages, a page is likely
    /// to be written again.
    pub(crate) fn keeps_first_writes(&self, pages: usize, is_armed: bool) -> bool {
        decide(is_armed || pages <= self.kept_pages)
    }

    /// The most pages that a restore may leave private and not write-protected.
    ///
    /// The view has `pages` pages, of which `hidden` have to be private to show the image.
    pub(crate) fn room(&self, hidden: usize, pages: usize) -> usize {
        if pages <= self.kept_pages {
            pages
        } else {
            (self.kept_pages + hidden).saturating_sub(self.protected)
        }
    }

    /// The number of restores for which a page is kept if it is not written.
    ///
    /// Comparing the page in each of these restores costs as much as discarding it and taking a copy-on-write fault at
    /// its next write.
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
            protect: self.costs.write_protect(pages),
            spent_in_vain: self.spent_looking + self.spent_comparing,
            ..ViewCosts::default()
        }
    }

    /// Notes that the view tried to write-protect its pages.
    ///
    /// `private` is the number of private pages that it write-protected.
    pub(crate) fn write_protected(&mut self, private: usize) {
        self.unprotected = 0;
        self.spent_looking = 0;
        self.spent_comparing = 0;
        self.protected += private;
    }

    /// Whether a view of `pages` pages may have more write-protected private pages than it may keep.
    ///
    /// `hidden` pages have to be private to show the image. They are not counted.
    pub(crate) fn keeps_too_many(&self, hidden: usize, pages: usize) -> bool {
        decide(self.protected.min(pages) > self.kept_pages + hidden)
    }

    /// Notes that all pages of the view were discarded or mapped anew.
    pub(crate) fn started_over(&mut self) {
        let Self { costs, kept_pages, cannot_start_over, .. } = *self;
        *self = Self { costs, kept_pages, cannot_start_over, started_over: true, ..Self::default() };
    }

    /// Notes that the system refused to discard all pages of the view.
    pub(crate) fn cannot_start_over(&mut self) {
        self.cannot_start_over = true;
    }
}

#[cfg(test)]
mod tests;
