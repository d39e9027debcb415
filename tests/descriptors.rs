//! Many snapshots that are all viewed leave the program descriptors for its own files.

mod support;

use std::fs::File;

use memsnap::{Snapshot, page_size};
use support::{Limit, alone};

#[test]
fn viewing_many_snapshots_leaves_most_descriptors_free() {
    alone("viewing_many_snapshots_leaves_most_descriptors_free", || {
        let _limit = Limit::descriptors_to(400);
        let root = Snapshot::zeroed(200 * page_size()).unwrap();
        let mut view = root.view().unwrap();
        // Each has a run that is worth mapping, and is viewed often enough to be made flat.
        let snapshots: Vec<_> = (0..500_u32)
            .map(|i| {
                view[..100 * page_size()]
                    .chunks_mut(4)
                    .for_each(|bytes| bytes.copy_from_slice(&i.to_ne_bytes()));
                view.take_snapshot().unwrap()
            })
            .collect();
        for (i, snapshot) in (0..500_u32).zip(&snapshots) {
            for _ in 0..5 {
                let view = snapshot.view().unwrap();
                assert_eq!(view[99 * page_size()..][..4], i.to_ne_bytes());
            }
        }
        let files: Vec<_> = (0..300).map_while(|_| File::open("/dev/null").ok()).collect();
        assert_eq!(files.len(), 300);
        drop(snapshots);
        let held = std::fs::read_dir("/proc/self/fd").unwrap().count() - files.len();
        assert!(held < 20, "{held} descriptors are still held");
    });
}
