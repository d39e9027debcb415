//! Tests of the cost model: measured costs, and the decisions that follow from them.

use super::*;

const fn ns(nanoseconds: u64) -> Duration {
    Duration::from_nanos(nanoseconds)
}

/// The number of runs times the number of pages once overflowed a `usize` of 32 bits, for views that have more than
/// 65,536 runs to discard.
#[test]
fn numbers_of_runs_and_costs_do_not_overflow() {
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

#[test]
fn costs_follow_measurements_and_a_single_outlier_changes_them_little() {
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

    assert_eq!(costs.write_protect(1_000), CALLS + 1_000 * WALK);
    (0..50).for_each(|_| costs.searched(ns(30_000)));
    assert!((29_000..31_000).contains(&costs.search), "{}", costs.search);
    for _ in 0..30 {
        // The search is 30,000 ns of this.
        costs.write_protected(true, ns(1_030_000));
    }
    assert!((990_000..1_010_000).contains(&costs.write_protect(1_000)), "{}", costs.write_protect(1_000));
}

#[test]
fn pages_are_write_protected_once_comparing_them_has_cost_as_much() {
    let mut ledger = Ledger::new(0);
    ledger.costs.write_protected(false, ns(100_000));
    let mut rounds = 0;
    while !ledger.should_write_protect(1_000) {
        ledger.found(10, 20, 0);
        rounds += 1;
    }
    // Each round needlessly compares 20 pages. Write-protecting the pages costs 100,000 ns and 10 write faults.
    assert_eq!(rounds, (100_000 + 10 * WRITE_FAULT) / (20 * COMPARE) + 1);
    ledger.write_protected(20);
    assert!(!ledger.should_write_protect(1_000));
    assert_eq!(ledger.stats(1_000).spent_in_vain, 0);
    // Comparing pages that are written each time wastes no time.
    (0..10_000).for_each(|_| ledger.found(10, 0, 0));
    assert!(!ledger.should_write_protect(1_000));
}

/// Each of a few pages is written now and then.
///
/// Most comparisons find no change. But if the pages were write-protected, each of them would take a write fault
/// again.
#[test]
fn pages_that_are_written_now_and_then_are_not_write_protected() {
    let mut ledger = Ledger::new(0);
    (0..50).for_each(|_| ledger.costs.compared(100, ns(100 * 130)));
    for _ in 0..1_000 {
        ledger.searched_unprotected(250);
        ledger.found(46, 250 - 46, 0);
        ledger.found_written(46);
    }
    assert!(!ledger.should_write_protect(250), "{}", ledger.stats(250).spent_in_vain);
    // Now most of the pages are never written.
    for _ in 0..1_000 {
        ledger.searched_unprotected(250);
        ledger.found(5, 250 - 5, 0);
        ledger.found_written(5);
    }
    assert!(ledger.should_write_protect(250));
    // Different pages are written each time. Not write-protecting pages saves none of their write faults.
    ledger.write_protected(250);
    for round in 1..20 {
        ledger.searched_unprotected(46 * round);
        ledger.found(46, 46 * (round - 1), 0);
        ledger.found_written(46);
    }
    assert!(ledger.should_write_protect(250));
}

/// Snapshots of a map with a million entries, of which other ones change each time, once compared four times as many pages
/// as had changed.
#[test]
fn pages_are_write_protected_at_once_if_other_ones_are_written_each_time() {
    // Returns how many of the calls that each write `written` pages, `reused` of them as before, write-protect at once.
    let at_once = |ledger: &mut Ledger, written: usize, reused: usize| {
        let calls = |_: &usize| {
            let protects = ledger.should_write_protect(1 << 16);
            let at_once = !protects && ledger.should_write_protect_at_once(1 << 16);
            let before = ledger.unprotected;
            let found = written + before - reused.min(before);
            ledger.searched_unprotected(found);
            if protects || at_once {
                ledger.write_protected(found);
            }
            ledger.found(written, found - written, 0);
            ledger.found_written(written);
            at_once
        };
        (0..200_usize).filter(calls).count()
    };
    let new = || {
        let mut ledger = Ledger::new(0);
        ledger.costs.write_protected(false, ns(300_000));
        ledger
    };
    let mut ledger = new();
    assert!((180..195).contains(&at_once(&mut ledger, 2_000, 50)));
    // The view notices when the same pages are written each time, and when that ends.
    assert!(at_once(&mut ledger, 2_000, 2_000) < 40);
    assert_eq!(at_once(&mut ledger, 2_000, 2_000), 0);
    at_once(&mut ledger, 2_000, 50);
    assert!((180..195).contains(&at_once(&mut ledger, 2_000, 50)));
    // Comparing few pages takes less time than write-protecting all.
    assert_eq!(at_once(&mut new(), 20, 1), 0);
    // If most pages are written again, write faults take longer than comparing the others.
    assert_eq!(at_once(&mut new(), 2_000, 1_500), 0);
}

/// After the first write to a huge page, its pages get entries of their own.
///
/// A view that had last counted its pages when they were in huge pages once kept the tracking method `scan`,
/// although its searches took many milliseconds.
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
    assert!(!search(&mut ledger, 100_000, 2_000_000), "the number of pages explains the time");
}

#[test]
fn pages_are_compared_less_often_each_time_that_all_were_written_again() {
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
fn a_view_is_sparse_as_long_as_few_of_its_pages_are_resident() {
    let mut ledger = Ledger::new(0);
    assert!(!ledger.is_sparse(1_000), "the number of resident pages is not known");
    ledger.searched_all(100, 1_000, Some(100), ns(10_000));
    assert!(ledger.is_sparse(1_000) && !ledger.is_sparse(800));
    assert!(ledger.stays_sparse(1_000_000));
    ledger.costs.searched(ns(1_000_000));
    assert!(ledger.stays_sparse(10_000), "the search may have been interrupted");
    (0..50).for_each(|_| ledger.costs.searched(ns(1_000_000)));
    assert!(ledger.stays_sparse(1_000_000) && !ledger.stays_sparse(100_000));
}
