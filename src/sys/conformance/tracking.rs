//! Tests of `Tracker`: a search lists every page that was written.

use std::collections::BTreeSet;
use std::io::{self, Read};

use super::{Area, done, file, on_disk, range};
use crate::pages::{PageRange, PageSet};
use crate::sys::{Closed, Scope, Search, Source, Tracker, Tracking, fault, page_size};

const ALL: [Tracking; 6] = [
    Tracking::Auto,
    Tracking::Armed,
    Tracking::Scan,
    Tracking::Pagemap,
    Tracking::WorkingSet,
    Tracking::Compare,
];

/// The number of pages of the areas that [`search_repeatedly`] writes to.
const PAGES: usize = 400;

/// The pages that a search has to list.
#[derive(Default)]
struct Wanted {
    /// The private pages.
    private: BTreeSet<usize>,
    /// The pages that were written since pages were last write-protected.
    since_closed: BTreeSet<usize>,
}

impl Wanted {
    fn add(&mut self, pages: impl IntoIterator<Item = usize>) {
        for page in pages {
            self.private.insert(page);
            self.since_closed.insert(page);
        }
    }

    fn remove(&mut self, range: PageRange) {
        self.private.retain(|page| !range.iter().contains(page));
        self.since_closed.retain(|page| !range.iter().contains(page));
    }
}

/// A search lists the pages that the program or the kernel wrote since pages were write-protected.
///
/// If it is asked for private pages, it lists all of them.
#[test]
fn no_written_page_is_missed() {
    let file = file(50, PAGES).unwrap();
    for tracking in ALL {
        for source in [Source::Zero, Source::Private(&file)] {
            let mut area = Area::placed(PAGES, source, &[], 8).unwrap();
            match Tracker::new(tracking, &area) {
                Ok(tracker) => {
                    search_repeatedly(tracker, tracking, &mut area, matches!(source, Source::Zero));
                }
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error}"),
            }
        }
    }
}

/// Writes to `area` and searches it, again and again.
///
/// `zero` says whether the area shows zeroes where it is not private.
fn search_repeatedly(mut tracker: Tracker, tracking: Tracking, area: &mut Area, zero: bool) {
    let mut wanted = Wanted::default();
    let mut random = 12_345_usize;
    for round in 0..60 {
        wanted.add(write_somewhere(area, &mut random));
        let search = match round % 4 {
            0 => Search::Written,
            1 => Search::Private,
            _ => Search::WrittenAndClose,
        };
        let found = tracker.find(search, area, round % 3 == 0, &PageSet::new(), |_| zero).unwrap();
        assert!(found.pages.below(PAGES) == found.pages);
        let all_private = search == Search::Private || !found.since_closed;
        let expected = if all_private { &wanted.private } else { &wanted.since_closed };
        let missed = expected.iter().find(|&&page| !found.pages.contains(page));
        assert_eq!(missed, None, "{tracking} ({search:?}) in round {round}");
        assert!(found.closed == Closed::Nothing || search == Search::WrittenAndClose);
        let mut closed = vec![found.closed];
        if round % 10 == 8 {
            closed.push(tracker.close(area));
        }
        if round % 10 == 5 {
            let scope = if round % 20 == 5 { Scope::InMemory } else { Scope::All };
            closed.push(tracker.arm(area, scope));
        }
        // All pages that were written are in memory, so either scope has them.
        if closed.iter().any(|closed| *closed != Closed::Nothing) {
            wanted.since_closed.clear();
        }
        if round == 53 {
            tracker.widen();
        }
        let part = range(100, 150);
        if round % 10 == 9 && done(area.replace_part(part, Source::Zero)) {
            tracker.renewed(area, part);
            wanted.remove(part);
            // A tracker need not list zeroes that were mapped over a file: its owner knows where they are.
            if !zero {
                area.fill(part.iter(), 3);
                wanted.add(part.iter());
            }
        }
    }
    tracker.disarm();
    let found = tracker.find(Search::Written, area, false, &PageSet::new(), |_| zero).unwrap();
    assert!(wanted.private.iter().all(|&page| found.pages.contains(page)), "{tracking} after the end");
}

/// Writes one page, and makes the kernel write to a range of pages.
///
/// Returns the pages that were written.
fn write_somewhere(area: &mut Area, random: &mut usize) -> impl Iterator<Item = usize> + use<> {
    let mut next = || {
        *random = random.wrapping_mul(1_103_515_245).wrapping_add(12_345) & 0x7FFF_FFFF;
        *random / 8 % PAGES
    };
    let (one, first) = (next(), next());
    area.fill([one], 1);
    let read = range(first, (first + next() % 50).min(PAGES));
    let mut disk = on_disk(&vec![2; read.len() * page_size()]);
    disk.read_exact(area.bytes(read)).unwrap();
    read.iter().chain([one])
}

#[test]
fn ways_of_tracking_can_be_changed_and_find_nothing_in_nothing() {
    let file = file(50, 20).unwrap();
    let mut area = Area::new(20, Source::Private(&file)).unwrap();
    let empty = Area::new(0, Source::Zero).unwrap();
    let mut tracker = Tracker::new(Tracking::Auto, &area).unwrap();
    for (page, tracking) in ALL.into_iter().chain(ALL).enumerate() {
        let before = tracker.tracking();
        match tracker.switch(&area, tracking) {
            Ok(()) => _ = tracking == Tracking::Auto || tracker.arm(&area, Scope::All) == Closed::All,
            Err(error) => {
                assert_eq!((error.kind(), tracker.tracking()), (io::ErrorKind::Unsupported, before));
            }
        }
        assert_ne!(tracker.tracking(), Tracking::Auto);
        area.fill([page], 1);
        let found = tracker.find(Search::Written, &area, false, &PageSet::new(), |_| false).unwrap();
        assert!(found.pages.contains(page), "{tracking}");
        if let Ok(mut tracker) = Tracker::new(tracking, &empty) {
            for search in [Search::Private, Search::Written, Search::WrittenAndClose] {
                assert!(
                    tracker.find(search, &empty, true, &PageSet::new(), |_| true).unwrap().pages.is_empty()
                );
            }
            tracker.arm(&empty, Scope::All);
            tracker.close(&empty);
        }
    }
}

/// After a failed search any page may have been written.
///
/// The next search lists the pages written since, and one for private pages lists all of them.
#[test]
fn a_failed_search_loses_nothing_private() {
    let file = file(50, 20).unwrap();
    for tracking in ALL {
        if Tracker::new(tracking, &Area::new(20, Source::Private(&file)).unwrap()).is_err() {
            continue;
        }
        fault::inject(u64::MAX, 0, || ());
        for call in 0..12 {
            fault::inject(call, 1, || {
                let mut area = fault::suspend(|| Area::new(20, Source::Private(&file)).unwrap());
                let Ok(mut tracker) = Tracker::new(tracking, &area) else { return };
                area.fill([3, 9], 1);
                tracker.arm(&area, Scope::All);
                area.fill([5], 1);
                let _ = tracker.find(Search::WrittenAndClose, &area, false, &PageSet::new(), |_| false);
                area.fill([7], 1);
                let found = fault::suspend(|| {
                    tracker.find(Search::Written, &area, false, &PageSet::new(), |_| false).unwrap()
                });
                assert!(found.pages.contains(7), "{tracking} with failure {call}");
                let all = fault::suspend(|| {
                    tracker.find(Search::Private, &area, false, &PageSet::new(), |_| false).unwrap()
                });
                assert!([3, 5, 7, 9].iter().all(|&page| all.pages.contains(page)));
            });
        }
    }
}
