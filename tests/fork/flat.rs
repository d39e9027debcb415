//! Images that are made flat before or after a fork.

use std::sync::Arc;

use memsnap::{Snapshot, page_size};

use super::common::{assert_same, serial};
use super::{Family, both_at_once, fill_every, one_after_the_other};

/// Takes a snapshot whose pages differ from the root in short and long runs. Returns it with its bytes.
fn changed(family: &mut Family) -> (Snapshot, Vec<u8>) {
    let mut bytes = family.root.clone();
    fill_every(3, &mut bytes, 77);
    bytes[100 * page_size()..180 * page_size()].fill(78);
    (family.capture(&bytes), bytes)
}

fn view_often(snapshot: &Snapshot, bytes: &[u8]) {
    for _ in 0..70 {
        assert_same("viewed", &snapshot.view().unwrap(), bytes);
    }
    assert!(snapshot.stats().flat >= bytes.len() as u64, "the image was not made flat");
}

#[test]
fn an_image_made_flat_before_the_fork_serves_both_processes() {
    let _serial = serial();
    for family in [Family::of_bytes, Family::of_zeroes] {
        one_after_the_other(
            || {
                let mut family = family(200);
                let (snapshot, bytes) = changed(&mut family);
                view_often(&snapshot, &bytes);
                (family, Arc::new(snapshot), bytes)
            },
            |(family, snapshot, bytes)| {
                let mut view = snapshot.view_arc().unwrap();
                view.fill(1);
                view.take_snapshot().unwrap();
                view.restore().unwrap();
                assert_same("restored", &view, bytes);
                family.view.restore_to(snapshot).unwrap();
                family.view.fill(2);
                // These are the last handles on the flat image in this process.
                drop(view);
                family.view.restore().unwrap();
                *snapshot = Arc::new(Snapshot::zeroed(0).unwrap());
            },
            |(family, snapshot, bytes)| {
                family.assert_holds(snapshot, bytes);
                let mut view = snapshot.view().unwrap();
                fill_every(2, &mut view, 3);
                let mut written = bytes.clone();
                fill_every(2, &mut written, 3);
                let taken = view.take_snapshot().unwrap();
                view.restore().unwrap();
                assert_same("restored", &view, bytes);
                family.assert_holds(&taken, &written);
            },
        );
    }
}

#[test]
fn an_image_is_made_flat_in_each_process_on_its_own() {
    let _serial = serial();
    for family in [Family::of_bytes, Family::of_zeroes] {
        let mut family = family(200);
        let (snapshot, bytes) = changed(&mut family);
        assert_same("viewed", &snapshot.view().unwrap(), &bytes);
        assert!(snapshot.stats().flat > 0, "the long run is not mapped");
        both_at_once((family, snapshot, bytes), |(family, snapshot, bytes), process| {
            view_often(snapshot, bytes);
            family.view.restore_to(snapshot).unwrap();
            family.view.fill(process);
            family.assert_holds(snapshot, bytes);
            let (mut other, mut others_bytes) = (snapshot.view().unwrap(), bytes.clone());
            fill_every(4, &mut other, process);
            fill_every(4, &mut others_bytes, process);
            view_often(&other.take_snapshot().unwrap(), &others_bytes);
        });
    }
}
