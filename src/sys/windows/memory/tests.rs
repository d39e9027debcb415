//! Tests of what is particular to Windows: whole regions, repairs after failed calls, and truncated parts.

use std::io;
use std::ptr;

use windows_sys::Win32::System::Memory::{
    MEM_COMMIT, MEM_FREE, MEMORY_BASIC_INFORMATION, PAGE_PROTECTION_FLAGS, PAGE_READONLY, PAGE_READWRITE,
    PAGE_WRITECOPY,
};

use super::Mapping;
use super::placeholders::{ZERO_PAGES, disjoint};
use crate::pages::PageRange;
use crate::sys::fault::inject;
use crate::sys::windows::page_size;
use crate::sys::windows::section;
use crate::sys::{MemoryFile, Placement, Source};

const PAGES: usize = 40;
const CAN_BE_WRITTEN: PAGE_PROTECTION_FLAGS = PAGE_READWRITE | PAGE_WRITECOPY;

fn file(value: u8) -> MemoryFile {
    let file = MemoryFile::create(PAGES, PAGES, None).unwrap();
    file.write_at(&vec![value; PAGES * page_size()], 0).unwrap();
    file.finish();
    file
}

fn shown(mapping: &Mapping, page: usize) -> u8 {
    // SAFETY: the page is readable, and nobody writes to the mapping during the call.
    let bytes = unsafe { mapping.page(page) };
    bytes[0]
}

#[test]
fn of_overlays_the_last_counts() {
    let ranges = [(3, 9), (0, 4), (8, 8), (5, 7), (5, 20), (6, 12)];
    let files: Vec<_> = (0..ranges.len()).map(|_| MemoryFile::create(0, 0, None).unwrap()).collect();
    let over: Vec<_> = ranges
        .iter()
        .zip(&files)
        .map(|(&(start, end), file)| (PageRange::new(start, end), Source::Private(file)))
        .collect();
    let parts = disjoint(PageRange::new(0, PAGES), Source::Zero, &over);
    let mut next = 0;
    for (range, source) in parts {
        assert_eq!(range.start, next);
        next = range.end;
        for page in range.iter() {
            let last = over.iter().rposition(|(part, _)| part.iter().contains(&page));
            match source {
                Source::Private(file) => assert!(ptr::eq(file, &raw const files[last.unwrap()])),
                _ => assert_eq!(last, None),
            }
        }
    }
    assert_eq!(next, PAGES);
}

#[test]
fn after_a_failure_no_address_is_free_and_every_page_can_be_read() {
    let (one, two) = (file(1), file(2));
    let placement = Placement { before: 3, behind: 5, ..Placement::default() };
    let over = [(PageRange::new(4, 9), Source::Zero), (PageRange::new(20, 30), Source::Private(&two))];
    for failing in 0..30 {
        let mut mapping = Mapping::placed(PAGES, Source::Private(&one), &over, &placement).unwrap();
        // SAFETY: no reference to the mapping's bytes exists.
        let (result, _) = inject(failing, 1, || unsafe { mapping.replace(Source::Private(&two), &over) });
        mapping.check_usable().unwrap();
        for page in 0..PAGES {
            let (start, byte) = (mapping.page_ptr(page).as_ptr(), shown(&mapping, page));
            // SAFETY: the page is inside the mapping and can be written, and no reference to its bytes exists.
            unsafe { start.write(byte) };
            assert!(query(&mapping, page).State & MEM_COMMIT != 0);
        }
        // SAFETY: as above.
        result.or_else(|_| unsafe { mapping.replace(Source::Private(&two), &over) }).unwrap();
        let expected = |page| if (4..9).contains(&page) { 0 } else { 2 };
        assert!((0..PAGES).all(|page| shown(&mapping, page) == expected(page)));
    }
}

fn query(mapping: &Mapping, page: usize) -> MEMORY_BASIC_INFORMATION {
    section::query(mapping.page_ptr(page)).unwrap()
}

#[test]
fn without_memory_zeroes_can_still_be_read() {
    let mut mapping = Mapping::reserve(2 * ZERO_PAGES + 3, &Placement::default()).unwrap();
    mapping.check_usable().unwrap_err();
    let range = mapping.all();
    mapping.map_stopgap(range).unwrap();
    assert!((0..range.end).all(|page| shown(&mapping, page) == 0));
    assert_eq!(query(&mapping, 5).Protect, PAGE_READONLY);
    mapping.check_usable().unwrap_err();
}

/// Tests that a mapping reports that it is not usable if the repair after a failed call fails.
///
/// A later call can repair it.
#[test]
fn a_repair_that_fails_is_known_and_can_be_repaired() {
    let (one, two) = (file(1), file(2));
    let placement = Placement { before: 3, behind: 5, ..Placement::default() };
    let over = [(PageRange::new(4, 9), Source::Zero), (PageRange::new(20, 30), Source::Private(&two))];
    let mut unusable = 0;
    for (failing, failures) in (0..40).flat_map(|failing| [(failing, 2), (failing, 5), (failing, u64::MAX)]) {
        let mut mapping = Mapping::placed(PAGES, Source::Private(&one), &over, &placement).unwrap();
        // SAFETY: no reference to the mapping's bytes exists.
        let replace = |mapping: &mut Mapping| unsafe { mapping.replace(Source::Private(&two), &over) };
        let (result, _) = inject(failing, failures, || replace(&mut mapping));
        assert!(result.is_err() || mapping.check_usable().is_ok());
        if mapping.check_usable().is_ok() {
            // SAFETY: the pages are inside the mapping and can be written. No reference to their bytes exists.
            (0..PAGES).for_each(|page| unsafe { mapping.page_ptr(page).write(9) });
        } else {
            unusable += 1;
            // All addresses are still reserved. The mapping reports for as long as it is not usable.
            assert!((0..PAGES).all(|page| query(&mapping, page).State & MEM_FREE == 0));
            // SAFETY: as above.
            unsafe { mapping.truncate(25) }.unwrap();
            mapping.extend(PAGES - 25, Source::Zero).unwrap();
            let part = PageRange::new(4, 9);
            // SAFETY: as above.
            let _ = unsafe { mapping.replace_part(part, Source::Zero) };
            let whole = (0..PAGES).all(|page| query(&mapping, page).Protect & CAN_BE_WRITTEN != 0);
            assert_eq!(mapping.check_usable().is_ok(), whole);
        }
        replace(&mut mapping).unwrap();
        mapping.check_usable().unwrap();
        let expected = |page| if (4..9).contains(&page) { 0 } else { 2 };
        assert!((0..PAGES).all(|page| shown(&mapping, page) == expected(page)));
    }
    assert!(unusable > 20, "{unusable}");
}

#[test]
fn only_whole_regions_are_replaced_in_part() {
    let (one, two) = (file(1), file(2));
    let over = [(PageRange::new(10, 20), Source::Zero)];
    let mut mapping = Mapping::placed(PAGES, Source::Private(&one), &over, &Placement::default()).unwrap();
    // SAFETY: no reference to the mapping's bytes exists.
    let mut replace =
        |start, end| unsafe { mapping.replace_part(PageRange::new(start, end), Source::Private(&two)) };
    for (start, end) in [(0, 9), (1, 10), (5, 25), (10, 19)] {
        assert_eq!(replace(start, end).unwrap_err().kind(), io::ErrorKind::Unsupported);
    }
    replace(10, 20).unwrap();
    replace(10, PAGES).unwrap();
    replace(0, 0).unwrap();
    assert!((0..PAGES).all(|page| shown(&mapping, page) == if page < 10 { 1 } else { 2 }));
}

#[test]
fn what_was_truncated_comes_back_as_zeroes() {
    let file = file(1);
    let placement = Placement { behind: 10, ..Placement::default() };
    for (failing, failures) in (0..12).flat_map(|failing| [(failing, 1), (failing, u64::MAX)]) {
        for source in [Source::Zero, Source::Private(&file)] {
            let over = [(PageRange::new(30, PAGES), Source::Zero)];
            let mut mapping = Mapping::placed(PAGES, source, &over, &placement).unwrap();
            for page in 0..PAGES {
                // SAFETY: the page is inside the mapping and can be written, and no reference to its bytes exists.
                unsafe { mapping.page_ptr(page).write(7) };
            }
            // SAFETY: no reference to the mapping's bytes exists.
            let (result, _) = inject(failing, failures, || unsafe { mapping.truncate(20) });
            if result.is_err() {
                assert_eq!((mapping.pages(), mapping.inaccessible()), (PAGES, (0, 10)));
                assert!((0..PAGES).all(|page| shown(&mapping, page) == 7));
                // SAFETY: as above.
                unsafe { mapping.truncate(20) }.unwrap();
            }
            assert_eq!((mapping.pages(), mapping.inaccessible()), (20, (0, 30)));
            let (result, _) = inject(failing, failures, || mapping.extend(25, Source::Zero));
            if result.is_err() {
                assert_eq!((mapping.pages(), mapping.inaccessible()), (20, (0, 30)));
                mapping.extend(25, Source::Zero).unwrap();
            }
            assert!((0..45).all(|page| shown(&mapping, page) == if page < 20 { 7 } else { 0 }));
        }
    }
}

/// Regression test: a mapping can shrink after it grew over pages that were committed in two steps.
///
/// Under Wine, this failed.
#[test]
fn what_was_committed_in_two_steps_is_one_region() {
    let mut file = MemoryFile::create(PAGES, PAGES + 20, None).unwrap();
    let placement = Placement { behind: 20, ..Placement::default() };
    let mut mapping = Mapping::placed(PAGES, Source::Shared(&file), &[], &placement).unwrap();
    for pages in [PAGES + 5, PAGES + 20] {
        file.set_pages(pages).unwrap();
    }
    mapping.extend(20, Source::Shared(&file)).unwrap();
    // SAFETY: no reference to the mapping's bytes exists.
    unsafe { mapping.truncate(PAGES) }.unwrap();
}
