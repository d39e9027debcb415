//! A forked child goes on with the views and snapshots it inherited, at the same time as its parent, and
//! neither sees or spoils the other's bytes.
#![cfg(unix)]

mod common;

use std::sync::Arc;

use common::script::{Script, differing, read};
use common::unix::{Fork, fork};
use common::{assert_same, pattern, serial};
use memsnap::{ArcView, Snapshot, Tracking, ViewOptions, page_size};

/// Has `one` run to its end in one process while the other waits, and then `other` in the other; first
/// with the child as the first, then with the parent. Each time on what `setup` made before the fork.
#[track_caller]
fn one_after_the_other<T>(setup: impl Fn() -> T, one: impl Fn(&mut T), other: impl Fn(&mut T)) {
    for child_first in [true, false] {
        let mut inherited = setup();
        match fork() {
            Fork::InChild(mut parent) => {
                if child_first {
                    one(&mut inherited);
                    parent.signal();
                    parent.wait();
                } else {
                    parent.wait();
                    other(&mut inherited);
                }
                parent.exit();
            }
            Fork::InParent(mut child) => {
                if child_first {
                    child.wait();
                    other(&mut inherited);
                    child.signal();
                } else {
                    one(&mut inherited);
                    child.signal();
                }
                child.join();
            }
        }
    }
}

/// Has `script` run in both processes at once, on what `inherited` is before the fork. It is told the
/// processes apart by a number.
#[track_caller]
fn both_at_once<T>(mut inherited: T, script: impl Fn(&mut T, u8)) {
    match fork() {
        Fork::InChild(mut parent) => {
            parent.signal();
            script(&mut inherited, 100);
            parent.exit();
        }
        Fork::InParent(mut child) => {
            child.wait();
            script(&mut inherited, 200);
            child.join();
        }
    }
}

/// A view of a family of snapshots, and what its root holds.
struct Family {
    view: ArcView,
    root: Vec<u8>,
}

impl Family {
    fn of_bytes(pages: usize) -> Self {
        let root = pattern(pages, 1);
        Self { view: Arc::new(Snapshot::from_slice(&root).unwrap()).view_arc().unwrap(), root }
    }

    fn of_zeroes(pages: usize) -> Self {
        let root = vec![0; pages * page_size()];
        Self { view: Arc::new(Snapshot::zeroed(root.len()).unwrap()).view_arc().unwrap(), root }
    }

    /// A snapshot with these bytes, captured from the view, which shows the root again afterwards.
    fn capture(&mut self, bytes: &[u8]) -> Snapshot {
        self.view.copy_from_slice(bytes);
        let snapshot = self.view.take_snapshot().unwrap();
        self.view.restore().unwrap();
        snapshot
    }

    /// The snapshot holds `bytes`, however it is looked at.
    #[track_caller]
    fn assert_holds(&mut self, snapshot: &Snapshot, bytes: &[u8]) {
        assert_same("read", &read(snapshot), bytes);
        assert_same("viewed", &snapshot.view().unwrap(), bytes);
        self.view.restore_to(snapshot).unwrap();
        assert_same("restored to", &self.view, bytes);
        self.view.restore().unwrap();
        assert_same("restored", &self.view, &self.root);
    }
}

fn fill_every(step: usize, bytes: &mut [u8], value: u8) {
    bytes.chunks_exact_mut(page_size()).step_by(step).for_each(|page| page.fill(value));
}

#[test]
fn every_operation_goes_on_in_both_processes() {
    let _serial = serial();
    for seed in 0..8 {
        let mut script = Script::new(seed);
        script.run(150);
        both_at_once(script, |script, process| {
            script.reseed(seed << 8 | u64::from(process));
            script.run(150);
        });
    }
}

#[test]
fn grandchildren_go_on_like_children() {
    fn generation(script: &mut Script, number: u64) {
        if number == 4 {
            return;
        }
        match fork() {
            Fork::InChild(parent) => {
                script.reseed(2 * number);
                script.run(50);
                generation(script, number + 1);
                script.run(50);
                parent.exit();
            }
            Fork::InParent(child) => {
                script.reseed(2 * number + 1);
                script.run(150);
                child.join();
                script.run(50);
            }
        }
    }
    let _serial = serial();
    let mut script = Script::new(0);
    script.run(50);
    generation(&mut script, 0);
}

#[test]
fn pages_written_before_the_fork_are_captured_and_undone_by_each_process() {
    let _serial = serial();
    for family in [Family::of_bytes, Family::of_zeroes] {
        let dirty = |root: &[u8]| {
            let mut bytes = root.to_vec();
            fill_every(3, &mut bytes, 7);
            bytes
        };
        let setup = || {
            let mut family = family(40);
            fill_every(3, &mut family.view, 7);
            family
        };
        let other = |family: &mut Family| {
            let dirty = dirty(&family.root);
            assert_same("inherited", &family.view, &dirty);
            assert_eq!(family.view.changes().unwrap().ranges(), differing(&dirty, &family.root));
            let taken = family.view.take_snapshot().unwrap();
            assert_eq!(family.view.changes().unwrap().ranges(), []);
            family.view.fill(8);
            family.assert_holds(&taken, &dirty);
        };
        one_after_the_other(
            setup,
            |family| {
                // Pages of before the fork, others, and both again.
                family.view.fill(9);
                let taken = family.view.take_snapshot().unwrap();
                fill_every(2, &mut family.view, 10);
                family.view.restore().unwrap();
                assert_same("restored", &family.view, &family.root);
                family.assert_holds(&taken, &vec![9; family.root.len()]);
                family.view.fill(11);
            },
            other,
        );
        both_at_once(setup(), |family, _| other(family));
    }
}

#[test]
fn pages_first_written_after_the_fork_are_found_in_each_process() {
    let _serial = serial();
    for family in [Family::of_bytes, Family::of_zeroes] {
        let setup = || {
            let family = family(40);
            // Has the process look for written pages before it forks.
            assert_eq!(family.view.changes().unwrap().ranges(), []);
            family
        };
        both_at_once(setup(), |family, process| {
            let page = usize::from(process) % 37;
            family.view[page * page_size()] ^= 0xFF;
            let changed = page * page_size()..(page + 1) * page_size();
            assert_eq!(family.view.changes().unwrap().ranges(), [changed]);
            let bytes = family.view.to_vec();
            let taken = family.view.take_snapshot().unwrap();
            family.assert_holds(&taken, &bytes);
        });
    }
}

#[test]
fn a_page_recycled_by_one_process_keeps_its_bytes_in_the_other() {
    const PAGES: usize = 100;
    let _serial = serial();
    let captured = pattern(PAGES, 50);
    let setup = || {
        let mut family = Family::of_zeroes(PAGES);
        let snapshot = family.capture(&captured);
        (family, Some(snapshot))
    };
    one_after_the_other(
        setup,
        |(family, snapshot)| {
            drop(snapshot.take());
            let mut bytes = pattern(PAGES, 60);
            for _ in 0..3 {
                bytes.iter_mut().for_each(|byte| *byte ^= 0xFF);
                let other = family.capture(&bytes);
                let store = other.stats().store;
                assert_eq!(store.live, PAGES * page_size());
                assert_eq!(store.recyclable, 0, "the freed pages are the ones captured into");
                family.assert_holds(&other, &bytes);
            }
        },
        |(family, snapshot)| family.assert_holds(snapshot.as_ref().unwrap(), &captured),
    );
}

#[test]
fn captured_pages_returned_by_one_process_stay_in_the_other() {
    const PAGES: usize = 1000;
    let _serial = serial();
    let captured = pattern(PAGES, 50);
    let setup = || {
        let mut family = Family::of_bytes(PAGES);
        let snapshot = family.capture(&captured);
        for value in 0..100 {
            // Small captures, so that no memory is kept for another large one.
            family.view[0] = value;
            family.view.take_snapshot().unwrap();
        }
        family.view.restore().unwrap();
        (family, Some(snapshot))
    };
    one_after_the_other(
        setup,
        |(family, snapshot)| {
            drop(snapshot.take());
            family.view[0] = 100;
            let store = family.view.take_snapshot().unwrap().stats().store;
            assert!(
                store.live + store.recyclable < PAGES / 2 * page_size(),
                "nothing was returned: {store:?}"
            );
        },
        |(family, snapshot)| {
            let snapshot = snapshot.take().unwrap();
            family.assert_holds(&snapshot, &captured);
            drop(snapshot);
            // And what comes where the pages were is right as well.
            let again = family.capture(&pattern(PAGES, 60));
            family.assert_holds(&again, &pattern(PAGES, 60));
        },
    );
}

#[test]
fn written_pages_discarded_by_one_process_stay_in_the_other() {
    // More than a view keeps resident when it is restored.
    const LEN: usize = 80 << 20;
    let _serial = serial();
    let setup = || {
        let mut view = Arc::new(Snapshot::zeroed(LEN).unwrap()).view_arc().unwrap();
        view.iter_mut().step_by(page_size()).for_each(|byte| *byte = 5);
        view
    };
    let assert_all = |view: &ArcView, value: u8| {
        let wrong = view.iter().step_by(page_size()).position(|&byte| byte != value);
        assert_eq!(wrong, None, "the page that does not start with {value}");
    };
    one_after_the_other(
        setup,
        |view| {
            view.restore().unwrap();
            let stats = view.stats();
            assert!(
                stats.private < LEN || stats.tracker == Tracking::Compare,
                "nothing was discarded: {stats:?}"
            );
            assert_all(view, 0);
        },
        |view| {
            assert_all(view, 5);
            view.restore().unwrap();
            assert_all(view, 0);
        },
    );
}

#[test]
fn each_process_takes_snapshots_of_its_own() {
    const PAGES: usize = 40;
    let _serial = serial();
    let mut family = Family::of_bytes(PAGES);
    let earlier = family.capture(&pattern(PAGES, 2));
    both_at_once((family, earlier), |(family, earlier), process| {
        let mut bytes = family.root.clone();
        let mut taken = Vec::new();
        for round in 0..20 {
            fill_every(1 + usize::from(round) % 5, &mut family.view, process + round);
            fill_every(1 + usize::from(round) % 5, &mut bytes, process + round);
            taken.push((family.view.take_snapshot().unwrap(), bytes.clone()));
        }
        for (snapshot, bytes) in &taken {
            family.assert_holds(snapshot, bytes);
        }
        for (snapshot, bytes) in taken.into_iter().step_by(2) {
            let mut view = snapshot.view().unwrap();
            view.fill(process);
            let other = view.take_snapshot().unwrap();
            drop(view);
            family.assert_holds(&snapshot, &bytes);
            family.assert_holds(&other, &vec![process; PAGES * page_size()]);
        }
        family.assert_holds(earlier, &pattern(PAGES, 2));
    });
}

/// A snapshot in which short and long runs of pages differ from the root, and its bytes.
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
                // The last handles of this process on the flat image.
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

#[derive(Clone, Copy)]
enum End {
    Drop,
    Commit,
}

#[test]
fn a_mutable_view_of_bytes_ends_in_each_process_on_its_own() {
    const PAGES: usize = 40;
    let _serial = serial();
    for end in [End::Drop, End::Commit] {
        let root = pattern(PAGES, 1);
        let mut snapshot = Snapshot::from_slice(&root).unwrap();
        let earlier = snapshot.clone();
        let mut view = snapshot.view_mut().unwrap();
        let mut bytes = root.clone();
        fill_every(3, &mut view, 9);
        fill_every(3, &mut bytes, 9);
        let finish = |mut view: memsnap::MutView<'_>, mut bytes: Vec<u8>, process: u8| {
            assert_same("inherited", &view, &bytes);
            assert_eq!(view.changes().unwrap().ranges(), differing(&bytes, &root));
            fill_every(2, &mut view, process);
            let taken = view.take_snapshot().unwrap();
            view.restore().unwrap();
            assert_same("restored", &view, &root);
            view.restore_to(&taken).unwrap();
            fill_every(5, &mut view, process + 1);
            fill_every(2, &mut bytes, process);
            assert_same("taken", &read(&taken), &bytes);
            fill_every(5, &mut bytes, process + 1);
            match end {
                End::Drop => drop(view),
                End::Commit => view.commit().unwrap(),
            }
            bytes
        };
        match fork() {
            Fork::InChild(mut parent) => {
                parent.signal();
                let bytes = finish(view, bytes, 100);
                parent.wait();
                assert_same("the child's", &snapshot.view().unwrap(), &bytes);
                assert_same("earlier", &earlier.view().unwrap(), &root);
                parent.exit();
            }
            Fork::InParent(mut child) => {
                child.wait();
                let bytes = finish(view, bytes, 200);
                child.signal();
                child.join();
                assert_same("the parent's", &snapshot.view().unwrap(), &bytes);
                assert_same("earlier", &earlier.view().unwrap(), &root);
            }
        }
    }
}

/// Maps memory of the caller's at these addresses, which nothing is mapped at.
#[cfg(all(target_os = "linux", not(memsnap_unix)))]
fn occupy(address: *mut u8, len: usize) -> &'static mut [u8] {
    use std::{ptr, slice};

    let (protection, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
    );
    // SAFETY: MAP_FIXED_NOREPLACE replaces nothing that is mapped.
    let mapped = unsafe { libc::mmap(address.cast(), len, protection, flags, -1, 0) };
    assert!(ptr::eq(mapped.cast(), address), "the view's addresses are in use in the child");
    // SAFETY: the mapping was made just now, is `len` zeroes long, and lives as long as the process.
    unsafe { slice::from_raw_parts_mut(address, len) }
}

/// Where the view may still be mapped in the child: memory anywhere.
#[cfg(not(all(target_os = "linux", not(memsnap_unix))))]
fn occupy(_: *mut u8, len: usize) -> &'static mut [u8] {
    vec![0; len].leak()
}

#[test]
fn a_mutable_view_written_in_place_stays_with_the_parent() {
    const PAGES: usize = 64;
    let _serial = serial();
    for end in [End::Drop, End::Commit] {
        let mut snapshot = Snapshot::zeroed(PAGES * page_size()).unwrap();
        let other = Snapshot::from_slice(&pattern(PAGES, 1)).unwrap();
        let mut options = ViewOptions::new();
        options.reserve(2 * PAGES * page_size());
        let mut view = snapshot.view_mut_with(&options).unwrap();
        let mut bytes = vec![0; view.len()];
        fill_every(3, &mut view, 9);
        fill_every(3, &mut bytes, 9);
        match fork() {
            Fork::InChild(mut parent) => {
                let guest = occupy(view.as_mut_ptr(), view.len());
                guest.fill(0x5A);
                parent.signal();
                assert!(view.take_snapshot().is_err());
                assert!(view.changes().is_err());
                assert!(view.restore().is_err());
                assert!(view.restore_to(&other).is_err());
                assert!(view.restore_excluding(&[5..PAGES * page_size() - 5]).is_err());
                assert!(view.zero(..).is_err());
                assert!(view.grow(2 * PAGES * page_size()).is_err());
                match end {
                    End::Drop => drop(view),
                    End::Commit => assert!(view.commit().is_err()),
                }
                assert!(guest.iter().all(|&byte| byte == 0x5A), "what the child mapped has changed");
                guest.fill(0x5B);
                // What the parent's view is going to leave in the snapshot is the parent's too.
                let mut own = snapshot.view_mut().unwrap();
                assert_same("the child's own", &own, &vec![0; guest.len()]);
                own.fill(4);
                own.commit().unwrap();
                assert_same("the child's own", &snapshot.view().unwrap(), &vec![4; guest.len()]);
                drop(snapshot);
                assert!(guest.iter().all(|&byte| byte == 0x5B), "what the child mapped has changed");
                parent.wait();
                parent.exit();
            }
            Fork::InParent(mut child) => {
                child.wait();
                assert_same("after the fork", &view, &bytes);
                fill_every(5, &mut view, 10);
                fill_every(5, &mut bytes, 10);
                child.signal();
                child.join();
                assert_same("after the child", &view, &bytes);
                match end {
                    End::Drop => {
                        assert_same("taken", &read(&view.take_snapshot().unwrap()), &bytes);
                        drop(view);
                    }
                    End::Commit => view.commit().unwrap(),
                }
                assert_same("the parent's", &snapshot.view().unwrap(), &bytes);
            }
        }
    }
}

#[test]
fn a_mutable_view_that_a_snapshot_was_taken_of_goes_on_in_both_processes() {
    const PAGES: usize = 64;
    let _serial = serial();
    let mut snapshot = Snapshot::zeroed(PAGES * page_size()).unwrap();
    let mut view = snapshot.view_mut().unwrap();
    view.copy_from_slice(&pattern(PAGES, 9));
    let taken = view.take_snapshot().unwrap();
    match fork() {
        Fork::InChild(mut parent) => {
            parent.signal();
            assert_same("inherited", &view, &pattern(PAGES, 9));
            view.restore().unwrap();
            assert_same("restored", &view, &vec![0; PAGES * page_size()]);
            view.copy_from_slice(&pattern(PAGES, 10));
            view.commit().unwrap();
            parent.wait();
            assert_same("the child's", &snapshot.view().unwrap(), &pattern(PAGES, 10));
            assert_same("taken", &taken.view().unwrap(), &pattern(PAGES, 9));
            parent.exit();
        }
        Fork::InParent(mut child) => {
            child.wait();
            view.copy_from_slice(&pattern(PAGES, 11));
            view.commit().unwrap();
            child.signal();
            child.join();
            assert_same("the parent's", &snapshot.view().unwrap(), &pattern(PAGES, 11));
            assert_same("taken", &taken.view().unwrap(), &pattern(PAGES, 9));
        }
    }
}

/// What children have of their parents, which only Linux's `/proc` tells.
#[cfg(target_os = "linux")]
mod keys {
    use super::*;
    use common::keys::{Kind, forbidden, numbers_of, open_descriptors};
    use common::unix::run_in_child;
    use common::{LINUX, alone, skip};

    const PAGES: usize = 64;

    /// Tracked in the best way that works: by a userfaultfd, if there is one.
    fn tracked() -> ViewOptions {
        let mut options = ViewOptions::new();
        options.tracking(Tracking::Armed);
        if Snapshot::from_slice(b"x").unwrap().view_with(&options).is_err() {
            options.tracking(Tracking::Auto);
        }
        options
    }

    /// A view has found what was written to it, so that its process has what it takes to do so.
    fn write_and_take(view: &mut ArcView, value: u8) {
        let mut bytes = view.to_vec();
        for page in [3, 7] {
            view[page * page_size()] = value;
            bytes[page * page_size()] = value;
            assert_same("taken", &read(&view.take_snapshot().unwrap()), &bytes);
        }
    }

    /// A forked child inherited the userfaultfd and the pagemap of its parent, and the memory file of a view that is
    /// written in place. By each of them it could write to the parent's memory or hide what the parent wrote.
    #[test]
    fn a_child_has_no_key_to_its_parents_memory() {
        let _serial = serial();
        let root = pattern(PAGES, 1);
        let mut view = Arc::new(Snapshot::from_slice(&root).unwrap()).view_arc_with(&tracked()).unwrap();
        let mut zeroes = Snapshot::zeroed(PAGES * page_size()).unwrap();
        let mut in_place = zeroes.view_mut().unwrap();
        write_and_take(&mut view, 1);
        in_place.copy_from_slice(&pattern(PAGES, 2));
        let mut held = forbidden();
        held.dedup();
        if view.stats().tracker == Tracking::Armed {
            assert_eq!(held, [Kind::Pagemap, Kind::Userfaultfd, Kind::Unsealed]);
        }
        // Built without memfds, no view is written in place.
        assert_eq!(held.contains(&Kind::Unsealed), option_env!("MEMSNAP_FILES").is_none());
        match fork() {
            Fork::InChild(mut parent) => {
                // Before anything of memsnap is called.
                assert_eq!(forbidden(), []);
                parent.signal();
                parent.wait();
                write_and_take(&mut view, 2);
                assert_eq!(in_place.take_snapshot().is_err(), held.contains(&Kind::Unsealed));
                drop(in_place);
                parent.exit();
            }
            Fork::InParent(mut child) => {
                child.wait();
                let mut now = forbidden();
                now.dedup();
                assert_eq!(now, held);
                for value in 10..20 {
                    write_and_take(&mut view, value);
                    in_place[..page_size()].fill(value);
                }
                child.signal();
                child.join();
                let mut bytes = pattern(PAGES, 2);
                bytes[..page_size()].fill(19);
                assert_same("in place", &read(&in_place.take_snapshot().unwrap()), &bytes);
                in_place.commit().unwrap();
                assert_same("committed", &read(&zeroes), &bytes);
                view.restore().unwrap();
                assert_same("restored", &view, &root);
            }
        }
    }

    /// Each generation of forks had two descriptors more than the one before.
    #[test]
    fn generations_of_forks_have_no_more_descriptors_than_the_first() {
        fn generation(view: &mut ArcView, number: u8, descriptors: Option<usize>) {
            write_and_take(view, number);
            let now = open_descriptors();
            assert_eq!(now, descriptors.unwrap_or(now), "in generation {number}");
            if number < 5 {
                run_in_child(|| generation(view, number + 1, Some(now)));
            }
        }
        let _serial = serial();
        let snapshot = Arc::new(Snapshot::from_slice(&pattern(PAGES, 1)).unwrap());
        generation(&mut snapshot.view_arc_with(&tracked()).unwrap(), 0, None);
    }

    /// A child that is made by a bare `clone` has what its parent had, for no handler runs in it, until memsnap notices: it
    /// never did.
    #[test]
    fn a_child_that_no_handler_ran_in_closes_what_it_inherited_at_its_first_call() {
        let test = "a_child_that_no_handler_ran_in_closes_what_it_inherited_at_its_first_call";
        if !LINUX {
            return skip(test, "other systems than Linux tell nothing of such a child");
        }
        alone(test, || {
            let root = pattern(PAGES, 1);
            let mut view = Arc::new(Snapshot::from_slice(&root).unwrap()).view_arc_with(&tracked()).unwrap();
            let mut zeroes = Snapshot::zeroed(PAGES * page_size()).unwrap();
            let mut in_place = zeroes.view_mut().unwrap();
            in_place.fill(1);
            write_and_take(&mut view, 1);
            let held = forbidden();
            let others = numbers_of(Kind::Sealed);
            // SAFETY: a copy of the process like that of `fork`. The other thread of this process waits for the test, and
            // holds no lock that the child needs.
            let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
            if child == 0 {
                let inherited = forbidden() == held;
                let other = view.changes().is_ok();
                let pagemap = || {
                    numbers_of(Kind::Pagemap)
                        .into_iter()
                        .map(|number| std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap())
                };
                let own = format!("/proc/{}/pagemap", std::process::id());
                let closed = numbers_of(Kind::Unsealed).is_empty()
                    && numbers_of(Kind::Userfaultfd).is_empty()
                    && pagemap().all(|path| path == std::path::Path::new(&own));
                let kept = numbers_of(Kind::Sealed) == others;
                let failed = [inherited, other, closed, kept].iter().position(|good| !good);
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(failed.map_or(0, |number| i32::try_from(number).unwrap_or(254) + 1)) };
            }
            let mut status = -1;
            let child = i32::try_from(child).unwrap();
            // SAFETY: `status` is written to and nothing else.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0, "exit code {}", status >> 8);
            assert_eq!(forbidden(), held);
            write_and_take(&mut view, 2);
            assert_same("in place", &in_place, &vec![1; PAGES * page_size()]);
        });
    }
}
