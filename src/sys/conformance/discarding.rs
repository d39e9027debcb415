//! Tests of `Mapping::discard` and `Mapping::give_back`.

use std::io;

use super::{Area, content, done, file, looks, range, set, with_each_failure};
use crate::pages::PageSet;
use crate::sys::{Source, fault};

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
        // The pages are still mapped at the same addresses and can be written.
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
                // The bytes of these pages are unspecified, but the pages can be written.
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
