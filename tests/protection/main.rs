//! Parts of a view can be made inaccessible, read-only or executable. A restore gives all access back.

#[path = "../common/mod.rs"]
mod common;
#[cfg(all(target_os = "linux", not(memsnap_unix)))]
mod linux;

use std::io::{ErrorKind, Read, Seek, Write};

use common::alone::Doomed;
use common::kinds::{self, Kind};
use common::maps::{assert_access, try_read, try_write};
use common::script::read;
use common::{assert_same, pattern, serial, skip, supported};
use memsnap::{Access, ProtectedView, Snapshot, Tracking, ViewOptions, page_size};

const ACCESSES: [(Access, &str); 3] =
    [(Access::NONE, "---"), (Access::READ, "r--"), (Access::READ_WRITE, "rw-")];

fn bytes_of(page: usize, pages: usize) -> std::ops::Range<usize> {
    page * page_size()..(page + pages) * page_size()
}

/// Checks that the system and the view agree on the access to `pages` pages from `page`.
#[track_caller]
fn assert_allows<S>(what: &str, view: &mut ProtectedView<S>, page: usize, pages: usize, expected: &str) {
    let range = bytes_of(page, pages);
    let start = view.as_mut_ptr().wrapping_add(range.start);
    assert_access(what, start, pages, expected);
    let (first, last) = (start, start.wrapping_add(range.len() - 1));
    for address in [first, last] {
        let byte = try_read(address);
        assert_eq!(byte.is_some(), expected.starts_with('r'), "{what}: reading");
        assert_eq!(try_write(address, byte.unwrap_or(0xFF)), expected.contains('w'), "{what}: writing");
    }
    assert_eq!(view.get(range.clone()).is_some(), expected.starts_with('r'), "{what}");
    assert_eq!(view.get_mut(range).is_some(), expected.contains('w'), "{what}");
}

#[test]
fn who_has_no_access_is_stopped() {
    let mut doomed = Doomed::of("who_has_no_access_is_stopped");
    let _serial = serial();
    let bytes = pattern(10, 1);
    let snapshot = Snapshot::from_slice(&bytes).unwrap();
    let mut view = snapshot.view().unwrap().into_protected();
    for (access, shown) in ACCESSES {
        view.protect(bytes_of(3, 2), access).unwrap();
        let start = view.as_mut_ptr().wrapping_add(4 * page_size());
        // SAFETY: `assert_stopped` runs this only in another process. The system stops that process at the
        // access, or the process exits directly afterwards.
        doomed.assert_stopped(access != Access::READ_WRITE, || unsafe { start.write_volatile(1) });
        // SAFETY: as above.
        doomed.assert_stopped(access == Access::NONE, || _ = unsafe { start.read_volatile() });
        assert_allows("protected", &mut view, 3, 2, shown);
        assert_allows("before it", &mut view, 0, 3, "rw-");
        assert_allows("behind it", &mut view, 5, 5, "rw-");
    }
}

/// Writes to a view, protects parts of it, takes snapshots and restores it, in all combinations.
fn captures_and_restores<S>(
    what: &str,
    view: &mut ProtectedView<S>,
    root: &[u8],
    others: &[(Snapshot, Vec<u8>)],
) {
    for (other, other_bytes) in others {
        for (access, shown) in ACCESSES {
            let mut bytes = root.to_vec();
            for range in [bytes_of(1, 3), bytes_of(30, 40)] {
                view.get_mut(range.clone()).unwrap().fill(0xB1);
                bytes[range].fill(0xB1);
            }
            view.protect(bytes_of(2, 1), access).unwrap();
            view.protect(bytes_of(25, 20), access).unwrap();
            for _ in 0..2 {
                let taken = view.take_snapshot().unwrap();
                assert_same(what, &read(&taken), &bytes);
                assert_allows(what, view, 2, 1, shown);
                assert_allows(what, view, 25, 20, shown);
                assert_allows(what, view, 3, 22, "rw-");
                // This write must be found although other pages cannot be read.
                view.get_mut(bytes_of(50, 1)).unwrap()[1] ^= 3;
                bytes[50 * page_size() + 1] ^= 3;
            }
            view.restore_to(other).unwrap();
            assert_allows(what, view, 0, other_bytes.len() / page_size(), "rw-");
            assert_same(what, view.get(..).unwrap(), other_bytes);
            view.protect(.., access).unwrap();
            let taken = view.take_snapshot().unwrap();
            assert_same(what, &read(&taken), other_bytes);
            view.restore().unwrap();
            assert_allows(what, view, 0, root.len() / page_size(), "rw-");
            assert_same(what, view.get(..).unwrap(), root);
        }
    }
}

#[test]
fn snapshots_of_protected_views_are_exact_and_restores_put_access_back() {
    let _serial = serial();
    let options = ViewOptions::new();
    let other = kinds::all().into_iter().map(|kind| (kind.snapshot, kind.bytes)).take(6);
    let mut others: Vec<_> = other.collect();
    others.push((Snapshot::from_slice(&pattern(90, 4)).unwrap(), pattern(90, 4)));
    for Kind { name, mut snapshot, bytes } in kinds::all() {
        let mut view = snapshot.view_with(&options).unwrap().into_protected();
        captures_and_restores(name, &mut view, &bytes, &others);
        drop(view);
        let mut view = snapshot.view_mut().unwrap().into_protected();
        captures_and_restores(name, &mut view, &bytes, &others);
        view.get_mut(bytes_of(5, 1)).unwrap().fill(0x3C);
        view.protect(.., Access::NONE).unwrap();
        view.commit().unwrap();
        let mut expected = bytes;
        expected[bytes_of(5, 1)].fill(0x3C);
        assert_same(name, &read(&snapshot), &expected);
    }
}

#[test]
fn views_that_are_armed_capture_what_was_written_before_it_was_protected() {
    const TEST: &str = "views_that_are_armed_capture_what_was_written_before_it_was_protected";
    let _serial = serial();
    for Kind { name, snapshot, bytes } in kinds::all() {
        let mut view = snapshot.view().unwrap().into_protected();
        if supported(TEST, view.set_tracking(Tracking::Armed)).is_none() {
            return;
        }
        let mut bytes = bytes;
        for round in 1..12 {
            let range = bytes_of(10 * round % 100, round);
            view.protect(.., Access::READ_WRITE).unwrap();
            view.get_mut(range.clone()).unwrap().fill(7);
            bytes[range.clone()].fill(7);
            view.protect(range, Access::NONE).unwrap();
            assert_same(name, &read(&view.take_snapshot().unwrap()), &bytes);
        }
        view.restore().unwrap();
        view.get_mut(..10).unwrap().fill(1);
        assert_eq!(view.into_open().unwrap().changes().unwrap().ranges(), [bytes_of(0, 1)]);
    }
}

#[test]
fn protection_of_a_view_written_in_place_outlives_its_first_snapshot() {
    let _serial = serial();
    for (access, shown) in ACCESSES {
        let mut snapshot = Snapshot::zeroed(40 * page_size()).unwrap();
        let mut view = snapshot.view_mut_with(ViewOptions::new().reserve(1 << 20)).unwrap().into_protected();
        let mut bytes = pattern(40, 6);
        view.get_mut(..).unwrap().copy_from_slice(&bytes);
        view.protect(bytes_of(7, 9), access).unwrap();
        assert_allows("before", &mut view, 7, 9, shown);
        let taken = view.take_snapshot().unwrap();
        assert_same("taken", &read(&taken), &bytes);
        assert_allows("after", &mut view, 7, 9, shown);
        assert_allows("around", &mut view, 16, 24, "rw-");
        view.grow(50 * page_size()).unwrap();
        bytes.resize(50 * page_size(), 0);
        assert_allows("grown", &mut view, 40, 10, "rw-");
        assert_allows("grown", &mut view, 7, 9, shown);
        view.protect(bytes_of(35, 10), access).unwrap();
        assert_same("taken again", &read(&view.take_snapshot().unwrap()), &bytes);
        view.restore_to(&taken).unwrap();
        view.grow(50 * page_size()).unwrap();
        assert_allows("grown again", &mut view, 0, 50, "rw-");
        assert_same("grown again", view.get(..).unwrap(), &bytes);
    }
}

#[test]
fn the_system_cannot_write_where_it_is_forbidden() {
    let _serial = serial();
    let snapshot = Snapshot::from_slice(&pattern(9, 1)).unwrap();
    let mut view = snapshot.view().unwrap().into_protected();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&pattern(1, 7)).unwrap();
    for access in [Access::NONE, Access::READ] {
        view.protect(bytes_of(4, 1), access).unwrap();
        let start = view.as_mut_ptr().wrapping_add(4 * page_size());
        // SAFETY: the range belongs to the view, which nobody else uses. No Rust code accesses the slice, and
        // the system cannot write there.
        let refused = unsafe { std::slice::from_raw_parts_mut(start, page_size()) };
        file.rewind().unwrap();
        file.read(refused).unwrap_err();
        view.restore().unwrap();
        assert_same("unchanged", view.get(..).unwrap(), &pattern(9, 1));
        assert!(try_write(start, 9));
    }
}

#[test]
fn borrowed_bytes_are_exactly_those_that_may_be() {
    let _serial = serial();
    let snapshot = Snapshot::from_slice(&pattern(10, 1)).unwrap();
    let mut view = snapshot.view().unwrap().into_protected();
    let page = page_size();
    view.protect(2 * page..4 * page, Access::READ).unwrap();
    view.protect(6 * page.., Access::NONE).unwrap();
    view.protect(8 * page..=9 * page - 1, Access::READ_WRITE).unwrap();
    for start in 0..20 {
        for end in start + 1..21 {
            // These ranges are half a page, and one byte too long or too short.
            for (start, end) in
                [(start * page / 2, end * page / 2), (start * page / 2 + 1, end * page / 2 + 1)]
            {
                let pages = start / page..end.div_ceil(page);
                let within = end <= 10 * page;
                let readable = pages.clone().all(|page| page < 6 || page == 8);
                let writable = readable && pages.clone().all(|page| !(2..4).contains(&page));
                let len = end - start;
                assert_eq!(view.get(start..end).map(<[u8]>::len), (within && readable).then_some(len));
                assert_eq!(
                    view.get_mut(start..end).map(|bytes| bytes.len()),
                    (within && writable).then_some(len)
                );
            }
        }
    }
    assert!(view.get(..).is_none() && view.get_mut(..).is_none() && view.get(10 * page + 1..).is_none());
    for nothing in [10 * page, 6 * page, 6 * page + 7] {
        assert_eq!(view.get(nothing..nothing), Some(&[][..]));
        view.zero(nothing..nothing).unwrap();
    }
    let view = view.into_open().unwrap_err();
    let mut view = view.into_open().unwrap_err();
    view.protect(.., Access::READ_WRITE).unwrap();
    assert_same("open", &view.into_open().unwrap(), &pattern(10, 1));
}

#[test]
fn ranges_that_are_no_pages_of_the_view_are_refused() {
    let _serial = serial();
    let snapshot = Snapshot::from_slice(&pattern(10, 1)).unwrap();
    let mut view = snapshot.view().unwrap().into_protected();
    let page = page_size();
    #[allow(clippy::reversed_empty_ranges)]
    let ranges = [
        1..page,
        0..page - 1,
        0..11 * page,
        2 * page..page,
        usize::MAX - 5..usize::MAX,
        11 * page..11 * page,
    ];
    for range in ranges {
        let error = view.protect(range.clone(), Access::NONE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{range:?}");
    }
    assert_eq!(view.protect(..=usize::MAX, Access::NONE).unwrap_err().kind(), ErrorKind::InvalidInput);
    let error = view.protect(.., Access::READ_EXECUTE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    view.protect(3 * page..3 * page, Access::NONE).unwrap();
    view.protect(10 * page.., Access::NONE).unwrap();
    assert_allows("unchanged", &mut view, 0, 10, "rw-");
    assert!(view.into_open().is_ok());
}

#[test]
fn protected_bytes_are_not_zeroed() {
    let _serial = serial();
    for Kind { name, mut snapshot, bytes } in kinds::all() {
        let mut view = snapshot.view_mut().unwrap().into_protected();
        for access in [Access::NONE, Access::READ] {
            view.protect(bytes_of(60, 2), access).unwrap();
            for range in [0..bytes.len(), 0..60 * page_size() + 1, 62 * page_size() - 1..63 * page_size()] {
                assert_eq!(view.zero(range).unwrap_err().kind(), ErrorKind::PermissionDenied);
            }
            assert_same(name, &read(&view.take_snapshot().unwrap()), &bytes);
            view.zero(62 * page_size()..63 * page_size()).unwrap();
            view.zero(59 * page_size()..60 * page_size()).unwrap();
            view.restore().unwrap();
            assert_same(name, view.get(..).unwrap(), &bytes);
        }
    }
}

/// Returns the machine code of a function that returns `number`, if the tests have code for this processor.
fn code(number: u8) -> Option<Vec<u8>> {
    if cfg!(any(target_arch = "x86_64", target_arch = "x86")) {
        // `mov eax, NUMBER; ret`
        Some(vec![0xB8, number, 0, 0, 0, 0xC3])
    } else if cfg!(all(target_arch = "aarch64", target_endian = "little")) {
        // `mov w0, NUMBER; ret`
        let instructions = [0x5280_0000 | u32::from(number) << 5, 0xD65F_03C0];
        Some(instructions.into_iter().flat_map(u32::to_le_bytes).collect())
    } else {
        None
    }
}

/// Runs the function at byte `at` of the view.
fn run<S>(view: &ProtectedView<S>, at: usize) -> u32 {
    let start = view.as_ptr().wrapping_add(at);
    // SAFETY: the bytes are `code` of a function without arguments that returns an integer, and they are
    // executable.
    let function = unsafe { std::mem::transmute::<*const u8, extern "C" fn() -> u32>(start) };
    function()
}

#[test]
fn what_is_written_can_be_run_where_that_was_chosen() {
    const TEST: &str = "what_is_written_can_be_run_where_that_was_chosen";
    let Some(first) = code(1) else { return skip(TEST, "the test has no machine code for this processor") };
    let _serial = serial();
    let mut root = pattern(3, 1);
    let place = page_size()..page_size() + first.len();
    root[place.clone()].copy_from_slice(&first);
    for mut snapshot in [Snapshot::from_slice(&root).unwrap(), Snapshot::zeroed(root.len()).unwrap()] {
        let mut view = snapshot.view_mut_with(ViewOptions::new().executable(true)).unwrap().into_protected();
        for number in 0..20 {
            let code = code(number).unwrap();
            view.get_mut(place.clone()).unwrap().copy_from_slice(&code);
            view.protect(bytes_of(1, 1), Access::READ_EXECUTE).unwrap();
            assert_allows("code", &mut view, 1, 1, "r-x");
            if number % 3 == 0 {
                let taken = view.take_snapshot().unwrap();
                assert_eq!(read(&taken)[place.clone()], code);
                assert_allows("code", &mut view, 1, 1, "r-x");
            }
            assert_eq!(run(&view, place.start), u32::from(number));
            view.restore().unwrap();
            assert_allows("restored", &mut view, 0, 3, "rw-");
        }
    }
}

/// Some processors (Arm) have separate instruction caches. After a restore rewrote code and the code was made
/// executable again, they still ran the old code.
#[test]
fn code_that_a_restore_rewrote_is_run_as_it_is_now() {
    const TEST: &str = "code_that_a_restore_rewrote_is_run_as_it_is_now";
    const PAGES: usize = 20;
    const KINDS: usize = 5;
    if code(1).is_none() {
        return skip(TEST, "the test has no machine code for this processor");
    }
    let _serial = serial();
    let root = pattern(PAGES, 1);
    for snapshot in [Snapshot::from_slice(&root).unwrap(), Snapshot::zeroed(root.len()).unwrap()] {
        let mut view = snapshot.view_with(ViewOptions::new().executable(true)).unwrap();
        // In each snapshot, the functions return other numbers. They start at different offsets within cache
        // lines.
        let places: Vec<_> = (0..PAGES * 4).map(|i| i * page_size() / 4 + i % 9 * 16).collect();
        let number = |kind: usize, place: usize| u8::try_from((kind * 50 + place) % 256).unwrap();
        let mut taken = Vec::new();
        for kind in 0..KINDS {
            for (i, &place) in places.iter().enumerate() {
                let code = code(number(kind, i)).unwrap();
                view[place..place + code.len()].copy_from_slice(&code);
            }
            taken.push(view.take_snapshot().unwrap());
        }
        let mut view = view.into_protected();
        for round in 0..200 {
            let kind = round * 3 % KINDS;
            view.restore_to(&taken[kind]).unwrap();
            view.protect(.., Access::READ_EXECUTE).unwrap();
            for (i, &place) in places.iter().enumerate() {
                assert_eq!(run(&view, place), u32::from(number(kind, i)), "round {round}, function {i}");
            }
        }
    }
}

#[test]
fn many_ranges_are_protected_and_opened_again() {
    let _serial = serial();
    let snapshot = Snapshot::from_slice(&pattern(2000, 1)).unwrap();
    let mut view = snapshot.view().unwrap().into_protected();
    view.get_mut(..).unwrap().fill(3);
    for page in (0..2000).step_by(2) {
        view.protect(bytes_of(page, 1), ACCESSES[page / 2 % 2].0).unwrap();
    }
    let mappings = view.stats().mappings;
    assert!((1000..4000).contains(&mappings), "{mappings}");
    assert_same("taken", &read(&view.take_snapshot().unwrap()), &vec![3; 2000 * page_size()]);
    for page in 0..2000 {
        assert_eq!(view.get(bytes_of(page, 1)).is_none(), page % 4 == 0);
    }
    view.restore().unwrap();
    assert_allows("restored", &mut view, 0, 2000, "rw-");
    assert_same("restored", view.get(..).unwrap(), &pattern(2000, 1));
}
