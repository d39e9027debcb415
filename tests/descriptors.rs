//! Many snapshots that are all viewed leave the program descriptors for its own files.
#![cfg(unix)]

mod common;

use std::fs::File;

use common::alone;
use common::unix::Limit;
use memsnap::{Snapshot, page_size};

const LIMIT: usize = 400;

/// As many files as can be opened.
fn files() -> Vec<File> {
    (0..LIMIT).map_while(|_| File::open("/dev/null").ok()).collect()
}

#[test]
fn viewing_many_snapshots_leaves_most_descriptors_free() {
    alone("viewing_many_snapshots_leaves_most_descriptors_free", || {
        let _limit = Limit::descriptors_to(LIMIT as u64);
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
        assert!(files().len() >= 300);
        drop(snapshots);
        let held = LIMIT - files().len();
        assert!(held < 20, "{held} descriptors are still held");
    });
}
