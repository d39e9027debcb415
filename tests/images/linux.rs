//! The memory files of images are sealed, views of images have few mappings, and images take as much memory
//! as was written.

use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use memsnap::{Snapshot, page_size};
use rustix::fs::{SealFlags, fcntl_get_seals};

use super::common::linux::{allocated, closed_on_exec, memory_files};
use super::common::{alone, assert_same, memory_file_bytes, noise, skip};
use super::{change, scattered};

/// Checks that `count` memory files are open, and that nobody can change any of them.
#[track_caller]
fn assert_sealed(what: &str, count: usize) {
    let files = memory_files();
    assert_eq!(files.len(), count, "{what}: the number of memory files");
    for file in files {
        let seals = fcntl_get_seals(&file).unwrap();
        assert!(seals.contains(SealFlags::GROW | SealFlags::SHRINK), "{what}: {seals:?}");
        assert!(seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE), "{what}: {seals:?}");
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        if let Ok(writable) = OpenOptions::new().write(true).open(path) {
            assert!(writable.write_all_at(&[1], 0).is_err(), "{what}: the file could be written");
            assert!(writable.set_len(0).is_err(), "{what}: the file could be emptied");
        }
    }
    assert_closed_on_exec(what, count);
}

#[track_caller]
fn assert_closed_on_exec(what: &str, count: usize) {
    assert_eq!(closed_on_exec(), vec![true; count], "{what}: not all files are closed on exec");
}

fn mappings() -> usize {
    fs::read_to_string("/proc/self/maps").unwrap().lines().count()
}

#[test]
fn images_are_sealed_and_closed_on_exec() {
    alone("images_are_sealed_and_closed_on_exec", || {
        let bytes = noise(100 * page_size() + 5, 1);
        assert_sealed("nothing", 0);
        let made = Snapshot::from_slice(&bytes).unwrap();
        assert_sealed("from_slice", 1);
        let streamed = Snapshot::from_reader(&bytes[..]).unwrap();
        assert_sealed("from_reader", 2);
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &bytes).unwrap();
        let copied = Snapshot::from_file(file).unwrap();
        assert_sealed("from_file", 3);

        let mut filled = Snapshot::zeroed(bytes.len()).unwrap();
        assert_sealed("zeroed", 3);
        let mut view = filled.view_mut().unwrap();
        assert_closed_on_exec("while it is filled", 4);
        view[..bytes.len()].copy_from_slice(&bytes);
        view.commit().unwrap();
        assert_sealed("committed", 4);

        let mut dropped = Snapshot::zeroed(bytes.len()).unwrap();
        dropped.view_mut().unwrap()[5] = 1;
        assert_sealed("dropped", 5);

        let mut taken_of = Snapshot::zeroed(bytes.len()).unwrap();
        let mut view = taken_of.view_mut().unwrap();
        view[5] = 1;
        let taken = view.take_snapshot().unwrap();
        assert_sealed("taken while the mutable view goes on", 6);
        view[5] = 2;
        drop(view);
        assert_eq!((taken.view().unwrap()[5], taken_of.view().unwrap()[5]), (1, 2));
        assert_sealed("and ended", 6);

        for snapshot in [&streamed, &copied, &filled] {
            assert_same("bytes", &made.view().unwrap(), &snapshot.view().unwrap());
        }
        drop((made, streamed, copied, filled, dropped, taken, taken_of));
        assert_sealed("all gone", 0);
    });
}

#[test]
fn what_views_of_changed_images_are_mapped_from_is_sealed_too() {
    alone("what_views_of_changed_images_are_mapped_from_is_sealed_too", || {
        let bytes = noise(1000 * page_size(), 2);
        let base = Snapshot::from_slice(&bytes).unwrap();
        let mut view = base.view().unwrap();
        change(&mut view, 50, 200);
        let runs = view.take_snapshot().unwrap();
        assert_sealed("taken", 1);
        assert_same("runs", &runs.view().unwrap(), &view);
        assert_sealed("with runs that are mapped", 2);
        view.restore().unwrap();
        change(&mut view, 1, 20);
        let often = view.take_snapshot().unwrap();
        for _ in 0..100 {
            assert_eq!(often.view().unwrap()[0], view[0]);
        }
        assert_sealed("consolidated", 3);
        assert_same("often", &often.view().unwrap(), &view);
        drop(view);
        drop(runs);
        assert_sealed("one gone", 2);
        drop(often);
        assert_sealed("the other gone", 1);
        assert_same("base", &base.view().unwrap(), &bytes);
    });
}

#[test]
fn many_runs_of_changed_pages_take_a_bounded_number_of_mappings() {
    alone("many_runs_of_changed_pages_take_a_bounded_number_of_mappings", || {
        const RUNS: usize = 5000;
        let base = Snapshot::zeroed(RUNS * 13 * page_size()).unwrap();
        let mut written = base.view().unwrap();
        change(&mut written, 10, 13);
        let taken = written.take_snapshot().unwrap();
        assert_eq!(taken.stats().captured, RUNS * 10 * page_size());
        let mut views = Vec::new();
        for _ in 0..4 {
            let before = mappings();
            let view = taken.view().unwrap();
            let took = mappings() - before;
            assert!(took <= RUNS, "{took} mappings for {RUNS} runs");
            // The heap may have made some mappings too.
            assert!(took <= view.stats().mappings + 8, "{took} mappings and {:?}", view.stats());
            views.push(view);
            if views.len() > 1 {
                // The first view stays, and the others are dropped.
                assert_same("runs", &views.pop().unwrap(), &written);
            }
        }
        assert_same("runs", &views[0], &written);
        let mut view = views.swap_remove(0);
        view.restore_to(&base).unwrap();
        assert!(view.iter().all(|&byte| byte == 0));
        view.restore().unwrap();
        assert_same("restored", &view, &written);
    });
}

#[test]
fn a_sparse_image_does_not_become_dense_by_being_viewed() {
    alone("a_sparse_image_does_not_become_dense_by_being_viewed", || {
        let base = Snapshot::zeroed(1 << 30).unwrap();
        let mut written = base.view().unwrap();
        let step = (1 << 30) / 100 / page_size();
        for i in 0..100 {
            written[i * step * page_size()] = 1;
        }
        let taken = written.take_snapshot().unwrap();
        for _ in 0..200 {
            let view = taken.view().unwrap();
            assert_eq!((view[0], view[step * page_size()], view[page_size()]), (1, 1, 0));
        }
        let view = taken.view().unwrap();
        let sum: usize = (0..view.len()).step_by(page_size()).map(|at| usize::from(view[at])).sum();
        assert_eq!(sum, 100);
        let held = memory_file_bytes().unwrap();
        assert!(held <= 1 << 20, "memory files take {held} bytes for 100 pages");
    });
}

#[test]
fn the_flat_image_of_a_sparse_file_is_sparse() {
    const TEST: &str = "the_flat_image_of_a_sparse_file_is_sparse";
    let file = tempfile::tempfile().unwrap();
    file.set_len(512 << 20).unwrap();
    file.write_all_at(&noise(page_size(), 6), 100 << 20).unwrap();
    if allocated(&file) > 1 << 20 {
        return skip(TEST, "the file system of the temporary directory does not support holes");
    }
    // SAFETY: nobody else has the unnamed file, and it is not written again.
    let mapped = unsafe { Snapshot::map_file(&file) }.unwrap();
    let copied = Snapshot::from_file(file).unwrap();
    for (constructor, base) in [("from_file", copied), ("map_file", mapped)] {
        let mut view = base.view().unwrap();
        view[5] = 1;
        let taken = view.take_snapshot().unwrap();
        for _ in 0..100 {
            assert_eq!(taken.view().unwrap()[5], 1);
        }
        let flat = taken.stats().flat;
        assert!(flat <= 1 << 20, "{constructor}: a flat image of {flat} bytes for two pages of data");
        assert_same(constructor, &taken.view().unwrap()[100 << 20..][..page_size()], &noise(page_size(), 6));
    }
}

#[test]
fn views_of_a_flat_image_leave_neither_mappings_nor_files_behind() {
    alone("views_of_a_flat_image_leave_neither_mappings_nor_files_behind", || {
        let (base, taken, bytes) = scattered();
        let first = taken.view().unwrap();
        assert_same("first", &first, &bytes);
        let (descriptors, before) = (memory_files().len(), mappings());
        for _ in 0..100 {
            let view = taken.view().unwrap();
            assert_eq!(view[..page_size()], bytes[..page_size()]);
        }
        assert!(mappings() <= before + 1, "dropped views left mappings behind");
        assert_eq!(memory_files().len(), descriptors + 1);

        let (view, root) = (taken.view().unwrap(), base.view().unwrap());
        let flat = taken.stats().flat;
        // The flat file is dropped together with the views and the snapshot.
        let held = memory_file_bytes().unwrap();
        drop((first, view, root));
        drop(taken);
        assert!(memory_file_bytes().unwrap() <= held - flat);
        assert_eq!(memory_files().len(), descriptors);
    });
}
