//! What the contract of [`super`] promises, tried on the backend in use: each item before and after, in its failures,
//! with nothing, and at the edges of pages. Knows nothing but the seam.
//!
//! Each page of a file or mapping holds one byte over and over, so that what a mapping shows is a list of bytes.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::ops::Deref;
use std::slice;

use super::{
    Closed, Collapsed, Entries, LARGE, Mapping, MemoryFile, Overlay, Placement, Scope, Search, Source,
    Tracker, available_memory, borrowed, copy_of, fault, file_limit, huge_region, page_size, replaces_unseen,
    stream,
};
use crate::access::Access;
use crate::pages::{PageRange, PageSet};
use crate::sys::{HugePages, Populate, Tracking};

/// A mapping of which no reference is given out for longer than a call.
struct Area(Mapping);

impl Deref for Area {
    type Target = Mapping;

    fn deref(&self) -> &Mapping {
        &self.0
    }
}

impl Area {
    fn new(pages: usize, source: Source<'_>) -> io::Result<Self> {
        let area = Self(Mapping::new(pages, source)?);
        assert_eq!((area.pages(), area.len()), (pages, pages * page_size()));
        assert_eq!(area.inaccessible(), (0, 0));
        assert!(area.as_ptr().addr().get().is_multiple_of(page_size()));
        area.check_owner().unwrap();
        Ok(area)
    }

    fn placed(pages: usize, source: Source<'_>, over: &[Overlay<'_>], behind: usize) -> io::Result<Self> {
        let placement = Placement { before: 2, behind, ..Placement::default() };
        let area = Self(Mapping::placed(pages, source, over, &placement)?);
        assert_eq!(area.pages(), pages);
        let (before, after) = area.inaccessible();
        assert!(before >= 2 && after >= behind);
        Ok(area)
    }

    /// The byte of each page.
    fn look(&self) -> Vec<u8> {
        let look = |page| {
            // SAFETY: all pages of an area are readable when it is looked at, and nobody writes to them meanwhile.
            let bytes = unsafe { self.page(page) };
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "page {page} is a mixture");
            bytes[0]
        };
        (0..self.pages()).map(look).collect()
    }

    fn fill(&mut self, pages: impl IntoIterator<Item = usize>, byte: u8) {
        let bytes = vec![byte; page_size()];
        // SAFETY: the area is borrowed exclusively, and `bytes` are elsewhere.
        pages.into_iter().for_each(|page| unsafe { self.write(page, &bytes) });
    }

    /// Its bytes, for the kernel to write to.
    fn bytes(&mut self, range: PageRange) -> &mut [u8] {
        let len = range.len() * page_size();
        // SAFETY: the pages are the mapping's, writable, and borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.page_ptr(range.start).as_ptr(), len) }
    }

    fn extend(&mut self, pages: usize, source: Source<'_>) -> io::Result<()> {
        self.0.extend(pages, source)
    }

    fn replace(&mut self, source: Source<'_>, over: &[Overlay<'_>]) -> io::Result<()> {
        // SAFETY: the area is borrowed exclusively, and so are its bytes.
        unsafe { self.0.replace(source, over) }
    }

    fn replace_part(&mut self, range: PageRange, source: Source<'_>) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { self.0.replace_part(range, source) }
    }

    fn truncate(&mut self, pages: usize) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { self.0.truncate(pages) }
    }

    fn discard(&mut self, pages: &PageSet) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { self.0.discard(pages) }
    }

    fn give_back(&mut self, pages: &PageSet) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { self.0.give_back(pages) }
    }

    fn set_access(&mut self, range: PageRange, access: Access) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { self.0.set_access(range, access) }
    }
}

fn range(start: usize, end: usize) -> PageRange {
    PageRange::new(start, end)
}

fn set(pages: impl IntoIterator<Item = usize>) -> PageSet {
    pages.into_iter().collect()
}

/// What a file of `seed` has in each of its pages.
fn looks(seed: u8, pages: usize) -> Vec<u8> {
    (0..pages).map(|page| seed + (page % 40).to_le_bytes()[0]).collect()
}

fn file(seed: u8, pages: usize) -> io::Result<MemoryFile> {
    let file = MemoryFile::create(pages, pages, Some(c"conformance"))?;
    let bytes: Vec<_> = looks(seed, pages).into_iter().flat_map(|byte| vec![byte; page_size()]).collect();
    file.write_pages(0, bytes.chunks(page_size()))?;
    file.finish();
    Ok(file)
}

/// What a file holds, by a mapping of it.
fn content(file: &MemoryFile) -> Vec<u8> {
    Area::new(file.pages(), Source::ReadOnly(file)).unwrap().look()
}

/// Whether something was done that a system may be unable to do.
fn done(result: io::Result<()>) -> bool {
    match result {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::Unsupported => false,
        Err(error) => panic!("{error}"),
    }
}

/// Runs `script` with no failure, and with each single call into the system failing; `script` is told that one may.
fn with_each_failure(script: impl Fn()) {
    let ((), calls) = fault::inject(u64::MAX, 0, &script);
    assert!(calls > 0, "no call can fail");
    for call in 0..calls {
        fault::inject(call, 1, &script);
    }
}

#[test]
fn a_page_is_a_power_of_two_and_the_process_may_open_files() {
    assert!(page_size().is_power_of_two() && page_size() <= 1 << 16);
    assert!(file_limit() > 2);
    assert_ne!(available_memory(), Some(0));
}

#[test]
fn a_file_is_zero_and_then_what_was_written() {
    let mut file = MemoryFile::create(5, 9, None).unwrap();
    assert_eq!(file.pages(), 5);
    assert_eq!(content(&file), [0; 5]);
    file.write_at(&[], 0).unwrap();
    file.write_pages(5, std::iter::empty()).unwrap();
    let page = page_size();
    file.write_at(&vec![7; 2 * page], page).unwrap();
    file.write_pages(4, [vec![9; page]].iter().map(|bytes| &bytes[..])).unwrap();
    assert_eq!(content(&file), [0, 7, 7, 0, 9]);
    file.write_at(&vec![8; page - 1], 3 * page + 1).unwrap();
    file.write_at(&[8], 3 * page).unwrap();
    assert_eq!(content(&file), [0, 7, 7, 8, 9]);
    assert!(file.allocated() > 0);
    assert!([1, 2, 3, 4].iter().all(|&page| file.data().contains(page)));
    assert!(file.data().below(5) == file.data(), "pages beyond the end hold data");
    file.set_pages(9).unwrap();
    assert_eq!(content(&file), [0, 7, 7, 8, 9, 0, 0, 0, 0]);
    file.finish();
    assert_eq!(content(&file), [0, 7, 7, 8, 9, 0, 0, 0, 0]);
}

#[test]
fn a_hole_is_zero_or_was_not_made() {
    let file = file(50, 6).unwrap();
    let unsealed = MemoryFile::create(6, 6, None).unwrap();
    unsealed.write_at(&vec![5; 6 * page_size()], 0).unwrap();
    let punched = unsealed.punch(range(2, 4)).is_ok();
    assert_eq!(content(&unsealed), if punched { [5, 5, 0, 0, 5, 5] } else { [5; 6] });
    let _ = unsealed.punch(range(3, 3));
    assert!([0, 1, 4, 5].iter().all(|&page| unsealed.data().contains(page)));
    assert_eq!(content(&file), looks(50, 6));
}

#[test]
fn files_of_no_pages_are_files() {
    let mut empty = MemoryFile::create(0, 3, None).unwrap();
    assert_eq!((empty.pages(), empty.data()), (0, PageSet::new()));
    for source in [Source::Zero, Source::Private(&empty), Source::ReadOnly(&empty)] {
        assert!(Area::new(0, source).unwrap().look().is_empty());
    }
    empty.set_pages(3).unwrap();
    assert_eq!(content(&empty), [0; 3]);
}

#[test]
fn sizes_past_the_address_space_are_errors() {
    let most = usize::MAX / page_size();
    assert!(Mapping::new(most, Source::Zero).is_err());
    // With addresses of 32 bits, a file may well be longer than they are.
    assert!(usize::BITS < 64 || MemoryFile::create(most, most, None).is_err());
    for (before, behind) in [(most, 0), (0, most), (most / 2, most / 2), (usize::MAX, usize::MAX)] {
        let placement = Placement { before, behind, ..Placement::default() };
        assert!(Mapping::placed(1, Source::Zero, &[], &placement).is_err());
    }
}

#[test]
fn private_writes_stay_private_and_shared_ones_reach_the_file() {
    let file = file(50, 4).unwrap();
    let mut zero = Area::new(4, Source::Zero).unwrap();
    let mut private = Area::new(4, Source::Private(&file)).unwrap();
    let other = Area::new(4, Source::Private(&file)).unwrap();
    assert_eq!(zero.look(), [0; 4]);
    assert_eq!(private.look(), looks(50, 4));
    zero.fill([0, 3], 1);
    private.fill([0, 3], 1);
    assert_eq!(zero.look(), [1, 0, 0, 1]);
    assert_eq!(private.look(), [1, 51, 52, 1]);
    assert_eq!(other.look(), looks(50, 4));
    assert_eq!(content(&file), looks(50, 4));

    let open = MemoryFile::create(3, 3, None).unwrap();
    let Ok(mut shared) = Area::new(3, Source::Shared(&open)) else { return };
    shared.fill([0, 2], 9);
    assert_eq!(shared.look(), [9, 0, 9]);
    assert_eq!(content(&open), [9, 0, 9]);
    assert!(open.allocated() > 0);
    assert!(open.data().contains(0) && open.data().contains(2));
    drop(shared);
    assert_eq!(content(&open), [9, 0, 9]);
    open.finish();
    assert_eq!(Area::new(3, Source::Private(&open)).unwrap().look(), [9, 0, 9]);
}

#[test]
fn a_mapping_outlives_the_file() {
    let dropped = file(50, 6).unwrap();
    let mut area = Area::new(6, Source::Private(&dropped)).unwrap();
    drop(dropped);
    area.fill([1], 1);
    assert_eq!(area.look(), [50, 1, 52, 53, 54, 55]);
    if done(area.discard(&set([1]))) {
        assert_eq!(area.look(), looks(50, 6));
    }
}

#[test]
fn of_several_overlays_the_last_counts() {
    let (a, b) = (file(50, 10).unwrap(), file(100, 10).unwrap());
    let over = [
        (range(2, 8), Source::Private(&b)),
        (range(4, 6), Source::Zero),
        (range(9, 10), Source::Zero),
        (range(3, 3), Source::Zero),
    ];
    let expected = [50, 51, 102, 103, 0, 0, 106, 107, 58, 0];
    let area = Area::placed(10, Source::Private(&a), &over, 3).unwrap();
    assert_eq!(area.look(), expected);
    let mut area = Area::new(10, Source::Zero).unwrap();
    area.fill(0..10, 1);
    let address = area.as_ptr();
    area.replace(Source::Private(&a), &over).unwrap();
    assert_eq!(area.look(), expected);
    area.fill([0, 5, 9], 1);
    area.replace(Source::Private(&b), &[]).unwrap();
    assert_eq!(area.look(), looks(100, 10));
    assert_eq!(area.as_ptr(), address);
}

#[test]
fn what_is_replaced_in_part_leaves_the_rest_alone() {
    let (a, b) = (file(50, 10).unwrap(), file(100, 10).unwrap());
    for source in [Source::Zero, Source::Private(&a)] {
        let mut area = Area::placed(10, source, &[], 0).unwrap();
        area.fill([0, 3, 4, 6, 9], 1);
        let mut expected = area.look();
        for (part, source, look) in [
            (range(4, 6), Source::Private(&b), looks(100, 10)),
            (range(5, 7), Source::Zero, vec![0; 10]),
            (range(0, 1), Source::Private(&a), looks(50, 10)),
            (range(9, 10), Source::Private(&b), looks(100, 10)),
            (range(7, 7), Source::Private(&b), looks(100, 10)),
            (range(10, 10), Source::Zero, vec![0; 10]),
            (range(0, 10), Source::Private(&b), looks(100, 10)),
        ] {
            if done(area.replace_part(part, source)) {
                expected[part.iter()].copy_from_slice(&look[part.iter()]);
            }
            assert_eq!(area.look(), expected);
            area.fill([1, 5], 2);
            (expected[1], expected[5]) = (2, 2);
            assert_eq!(area.look(), expected);
        }
    }
    assert_eq!((content(&a), content(&b)), (looks(50, 10), looks(100, 10)));
}

#[test]
fn what_is_discarded_shows_its_source_again_or_nothing_changes() {
    let (a, b) = (file(50, 20).unwrap(), file(100, 20).unwrap());
    let mut area = Area::placed(16, Source::Private(&a), &[(range(10, 12), Source::Zero)], 8).unwrap();
    area.extend(4, Source::Private(&b)).unwrap();
    let mut source = looks(50, 16);
    source[10..12].fill(0);
    source.extend_from_slice(&looks(100, 20)[16..]);
    if done(area.replace_part(range(4, 8), Source::Private(&b))) {
        source[4..8].copy_from_slice(&looks(100, 20)[4..8]);
    }
    assert_eq!(area.look(), source);
    for (written, discarded) in [
        (set([]), set([])),
        (set([0]), set([])),
        (set(0..20), set(0..20)),
        (set([3, 4, 7, 8, 10, 15, 16, 19]), set([4, 7, 10, 16])),
        (set(2..18), set(3..17)),
        (set([1, 5]), set([1, 2, 6, 19])),
        (set([19]), set([19])),
        (set([0, 5, 11, 17]), set([0, 5, 11, 17])),
    ] {
        let mut expected = area.look();
        area.fill(written.iter(), 1);
        written.iter().for_each(|page| expected[page] = 1);
        if done(area.discard(&discarded)) {
            discarded.iter().for_each(|page| expected[page] = source[page]);
        }
        assert_eq!(area.look(), expected);
        // The address is that of the mapping still.
        area.fill([6], 1);
        expected[6] = 1;
        assert_eq!(area.look(), expected);
    }
    area.truncate(18).unwrap();
    area.fill(0..18, 1);
    if done(area.discard(&set(0..18))) {
        assert_eq!(area.look(), source[..18]);
    }
    assert_eq!((content(&a), content(&b)), (looks(50, 20), looks(100, 20)));
}

#[test]
fn discards_in_many_places_show_the_source_or_change_nothing() {
    const PAGES: usize = 3000;
    let file = file(50, PAGES).unwrap();
    let mut area = Area::new(PAGES, Source::Private(&file)).unwrap();
    for first in [0, 1, 0] {
        area.fill(0..PAGES, 1);
        let pages = set((first..PAGES).step_by(2));
        let mut expected = vec![1; PAGES];
        if done(area.discard(&pages)) {
            pages.iter().for_each(|page| expected[page] = looks(50, PAGES)[page]);
        }
        assert_eq!(area.look(), expected);
    }
    if done(area.discard(&PageSet::all(PAGES))) {
        assert_eq!(area.look(), looks(50, PAGES));
    }
}

#[test]
fn memory_given_back_can_be_written_again() {
    let mut area = Area::new(12, Source::Zero).unwrap();
    area.fill(0..12, 3);
    area.give_back(&set([])).unwrap();
    if area.give_back(&set([0, 1, 5, 6, 7, 11])).is_ok() {
        let kept = [2, 3, 4, 8, 9, 10];
        assert!(kept.iter().all(|&page| area.look()[page] == 3));
    }
    area.fill(0..12, 4);
    assert_eq!(area.look(), [4; 12]);
}

#[test]
fn growth_and_its_end_leave_no_bytes_behind() {
    let file = file(50, 9).unwrap();
    for first in [0, 1, 3] {
        let mut area = Area::placed(first, Source::Private(&file), &[], 9).unwrap();
        let (address, reserved) = (area.as_ptr(), area.inaccessible());
        for source in [Source::Zero, Source::Private(&file), Source::Zero] {
            area.extend(0, source).unwrap();
            area.extend(2, source).unwrap();
            area.extend(4, Source::Zero).unwrap();
            assert_eq!(area.inaccessible(), (reserved.0, reserved.1 - 6));
            let mut expected = looks(50, first + 2);
            if matches!(source, Source::Zero) {
                expected[first..].fill(0);
            }
            expected.extend([0; 4]);
            assert_eq!(area.look(), expected);
            area.fill(first..first + 6, 1);
            area.truncate(first + 5).unwrap();
            area.truncate(first + 5).unwrap();
            area.extend(1, Source::Zero).unwrap();
            assert_eq!(area.look()[first..], [1, 1, 1, 1, 1, 0]);
            area.truncate(first).unwrap();
            assert_eq!((area.look(), area.inaccessible()), (looks(50, first), reserved));
            assert_eq!(area.as_ptr(), address);
        }
        area.truncate(0).unwrap();
        assert!(area.look().is_empty());
        area.extend(2, Source::Private(&file)).unwrap();
        assert_eq!(area.look(), looks(50, 2));
    }
}

#[test]
fn a_file_written_in_place_grows_with_its_mapping() {
    let mut file = MemoryFile::create(2, 5, None).unwrap();
    let Ok(mut area) = Area::placed(2, Source::Shared(&file), &[], 3) else { return };
    area.fill([0, 1], 1);
    file.set_pages(5).unwrap();
    area.extend(3, Source::Shared(&file)).unwrap();
    area.fill([4], 2);
    assert_eq!(area.look(), [1, 1, 0, 0, 2]);
    assert_eq!(content(&file), [1, 1, 0, 0, 2]);
    area.check_owner().unwrap();
    area.truncate(1).unwrap();
    drop(area);
    assert_eq!(content(&file), [1, 1, 0, 0, 2]);
}

#[test]
fn access_goes_each_way_and_back_with_the_bytes_kept() {
    let file = file(50, 5).unwrap();
    let kinds = [Access::NONE, Access::READ, Access::READ_WRITE, Access::READ_EXECUTE];
    for source in [Source::Zero, Source::Private(&file)] {
        let mut area = Area::placed(5, source, &[], 1).unwrap();
        area.fill([1, 4], 7);
        let mut expected = area.look();
        for (from, to) in kinds.iter().flat_map(|&from| kinds.map(|to| (from, to))) {
            for part in [range(1, 3), range(0, 5), range(4, 5), range(5, 5)] {
                // A file on disk may be in a place from which nothing can be run.
                let _ = area.set_access(part, from);
                let _ = area.set_access(part, to);
                area.set_access(part, Access::READ_WRITE).unwrap();
                assert_eq!(area.look(), expected);
            }
            area.fill([2], expected[2] + 1);
            expected[2] += 1;
            assert_eq!(area.look(), expected);
        }
        area.set_access(range(0, 5), Access::NONE).unwrap();
        area.set_access(range(1, 4), Access::READ).unwrap();
        area.set_access(range(0, 1), Access::READ).unwrap();
        area.set_access(range(4, 5), Access::READ).unwrap();
        assert_eq!(area.look(), expected);
    }
}

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

/// A region moves into a huge page, or stays as it is. No byte changes, and no later write is missed.
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
    // Half of this file is holes, and it was not read.
    let half = MemoryFile::create(region, region, None).unwrap();
    half.write_pages(0, vec![1; region / 2 * page_size()].chunks(page_size())).unwrap();
    half.finish();
    let area = Area::new(region, Source::Private(&half)).unwrap();
    assert_eq!(half.holes(&area, range(0, region)), Some(region / 2));
    // Kernels that cannot tell how pages are mapped fail.
    if let Ok(entries) = area.entries(range(0, region)) {
        assert_eq!(entries, Entries::default());
    }
    let disk = on_disk(&vec![2; region * page_size()]);
    let (disk, _) = borrowed(&disk).unwrap();
    let area = Area::new(region, Source::Private(&disk)).unwrap();
    assert_eq!(disk.holes(&area, range(0, region)), None);
}

/// A reader never sees other bytes, or none, while a mapping is replaced by one that shows the same.
#[test]
fn replacing_goes_unseen_where_that_is_promised() {
    if !replaces_unseen() {
        return;
    }
    let file = file(50, 16).unwrap();
    let mut area = Area::new(16, Source::Private(&file)).unwrap();
    let start = area.as_ptr().addr().get();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for (page, look) in looks(50, 16).into_iter().enumerate() {
                    let byte = std::ptr::with_exposed_provenance::<u8>(start + page * page_size());
                    // SAFETY: the area is mapped and readable until the thread has ended.
                    assert_eq!(unsafe { byte.read_volatile() }, look);
                }
            }
        });
        (0..500).for_each(|_| area.replace(Source::Private(&file), &[]).unwrap());
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// A file on disk of `bytes`, at its start.
fn on_disk(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

/// Reads a little at a time, and is interrupted.
struct Dribble<'a>(&'a [u8], bool);

impl Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 = !self.1;
        if self.1 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let len = buffer.len().min(1 + self.0.len() / 2);
        self.0.read(&mut buffer[..len])
    }
}

#[test]
fn copies_have_the_bytes_as_they_were_and_zeroes_behind() {
    let page = page_size();
    for len in [0, 1, page - 1, page, page + 1, 3 * page, 100 * page + 5, 300_000] {
        let bytes: Vec<u8> = (0..len).map(|i| (i / 7).to_le_bytes()[0] | 1).collect();
        let mut original = on_disk(&bytes);
        let (copy, copied) = copy_of(&original, None).unwrap();
        let (mapped, borrowed) = borrowed(&original).unwrap();
        let (streamed, read) = stream(&bytes[..], Some(c"name")).unwrap();
        let (dribbled, _) = stream(Dribble(&bytes, false), None).unwrap();
        assert_eq!((copied, borrowed, read), (len, len, len));
        for file in [&copy, &mapped, &streamed, &dribbled] {
            assert_eq!(file.pages(), len.div_ceil(page));
            assert!(file.data().len() == file.pages() || len > page);
            let area = Area::new(file.pages(), Source::Private(file)).unwrap();
            // SAFETY: nobody writes to the area.
            let shown = unsafe { area.range(range(0, area.pages())) };
            assert!(shown[..len] == bytes, "{len} bytes are others");
            assert!(shown[len..].iter().all(|byte| *byte == 0), "there is something behind {len} bytes");
        }
        original.rewind().unwrap();
        original.write_all(&vec![0xFF; len]).unwrap();
        let area = Area::new(copy.pages(), Source::Private(&copy)).unwrap();
        // SAFETY: as above.
        let shown = unsafe { area.range(range(0, area.pages())) };
        assert!(shown[..len] == bytes, "the copy of {len} bytes changed with the original");
    }
}

#[test]
fn a_copy_of_a_file_with_holes_is_whole() {
    let page = page_size();
    let mut original = tempfile::tempfile().unwrap();
    original.set_len((2000 * page) as u64).unwrap();
    for at in [5, 700, 1999] {
        original.seek(io::SeekFrom::Start((at * page) as u64)).unwrap();
        original.write_all(&vec![9; page]).unwrap();
    }
    let position = original.stream_position().unwrap();
    let (copy, len) = copy_of(&original, None).unwrap();
    assert_eq!(len, 2000 * page);
    assert_eq!(original.stream_position().unwrap(), position);
    let mut expected = vec![0; 2000];
    [5, 700, 1999].iter().for_each(|&page| expected[page] = 9);
    assert_eq!(content(&copy), expected);
    assert!([5, 700, 1999].iter().all(|&page| copy.data().contains(page)));
}

#[test]
fn what_cannot_be_read_is_an_error() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("broken"))
        }
    }
    assert!(stream(Broken, None).is_err_and(|error| error.to_string() == "broken"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let unreadable = File::create(&path).unwrap();
    for refused in [copy_of(&unreadable, None), borrowed(&unreadable)] {
        assert!(refused.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied));
    }
}

const ALL: [Tracking; 6] = [
    Tracking::Auto,
    Tracking::Armed,
    Tracking::Scan,
    Tracking::Pagemap,
    Tracking::WorkingSet,
    Tracking::Compare,
];

/// What was written since pages were closed, whether by the program or the kernel, is reported, and so is all that is
/// private, if that is asked for.
#[test]
fn no_written_page_is_missed() {
    const PAGES: usize = 400;
    let file = file(50, PAGES).unwrap();
    for tracking in ALL {
        for source in [Source::Zero, Source::Private(&file)] {
            let zero = matches!(source, Source::Zero);
            let mut area = Area::placed(PAGES, source, &[], 8).unwrap();
            let mut tracker = match Tracker::new(tracking, &area) {
                Ok(tracker) => tracker,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error}");
                    continue;
                }
            };
            let (mut private, mut open) = (BTreeSet::new(), BTreeSet::new());
            let mut random = 12_345_usize;
            for round in 0..60 {
                let mut next = || {
                    random = random.wrapping_mul(1_103_515_245).wrapping_add(12_345) & 0x7FFF_FFFF;
                    random / 8 % PAGES
                };
                let (one, first) = (next(), next());
                area.fill([one], 1);
                let read = range(first, (first + next() % 50).min(PAGES));
                let mut disk = on_disk(&vec![2; read.len() * page_size()]);
                disk.read_exact(area.bytes(read)).unwrap();
                private.extend(read.iter().chain([one]));
                open.extend(read.iter().chain([one]));
                let search = match round % 4 {
                    0 => Search::Written,
                    1 => Search::Private,
                    _ => Search::WrittenAndClose,
                };
                let found = tracker.find(search, &area, round % 3 == 0, &PageSet::new(), |_| zero).unwrap();
                assert!(found.pages.below(PAGES) == found.pages);
                let wanted = if search == Search::Private || !found.since_closed { &private } else { &open };
                let missed = wanted.iter().find(|&&page| !found.pages.contains(page));
                assert_eq!(missed, None, "{tracking} ({search:?}) in round {round}");
                // What was written or read is in memory.
                let mut closed = vec![found.closed];
                assert!(found.closed == Closed::Nothing || search == Search::WrittenAndClose);
                if round % 10 == 8 {
                    closed.push(tracker.close(&area));
                }
                if round % 10 == 5 {
                    let scope = if round % 20 == 5 { Scope::InMemory } else { Scope::All };
                    closed.push(tracker.arm(&area, scope));
                }
                if closed.iter().any(|closed| *closed != Closed::Nothing) {
                    open.clear();
                }
                if round == 53 {
                    tracker.widen();
                }
                if round % 10 == 9 && done(area.replace_part(range(100, 150), Source::Zero)) {
                    tracker.renewed(&area, range(100, 150));
                    private.retain(|page| !(100..150).contains(page));
                    open.retain(|page| !(100..150).contains(page));
                    if zero {
                        continue;
                    }
                    // Zeroes over a file are the caller's to know of.
                    area.fill(100..150, 3);
                    private.extend(100..150);
                    open.extend(100..150);
                }
            }
            tracker.disarm();
            let found = tracker.find(Search::Written, &area, false, &PageSet::new(), |_| zero).unwrap();
            assert!(private.iter().all(|&page| found.pages.contains(page)), "{tracking} after the end");
        }
    }
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

#[test]
fn a_failed_file_is_none_and_a_failed_copy_too() {
    let original = on_disk(&[3; 100_000]);
    with_each_failure(|| {
        for (file, len) in [
            copy_of(&original, None),
            borrowed(&original),
            stream(&[3; 100_000][..], None),
            MemoryFile::create(2, 2, None).and_then(|file| {
                file.write_at(&vec![3; 2 * page_size()], 0)?;
                Ok((file, 2 * page_size()))
            }),
        ]
        .into_iter()
        .flatten()
        {
            fault::suspend(|| {
                let area = Area::new(file.pages(), Source::Private(&file)).unwrap();
                // SAFETY: nobody writes to the area.
                let shown = unsafe { area.range(range(0, area.pages())) };
                assert!(shown[..len].iter().all(|byte| *byte == 3));
            });
        }
    });
}

#[test]
fn failed_growth_changes_nothing() {
    let shared = MemoryFile::create(8, 8, None).unwrap();
    let file = file(50, 8).unwrap();
    for source in [Source::Zero, Source::Private(&file), Source::Shared(&shared)] {
        if matches!(source, Source::Shared(_)) && Area::new(8, source).is_err() {
            continue;
        }
        with_each_failure(|| {
            let mut area = fault::suspend(|| Area::placed(3, source, &[], 5).unwrap());
            area.fill([1, 2], 1);
            let (look, reserved) = (area.look(), area.inaccessible());
            let repeated = |area: &mut Area, call: &dyn Fn(&mut Area) -> io::Result<()>| {
                let (before, reserved) = (area.look(), area.inaccessible());
                if call(area).is_err() {
                    assert_eq!((area.look(), area.inaccessible()), (before, reserved));
                    fault::suspend(|| call(area).unwrap());
                }
            };
            repeated(&mut area, &|area| area.extend(4, source));
            assert_eq!((area.pages(), area.look()[..3].to_vec()), (7, look.clone()));
            area.fill([6], 2);
            repeated(&mut area, &|area| area.truncate(3));
            assert_eq!((area.look(), area.inaccessible()), (look, reserved));
        });
    }
}

#[test]
fn what_failed_to_be_replaced_can_be_replaced() {
    let (a, b) = (file(50, 10).unwrap(), file(100, 10).unwrap());
    let over = [(range(2, 5), Source::Private(&b)), (range(7, 8), Source::Zero)];
    let expected = [50, 51, 102, 103, 104, 55, 56, 0, 58, 59];
    with_each_failure(|| {
        let mut area = fault::suspend(|| Area::placed(10, Source::Zero, &[], 1).unwrap());
        area.fill([0, 3, 9], 1);
        let mut whole = [1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        let part = |area: &mut Area| area.replace_part(range(3, 6), Source::Private(&b));
        match part(&mut area) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(_) => {
                // All others are as they were; these show anything, and can be written unless the mapping says otherwise.
                if area.check_usable().is_ok() {
                    area.fill(3..6, 9);
                }
                fault::suspend(|| part(&mut area).unwrap());
                whole[3..6].copy_from_slice(&[103, 104, 105]);
            }
            Ok(()) => whole[3..6].copy_from_slice(&[103, 104, 105]),
        }
        assert_eq!(area.look(), whole);
        if area.replace(Source::Private(&a), &over).is_err() {
            if area.check_usable().is_ok() {
                area.fill(0..10, 9);
            }
            fault::suspend(|| area.replace(Source::Private(&a), &over).unwrap());
        }
        assert_eq!(area.look(), expected);
        if let Ok(area) = Area::placed(10, Source::Private(&a), &over, 2) {
            assert_eq!(area.look(), expected);
        }
    });
}

#[test]
fn a_failed_discard_leaves_the_rest_alone() {
    let (a, b) = (file(50, 12).unwrap(), file(100, 12).unwrap());
    with_each_failure(|| {
        let over = [(range(5, 7), Source::Private(&b))];
        let mut area = fault::suspend(|| Area::placed(12, Source::Private(&a), &over, 0).unwrap());
        area.fill(0..12, 1);
        let pages = set([1, 4, 5, 6, 7, 11]);
        let shown = [50, 51, 52, 53, 54, 105, 106, 57, 58, 59, 60, 61];
        let mut expected = [1; 12];
        pages.iter().for_each(|page| expected[page] = shown[page]);
        match area.discard(&pages) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Unsupported => expected = [1; 12],
            Err(_) => {
                // They show anything, and can be written.
                area.fill(pages.iter(), 2);
                pages.iter().for_each(|page| expected[page] = 2);
            }
        }
        assert_eq!(area.look(), expected);
        if fault::suspend(|| done(area.discard(&PageSet::all(12)))) {
            assert_eq!(area.look(), shown);
        }
        let mut zero = fault::suspend(|| Area::new(4, Source::Zero).unwrap());
        zero.fill(0..4, 1);
        if zero.give_back(&set([1, 3])).is_err() {
            zero.fill([1, 3], 1);
        }
        assert_eq!((zero.look()[0], zero.look()[2]), (1, 1));
    });
}

#[test]
fn access_that_failed_can_be_set() {
    with_each_failure(|| {
        let mut area = fault::suspend(|| Area::placed(5, Source::Zero, &[], 0).unwrap());
        area.fill(0..5, 1);
        let _ = area.set_access(range(1, 3), Access::NONE);
        let _ = area.set_access(range(2, 4), Access::READ);
        fault::suspend(|| area.set_access(range(0, 5), Access::READ_WRITE).unwrap());
        assert_eq!(area.look(), [1; 5]);
        area.fill(0..5, 2);
        assert_eq!(area.look(), [2; 5]);
    });
}

/// After an error of the search any page may have been written, but the next one misses none that is private.
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
