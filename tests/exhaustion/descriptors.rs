//! A process that cannot open more descriptors.

use std::fs::File;
use std::io;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use memsnap::{Snapshot, page_size};

use super::common::unix::Limit;
use super::common::{alone, assert_same, noise};
use super::{DESCRIPTORS, assert_holds, assert_tells, tier, touch};

#[test]
fn without_descriptors_new_snapshots_fail_and_all_others_go_on() {
    alone("without_descriptors_new_snapshots_fail_and_all_others_go_on", || {
        let bytes = noise(1000 * page_size(), 1);
        let mut changed = bytes.clone();
        touch(&mut changed, 100);
        changed[200 * page_size()..300 * page_size()].fill(3);
        let mut zero = Snapshot::zeroed(10 * page_size()).unwrap();
        let snapshot = Arc::new(Snapshot::from_slice(&bytes).unwrap());
        let mut view = snapshot.view().unwrap();
        view.copy_from_slice(&changed);
        let taken = view.take_snapshot().unwrap();
        let mut mutable = (*snapshot).clone();
        let file = tempfile::tempfile().unwrap();
        (&file).write_all(&bytes).unwrap();
        let files = [(); 2].map(|()| file.try_clone().unwrap());
        let (pipe, mut writer) = io::pipe().unwrap();
        writer.write_all(&[1; 10]).unwrap();
        drop(writer);
        let pipe = File::from(OwnedFd::from(pipe));

        let mut limit = Limit::descriptors();
        assert_tells(&Snapshot::from_slice(&bytes).unwrap_err(), "copying bytes", DESCRIPTORS);
        assert_tells(&Snapshot::from_reader(&bytes[..]).unwrap_err(), "of a stream", DESCRIPTORS);
        let [file, other] = files;
        for file in [file, pipe] {
            assert_tells(&Snapshot::from_file(file).unwrap_err(), "of a file", DESCRIPTORS);
            limit.fill();
        }
        // SAFETY: nobody else has the unnamed file, and it is not written again.
        let mapped = unsafe { Snapshot::map_file(&other) };
        assert_tells(&mapped.unwrap_err(), "mapping a file", DESCRIPTORS);

        // Snapshots that need no descriptor must not fail.
        assert_eq!(Snapshot::from_slice(&[]).unwrap().len(), 0);
        assert_holds("zeroed", &Snapshot::zeroed(3 * page_size()).unwrap(), &vec![0; 3 * page_size()]);
        assert_holds("snapshot", &snapshot, &bytes);
        assert_holds("taken", &taken, &changed);
        assert_same("arc", &snapshot.view_arc().unwrap(), &bytes);
        assert_eq!(taken.diff(&snapshot).unwrap().ranges(), snapshot.diff(&taken).unwrap().ranges());
        for _ in 0..3 {
            view.restore().unwrap();
            assert_same("restored", &view, &bytes);
            view.restore_to(&taken).unwrap();
            assert_same("restored to", &view, &changed);
            view[5 * page_size()..].fill(9);
            assert_eq!(view.changes().unwrap().ranges(), [5 * page_size()..view.len()]);
            let filled = view.take_snapshot().unwrap();
            assert_holds("filled", &filled, &view);
            // A hundred views are enough for memsnap to make the image flat, for which no descriptor is left.
            (0..100).for_each(|_| drop(filled.view().unwrap()));
            assert_holds("often viewed", &filled, &view);
        }
        let mut view = mutable.view_mut().unwrap();
        view.fill(7);
        view.commit().unwrap();
        assert_holds("mutable", &mutable, &vec![7; bytes.len()]);
        zero.view_mut().unwrap().fill(8);
        assert_holds("zeroed and filled", &zero, &vec![8; 10 * page_size()]);

        drop(limit);
        assert_holds("afterwards", &Snapshot::from_slice(&bytes).unwrap(), &bytes);
        assert_holds("afterwards", &Snapshot::from_file(other).unwrap(), &bytes);
        assert_holds("afterwards", &taken, &changed);
    });
}

#[test]
fn a_first_capture_without_descriptors_fails_clearly_and_works_later() {
    alone("a_first_capture_without_descriptors_fails_clearly_and_works_later", || {
        let bytes = noise(100 * page_size(), 2);
        let mut changed = bytes.clone();
        touch(&mut changed, 10);
        let snapshot = Snapshot::from_slice(&bytes).unwrap();
        let mut view = snapshot.view().unwrap();
        let mut other = snapshot.view().unwrap();
        view.copy_from_slice(&changed);

        // No written pages were searched for yet.
        let limit = Limit::descriptors();
        let size = bytes.len().to_string();
        if let Err(error) = view.changes() {
            assert_tells(&error, &size, DESCRIPTORS);
        }
        match view.take_snapshot() {
            Ok(taken) => assert_holds("taken", &taken, &changed),
            Err(error) => assert_tells(&error, &size, DESCRIPTORS),
        }
        assert_same("view", &view, &changed);
        other[3] ^= 1;
        match other.restore() {
            Ok(()) => assert_same("restored", &other, &bytes),
            Err(error) => assert_tells(&error, &size, DESCRIPTORS),
        }
        drop(limit);

        assert_holds("taken later", &view.take_snapshot().unwrap(), &changed);
        other.restore().unwrap();
        assert_same("restored later", &other, &bytes);
        assert_eq!(view.changes().unwrap().ranges(), []);
        let fresh = tier(&snapshot.view().unwrap());
        assert_eq!(tier(&view), fresh, "a past shortage changed the tracking method");
    });
}
