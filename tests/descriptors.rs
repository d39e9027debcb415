//! Many snapshots that are all viewed leave descriptors for the program's own files.
//!
//! If other code closes memsnap's descriptors, no data is lost.
#![cfg(unix)]

mod common;

use std::fs::File;

use common::alone;
use common::unix::Limit;
use memsnap::{Snapshot, page_size};

const LIMIT: usize = 400;

/// Opens as many files as possible.
fn files() -> Vec<File> {
    (0..LIMIT).map_while(|_| File::open("/dev/null").ok()).collect()
}

#[test]
fn viewing_many_snapshots_leaves_most_descriptors_free() {
    alone("viewing_many_snapshots_leaves_most_descriptors_free", || {
        let _limit = Limit::descriptors_to(LIMIT as u64);
        let root = Snapshot::zeroed(200 * page_size()).unwrap();
        let mut view = root.view().unwrap();
        // Each snapshot has a run that is long enough to be mapped. It is viewed often enough for its image
        // to be made flat.
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
        assert!(held < 20, "{held} descriptors are still open");
    });
}

/// Descriptors that other code closes, and whose numbers it uses for its own files.
#[cfg(all(target_os = "linux", not(memsnap_unix)))]
mod linux {
    use std::fs::File;
    use std::io::{ErrorKind, Write};
    use std::os::fd::{AsFd, AsRawFd, OwnedFd};
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::thread;

    use common::keys::{Kind, numbers_of, put_in_place, unshare_files, userfaultfd};
    use common::script::read;
    use common::unix::run_in_child;
    use common::{alone, assert_same, message, pattern, serial, skip};
    use memsnap::os::linux::SnapshotExt as _;
    use memsnap::{OwnedView, Snapshot, Tracking, ViewOptions, page_size};
    use rustix::fs::MemfdFlags;

    use super::*;

    const PAGES: usize = 64;

    const TIERS: [Tracking; 3] = [Tracking::Armed, Tracking::Scan, Tracking::Pagemap];

    #[derive(Clone, Copy)]
    enum Stranger {
        Zeroes,
        /// The pagemap of the parent, which uses the same addresses, and another userfaultfd.
        Alike,
    }

    /// Closes the descriptors with which memsnap finds written pages, and gives their numbers to other files.
    fn replace(stranger: Stranger) {
        let (pagemaps, userfaults) = (numbers_of(Kind::Pagemap), numbers_of(Kind::Userfaultfd));
        assert_eq!(pagemaps.len(), 1);
        let zeroes = || OwnedFd::from(File::open("/dev/zero").unwrap());
        let parent = rustix::process::getppid().unwrap().as_raw_nonzero();
        let (pagemap, userfault) = match stranger {
            Stranger::Zeroes => (zeroes(), zeroes()),
            Stranger::Alike => {
                let pagemap = File::open(format!("/proc/{parent}/pagemap")).unwrap();
                (pagemap.into(), userfaultfd().unwrap_or_else(|_| zeroes()))
            }
        };
        pagemaps.into_iter().for_each(|number| put_in_place(&pagemap, number));
        userfaults.into_iter().for_each(|number| put_in_place(&userfault, number));
    }

    /// Returns a view of `pattern(PAGES, 1)` that has used this tracking method.
    ///
    /// `None` if the method cannot work.
    fn view(tracking: Tracking) -> Option<OwnedView> {
        view_of(&Snapshot::from_slice(&pattern(PAGES, 1)).unwrap(), tracking)
    }

    fn view_of(root: &Snapshot, tracking: Tracking) -> Option<OwnedView> {
        let mut view = match root.clone().into_view_with(ViewOptions::new().tracking(tracking)) {
            Err(error) if error.kind() == ErrorKind::Unsupported => return None,
            view => view.unwrap(),
        };
        is_exact(&mut view);
        assert_eq!(view.stats().tracker, tracking);
        Some(view)
    }

    /// Checks that snapshots, changes and restores find each write.
    #[track_caller]
    fn is_exact(view: &mut OwnedView) {
        for round in 2..6 {
            let mut bytes = pattern(PAGES, 1);
            for page in [usize::from(round), 40, 63] {
                view[page * page_size() + 100] = round;
                bytes[page * page_size() + 100] = round;
            }
            assert_eq!(view.changes().unwrap().ranges().len(), 3);
            let taken = view.take_snapshot().unwrap();
            assert_same("taken", &read(&taken), &bytes);
            view[20 * page_size()] ^= 0xFF;
            view.restore_to(&taken).unwrap();
            assert_same("restored", view, &bytes);
            view.restore().unwrap();
            assert_same("restored to the root", view, &pattern(PAGES, 1));
        }
    }

    /// A library closed all descriptors that it had not opened, and then opened its own files. memsnap asked
    /// these files which pages were written: `/dev/zero` reported none, and another process's pagemap
    /// reported pages of that process.
    #[test]
    fn a_file_in_the_place_of_the_pagemap_is_not_believed() {
        let _serial = serial();
        for tracking in TIERS {
            for stranger in [Stranger::Zeroes, Stranger::Alike] {
                run_in_child(|| {
                    let Some(mut view) = view(tracking) else {
                        return skip(
                            "a_file_in_the_place_of_the_pagemap_is_not_believed",
                            format!("{tracking} cannot work here"),
                        );
                    };
                    replace(stranger);
                    view[9 * page_size()] = 77;
                    let taken = view.take_snapshot().unwrap();
                    assert_eq!(read(&taken)[9 * page_size()], 77);
                    view.restore().unwrap();
                    is_exact(&mut view);
                    if tracking != Tracking::Armed {
                        assert_eq!(view.stats().tracker, tracking);
                    }
                    let mut other = Snapshot::from_slice(&pattern(PAGES, 1)).unwrap().into_view().unwrap();
                    is_exact(&mut other);
                });
            }
        }
    }

    /// In a thread with its own file table, other files had the numbers of memsnap's descriptors. memsnap
    /// asked these files in that thread. Other threads must not be affected.
    #[test]
    fn a_thread_with_a_file_table_of_its_own_finds_what_was_written() {
        let _serial = serial();
        for tracking in TIERS {
            for stranger in [Stranger::Zeroes, Stranger::Alike] {
                run_in_child(|| {
                    let Some(mut view) = view(tracking) else { return };
                    thread::scope(|scope| {
                        let view = &mut view;
                        let thread = scope.spawn(move || {
                            unshare_files();
                            replace(stranger);
                            view[9 * page_size()] = 77;
                            let taken = view.take_snapshot().unwrap();
                            assert_eq!(read(&taken)[9 * page_size()], 77);
                            view.restore().unwrap();
                            is_exact(view);
                            let pagemaps = numbers_of(Kind::Pagemap).len();
                            is_exact(view);
                            assert_eq!(
                                numbers_of(Kind::Pagemap).len(),
                                pagemaps,
                                "descriptors were left open"
                            );
                        });
                        thread.join().unwrap();
                    });
                    is_exact(&mut view);
                });
            }
        }
    }

    /// A daemon closes all descriptors. Each number then refers to another file, or to none.
    #[test]
    fn when_all_descriptors_were_closed_nothing_is_wrong() {
        alone("when_all_descriptors_were_closed_nothing_is_wrong", || {
            for tracking in TIERS {
                let root = Snapshot::from_slice(&pattern(PAGES, 1)).unwrap();
                let Some(mut view) = view_of(&root, tracking) else { continue };
                // SAFETY: the call takes numbers only.
                let closed = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
                assert_eq!(closed, 0);
                let _strangers: Vec<_> = (0..9).map(|_| File::open("/dev/zero").unwrap()).collect();
                // The mapping still exists, and keeps the file.
                is_exact(&mut view);
                assert!(message(&root.view().unwrap_err()).contains("descriptor"));
                assert!(read_or_error(&root));
            }
        });
    }

    /// Returns whether a read of the root returns its bytes or an error, rather than other bytes.
    fn read_or_error(root: &Snapshot) -> bool {
        let mut bytes = vec![0; PAGES * page_size()];
        root.read_at(&mut bytes, 0).map_or(true, |_| bytes == pattern(PAGES, 1))
    }

    /// Another file had the number of the file of a snapshot. A view of the snapshot showed the bytes of that
    /// file.
    #[test]
    fn a_file_in_the_place_of_a_snapshots_is_neither_shown_nor_written_nor_closed() {
        let _serial = serial();
        run_in_child(|| {
            let other = Snapshot::from_slice(&pattern(PAGES, 5)).unwrap();
            let [number] = numbers_of(Kind::Sealed)[..] else {
                panic!("there is not exactly one memory file")
            };
            let root = Snapshot::from_slice(&pattern(PAGES, 1)).unwrap();
            let mut view = root.view().unwrap();
            let stranger = File::from(rustix::fs::memfd_create("stranger", MemfdFlags::CLOEXEC).unwrap());
            (&stranger).write_all(&pattern(PAGES, 9)).unwrap();
            put_in_place(&stranger, number);
            let told = |error: std::io::Error| assert!(message(&error).contains("descriptor"), "{error}");
            told(other.view().map(drop).unwrap_err());
            told(other.clone().into_view().map(drop).unwrap_err());
            told(other.to_fd().map(drop).unwrap_err());
            assert!(other.read_at(&mut [0; 1], 0).is_err());
            assert!(other.diff(&root).is_err());
            view[0] = 7;
            told(view.restore_to(&other).unwrap_err());
            view.restore().unwrap();
            assert_same("restored", &view, &pattern(PAGES, 1));
            drop(other);
            is_stranger(number, &stranger);
        });
    }

    /// Checks that `number` is still open on `stranger`, whose bytes did not change.
    #[track_caller]
    fn is_stranger(number: i32, stranger: &File) {
        let there = File::open(format!("/proc/self/fd/{number}")).unwrap();
        assert_eq!(there.metadata().unwrap().ino(), stranger.metadata().unwrap().ino());
        let mut bytes = vec![0; PAGES * page_size()];
        there.read_exact_at(&mut bytes, 0).unwrap();
        assert_same("the stranger", &bytes, &pattern(PAGES, 9));
    }

    /// Another file had the number of the file of a view written in place. memsnap searched that file for
    /// holes, punched holes into it and sealed it. The written bytes are in the mapping, from which they are
    /// captured.
    #[test]
    fn a_view_in_place_whose_file_was_closed_loses_nothing() {
        let _serial = serial();
        for taken_first in [false, true] {
            run_in_child(|| {
                let mut snapshot = Snapshot::zeroed(PAGES * page_size()).unwrap();
                let mut options = ViewOptions::new();
                options.reserve(2 * PAGES * page_size());
                let mut view = snapshot.view_mut_with(&options).unwrap();
                view.copy_from_slice(&pattern(PAGES, 1));
                let [number] = numbers_of(Kind::Unsealed)[..] else {
                    panic!("there is not exactly one memory file")
                };
                let stranger =
                    rustix::fs::memfd_create("stranger", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
                let stranger = File::from(stranger.unwrap());
                stranger.write_all_at(&pattern(PAGES, 9), 0).unwrap();
                put_in_place(&stranger, number);
                let mut bytes = pattern(PAGES, 1);
                if taken_first {
                    view.zero(3 * page_size()..5 * page_size()).unwrap();
                    bytes[3 * page_size()..5 * page_size()].fill(0);
                    assert!(view.grow(2 * PAGES * page_size()).is_err());
                    assert_same("taken", &read(&view.take_snapshot().unwrap()), &bytes);
                    view[7] = 8;
                    bytes[7] = 8;
                }
                view.commit().unwrap();
                assert_same("committed", &read(&snapshot), &bytes);
                is_stranger(number, &stranger);
                assert!(rustix::fs::fcntl_get_seals(stranger.as_fd()).unwrap().is_empty());
                drop(snapshot);
                is_stranger(number, &stranger);
            });
        }
    }

    /// The file of a snapshot was closed before anything had been compared with it. Then what was written
    /// through a mutable view could not be captured. Each later call on the snapshot failed, and the bytes
    /// were lost.
    #[test]
    fn a_mutable_view_whose_snapshot_was_closed_loses_nothing() {
        let _serial = serial();
        for in_place in [false, true] {
            run_in_child(|| {
                let mut bytes = pattern(PAGES, 1);
                let mut snapshot = if in_place {
                    Snapshot::zeroed(bytes.len()).unwrap()
                } else {
                    Snapshot::from_slice(&bytes).unwrap()
                };
                let mut view = snapshot.view_mut().unwrap();
                view.copy_from_slice(&bytes);
                if in_place {
                    assert_same("taken", &read(&view.take_snapshot().unwrap()), &bytes);
                }
                let numbers = numbers_of(Kind::Sealed);
                assert_eq!(numbers.len(), 1);
                put_in_place(&File::open("/dev/null").unwrap(), numbers[0]);
                view[5 * page_size()] ^= 1;
                bytes[5 * page_size()] ^= 1;
                view.commit().unwrap();
                assert_same("committed", &read(&snapshot), &bytes);
                assert!(snapshot.view().is_err(), "a view of another file was opened");
            });
        }
    }

    /// A file system gives the inode number of a deleted file to the next file. memsnap took that file for
    /// the file of the snapshot.
    #[test]
    fn a_file_with_the_inode_number_of_a_deleted_one_is_another() {
        let _serial = serial();
        run_in_child(|| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("file");
            std::fs::write(&path, pattern(PAGES, 1)).unwrap();
            let file = File::open(&path).unwrap();
            let before = std::fs::read_dir("/proc/self/fd").unwrap().count();
            // SAFETY: nobody writes to the file.
            let snapshot = unsafe { Snapshot::map_file(&file) }.unwrap();
            let inode = file.metadata().unwrap().ino();
            let number = file.as_raw_fd() + 1..i32::try_from(before).unwrap() + 64;
            let is_it = |number: &i32| {
                std::fs::metadata(format!("/proc/self/fd/{number}"))
                    .is_ok_and(|metadata| metadata.ino() == inode)
            };
            let number = number.clone().find(is_it).expect("the snapshot has a descriptor of its own");
            drop(file);
            std::fs::remove_file(&path).unwrap();
            put_in_place(&File::open("/dev/null").unwrap(), number);
            for next in 0..100 {
                let path = folder.path().join(format!("{next}"));
                std::fs::write(&path, pattern(PAGES, 9)).unwrap();
                put_in_place(&File::open(&path).unwrap(), number);
                assert!(snapshot.view().is_err());
                std::fs::remove_file(&path).unwrap();
            }
        });
    }
}
