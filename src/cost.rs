//! What things cost, and which way is taken because of it.
//!
//! The constants are nanoseconds for a page of 4 KiB, rounded, measured on Linux 6.18 in a virtual machine
//! (`cargo run --release -p memsnap-bench -- --only costs` measures them here). Fixed rather than measured in each
//! process: the decisions depend on their ratios only, and a program behaves alike each time it runs.
//!
//! Decisions that depend on what the program will do next follow the ski-rental rule: the dearer way is
//! taken once the cheaper one has cost as much in vain. So none costs more than twice what the best choice
//! would have cost.

use crate::page_size;

/// To look at a page-table entry in use, and at the page behind it to tell whether that is a file's.
const SCAN: u64 = 20;

/// To look at a page-table entry alone: a mapped one rather than an empty one.
const WALK: u64 = 2;

/// To compare a page with another and find them equal.
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
const DISCARD_RUN: u64 = 1_600;
const DISCARD: u64 = 120;

/// System calls and a few cache misses, however small the view.
const CALLS: u64 = 10_000;

/// To find out whether the process has pinned memory, which each closing takes.
const PINNED: u64 = 12_000;

/// Entries of a page table.
const TABLE: usize = 512;

/// Private memory that a view keeps through `restore`, unless told otherwise, for the writes that will likely come
/// again: to copy the old bytes back takes a quarter of what it takes to discard the page and write to it again.
pub(crate) const KEPT_BYTES: usize = 64 << 20;

/// Whether to rewrite `moved` of `pages` pages costs less than to map all of them anew and have the program
/// fault in what it needs.
pub(crate) fn rewriting_pays(moved: usize, pages: usize) -> bool {
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

/// What the search for written pages of one view has cost in vain, and what is known of the view.
#[derive(Default)]
pub(crate) struct Ledger {
    /// Private pages that the view keeps through `restore`.
    pub(crate) kept_pages: usize,
    /// Searches among all pages since the view was mapped or started over.
    searches: usize,
    /// Pages in memory that are not the view's own, as of the last search that counted them.
    others: Option<usize>,
    /// Pages that are, as of the last search.
    private: usize,
    /// Nanoseconds that would have been spared if all pages had been closed when they were last in step: to
    /// look at pages that are not the view's own,
    looked: u64,
    /// and at pages that are, but had not been written.
    compared: u64,
    /// Private pages that were closed since all of them were last looked at.
    closed: usize,
    /// Restores that found the same pages as the one before, modulo 8.
    recurred: usize,
    /// The view was started over before.
    started_over: bool,
    /// The system refused it: locked memory cannot be discarded.
    cannot_start_over: bool,
}

impl Ledger {
    /// Of a view that keeps so many bytes of private memory through `restore`.
    pub(crate) fn new(kept_bytes: usize) -> Self {
        Self { kept_pages: kept_bytes / page_size(), ..Self::default() }
    }

    /// Whether the next search should count the other pages: as often as the number of searches doubles, so
    /// that it makes no difference to what they cost.
    pub(crate) fn is_curious(&self) -> bool {
        (self.searches + 1).is_power_of_two()
    }

    /// After a search among all of `pages` pages that found `private` private ones.
    pub(crate) fn searched_all(&mut self, private: usize, pages: usize, others: Option<usize>) {
        if self.is_curious() {
            self.others = others;
        }
        self.searches += 1;
        self.private = private;
        self.closed = 0;
        // What closing would spare: to look at the page behind each entry, but not at the entries.
        let looked = times(self.present(), SCAN);
        let walked = times(pages.min(self.present().saturating_mul(TABLE)), WALK);
        self.looked += looked.saturating_sub(walked + PINNED);
    }

    /// Pages in memory.
    fn present(&self) -> usize {
        self.private + self.others.unwrap_or(0)
    }

    /// After a search that came upon `idle` private pages which had not been written, and `clean` others.
    pub(crate) fn found(&mut self, idle: usize, clean: usize) {
        self.compared += times(idle, COMPARE);
        self.looked += times(clean, SCAN);
    }

    /// Whether to start closing pages costs less than not to have done it, if `written` pages will be
    /// written again.
    pub(crate) fn arming_pays(&self, written: usize) -> bool {
        self.looked + self.compared > CALLS + times(self.present(), CLOSE) + times(written, CLOSED_WRITE)
    }

    /// Whether that cost would rather be spared by starting over, which comes first.
    pub(crate) fn starting_over_may_help(&self) -> bool {
        !self.started_over && !self.cannot_start_over && self.looked > self.compared
    }

    /// Whether to close all of `pages` costs less than not to have done it.
    pub(crate) fn closing_pays(&self, pages: usize, written: usize) -> bool {
        self.looked + self.compared > CALLS + times(pages, WALK) + times(written, CLOSED_WRITE)
    }

    /// Whether to start over, with an image of `captured` captured pages, costs less than what the search among
    /// pages that were mapped once and may not be needed again has cost. Only once: where they are needed,
    /// closing them is better.
    pub(crate) fn starting_over_pays(&self, captured: usize) -> bool {
        let price = CALLS
            + times(self.present(), MAP_AGAIN)
            + times(self.private.saturating_add(captured), FIRST_WRITE);
        !self.started_over && !self.cannot_start_over && self.looked > price
    }

    /// Whether to start over costs less than to discard so many runs of so many pages, if `needed` private pages
    /// have to be made again then.
    pub(crate) fn starting_over_beats_discarding(&self, runs: usize, pages: usize, needed: usize) -> bool {
        let price =
            |others| CALLS + times(others, MAP_AGAIN) + times(pages, DISCARD) + times(needed, FIRST_WRITE);
        !self.cannot_start_over && self.others.is_some_and(|others| times(runs, DISCARD_RUN) > price(others))
    }

    /// Whether to believe that the pages written before the last restore, no others being private now, have all
    /// been written again. One time in eight they are compared.
    pub(crate) fn trusts_recurrence(&mut self) -> bool {
        self.recurred = (self.recurred + 1) % 8;
        self.recurred != 0
    }

    /// After all pages were closed, `private` of those that are the view's own.
    pub(crate) fn closed(&mut self, private: usize) {
        self.looked = 0;
        self.compared = 0;
        self.closed += private;
    }

    /// Whether closed pages may hold more memory than the view is to keep, beyond `hidden` pages that have to be
    /// private to show the image.
    pub(crate) fn keeps_much(&self, hidden: usize) -> bool {
        self.closed > self.kept_pages + hidden
    }

    /// After nothing of the view is in memory any more.
    pub(crate) fn started_over(&mut self) {
        let Self { kept_pages, cannot_start_over, .. } = *self;
        *self = Self { kept_pages, cannot_start_over, started_over: true, ..Self::default() };
    }

    pub(crate) fn cannot_start_over(&mut self) {
        self.cannot_start_over = true;
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
        ledger.searched_all(PAGES, PAGES, Some(PAGES));
        ledger.found(PAGES, PAGES);
        assert!(!ledger.starting_over_beats_discarding(0, PAGES, PAGES));
        assert!(ledger.arming_pays(0) && !ledger.starting_over_pays(PAGES));
    }
}
