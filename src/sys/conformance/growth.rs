//! Tests of `Mapping::extend` and `Mapping::truncate`.

use std::io;

use super::{Area, content, file, looks, with_each_failure};
use crate::sys::{MemoryFile, Source, fault};

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
