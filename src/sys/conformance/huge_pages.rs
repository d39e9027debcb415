//! Tests of huge pages, and of what a system may ignore: `populate`, names and `MemoryFile::collapse`.

use std::io;

use super::{Area, done, file, looks, on_disk, range};
use crate::pages::PageSet;
use crate::sys::{
    Closed, Collapsed, Entries, HugePages, LARGE, Mapping, MemoryFile, Placement, Populate, Scope, Search,
    Source, Tracker, Tracking, borrowed, huge_region, page_size,
};

#[test]
fn wishes_change_no_byte() {
    let file = file(50, 5).unwrap();
    file.collapse();
    let placement = Placement {
        huge_pages: HugePages::Advise,
        name: Some(c"conformance".into()),
        ..Placement::default()
    };
    let mut area = Area(Mapping::placed(5, Source::Private(&file), &[], &placement).unwrap());
    assert_eq!(area.look(), looks(50, 5));
    area.fill([2], 1);
    for populate in [Populate::No, Populate::Read, Populate::Write] {
        for part in [range(0, 5), range(3, 4), range(5, 5)] {
            done(area.populate(part, populate));
        }
        assert_eq!(area.look(), [50, 51, 1, 53, 54]);
    }
    done(Area::new(0, Source::Zero).unwrap().populate(range(0, 0), Populate::Write));
}

/// A region moves into a huge page or stays as it is.
///
/// No byte changes, and searches list all later writes.
#[test]
fn a_region_may_move_into_a_huge_page() {
    let Some(region) = huge_region() else { return };
    let pages = (LARGE / page_size()).max(2 * region);
    for tracking in [Tracking::Scan, Tracking::Armed] {
        let file = file(50, pages).unwrap();
        let mut area = Area::new(pages, Source::Private(&file)).unwrap();
        let Ok(mut tracker) = Tracker::new(tracking, &area) else { continue };
        assert!(tracker.gains_from_huge_pages());
        area.fill([region + 3], 9);
        let mut expected = looks(50, pages);
        expected[region + 3] = 9;
        assert_eq!(area.look(), expected);
        if tracking == Tracking::Armed {
            assert_eq!(tracker.arm(&area, Scope::All), Closed::All);
        }
        let (first, second) = (range(0, region), range(region, 2 * region));
        assert_eq!(area.entries(first).unwrap(), Entries { huge: 0, small: region });
        assert_eq!(file.holes(&area, first), Some(0));
        let Collapsed { moved, opened } = tracker.collapse(&area, second);
        assert_eq!((moved.unwrap_err().kind(), opened), (io::ErrorKind::Unsupported, false));
        let Collapsed { moved, opened } = tracker.collapse(&area, first);
        assert!(!opened);
        assert_eq!(area.look(), expected);
        let entries = area.entries(first).unwrap();
        assert_eq!((entries.huge, entries.small), if moved.is_ok() { (region, 0) } else { (0, region) });
        area.fill([7, region - 1], 9);
        (expected[7], expected[region - 1]) = (9, 9);
        assert_eq!(area.look(), expected);
        let found = tracker.find(Search::Written, &area, false, &PageSet::new(), |_| false).unwrap();
        let missed =
            expected.iter().enumerate().filter(|&(page, look)| *look == 9 && !found.pages.contains(page));
        let missed: Vec<_> = missed
            .map(|(page, _)| page)
            .filter(|page| tracking == Tracking::Scan || *page < region)
            .collect();
        assert!(missed.is_empty(), "{tracking}: {missed:?}");
    }
    // Half of this file is a hole. No page was read, so none has an entry.
    let half = MemoryFile::create(region, region, None).unwrap();
    half.write_pages(0, vec![1; region / 2 * page_size()].chunks(page_size())).unwrap();
    half.finish();
    let area = Area::new(region, Source::Private(&half)).unwrap();
    assert_eq!(half.holes(&area, range(0, region)), Some(region / 2));
    // A kernel before 6.7 cannot tell how pages are mapped, so the call fails.
    if let Ok(entries) = area.entries(range(0, region)) {
        assert_eq!(entries, Entries::default());
    }
    let disk = on_disk(&vec![2; region * page_size()]);
    let (disk, _) = borrowed(&disk).unwrap();
    let area = Area::new(region, Source::Private(&disk)).unwrap();
    assert_eq!(disk.holes(&area, range(0, region)), None);
}
