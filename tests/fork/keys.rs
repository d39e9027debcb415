//! Descriptors that a child inherits from its parent. Only Linux's `/proc` lists them.

use std::sync::Arc;

use memsnap::{ArcView, Snapshot, Tracking, ViewOptions, page_size};

use super::common::keys::{Kind, forbidden, numbers_of, open_descriptors};
use super::common::script::read;
use super::common::unix::run_in_child;
use super::common::unix::{Fork, fork};
use super::common::{LINUX, alone, skip};
use super::common::{assert_same, pattern, serial};

const PAGES: usize = 64;

/// Returns options for the best tracking method that works: with a userfaultfd, if possible.
fn tracked() -> ViewOptions {
    let mut options = ViewOptions::new();
    options.tracking(Tracking::Armed);
    if Snapshot::from_slice(b"x").unwrap().view_with(&options).is_err() {
        options.tracking(Tracking::Auto);
    }
    options
}

/// Writes to the view and takes snapshots.
///
/// Afterwards the process has all descriptors that it needs to find written pages.
fn write_and_take(view: &mut ArcView, value: u8) {
    let mut bytes = view.to_vec();
    for page in [3, 7] {
        view[page * page_size()] = value;
        bytes[page * page_size()] = value;
        assert_same("taken", &read(&view.take_snapshot().unwrap()), &bytes);
    }
}

/// A forked child inherited the userfaultfd and the pagemap of its parent, and the memory file of a view that
/// is written in place. With them it could write to the parent's memory, or hide what the parent wrote.
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
    // If memsnap is built without memfds, no view is written in place.
    assert_eq!(held.contains(&Kind::Unsealed), option_env!("MEMSNAP_FILES").is_none());
    match fork() {
        Fork::InChild(mut parent) => {
            // The child has not called memsnap yet.
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

/// Each generation of forks had two more descriptors than the one before.
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

/// A child of a bare `clone` runs no fork handlers, so that it has all of its parent's descriptors until
/// memsnap notices the fork. memsnap never noticed it, and the child kept them.
#[test]
fn a_child_that_no_handler_ran_in_closes_what_it_inherited_at_its_first_call() {
    let test = "a_child_that_no_handler_ran_in_closes_what_it_inherited_at_its_first_call";
    if !LINUX {
        return skip(test, "only the backend for Linux detects such a child");
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
        // SAFETY: this copies the process, as `fork` does. The other thread of this process waits for the
        // test and holds no lock that the child needs.
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
            // SAFETY: `_exit` ends the child immediately.
            unsafe { libc::_exit(failed.map_or(0, |number| i32::try_from(number).unwrap_or(254) + 1)) };
        }
        let mut status = -1;
        let child = i32::try_from(child).unwrap();
        // SAFETY: the call only writes to `status`.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0, "exit code {}", status >> 8);
        assert_eq!(forbidden(), held);
        write_and_take(&mut view, 2);
        assert_same("in place", &in_place, &vec![1; PAGES * page_size()]);
    });
}
