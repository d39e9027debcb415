//! Tests of `Mapping::set_access`.

use super::{Area, file, range, with_each_failure};
use crate::access::Access;
use crate::sys::{Source, fault};

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
                // These may fail: a file on a disk may be on a file system from which no code may be run.
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
