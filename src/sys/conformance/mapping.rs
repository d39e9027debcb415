//! Tests of what a `Mapping` shows after it is made, written and replaced.
#![allow(unsafe_code)]

use std::io;

use super::{Area, content, done, file, looks, range, set, with_each_failure};
use crate::sys::{Mapping, MemoryFile, Placement, Source, fault, page_size, replaces_unseen};

#[test]
fn sizes_past_the_address_space_are_errors() {
    let most = usize::MAX / page_size();
    assert!(Mapping::new(most, Source::Zero).is_err());
    // With 32-bit addresses, a file may be longer than the address space.
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

/// While a mapping is replaced by one with the same bytes, a reader sees these bytes and never faults.
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
                    // SAFETY: the area is mapped, readable and initialized until the thread has ended, also while it is
                    // replaced, as `replaces_unseen` promises. The pointer is aligned, as any pointer to a byte.
                    assert_eq!(unsafe { byte.read_volatile() }, look);
                }
            }
        });
        (0..500).for_each(|_| area.replace(Source::Private(&file), &[]).unwrap());
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
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
                // The other pages are unchanged. The bytes of these are unspecified. They can be written if the mapping
                // is usable.
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
