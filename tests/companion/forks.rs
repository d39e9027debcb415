//! Forked children of the companion test.
//!
//! Some use the views that they inherited, some end immediately, and some are forked by another thread.

use std::sync::{Arc, RwLock};
use std::thread;
use std::time::Duration;

use memsnap::{Snapshot, Tracking, View, ViewOptions, page_size};

use crate::account::{self, Kind, done, is_over};
use crate::common::script::{Random, differing, read};
use crate::common::unix::{Child, Fork, fork};
use crate::common::{assert_same, pattern};
use crate::raw;
use crate::subject::{Shown, Subject, some_range, write};

/// Forks a child that uses these views and their snapshots at the same time as the parent.
pub(crate) fn inherit(
    owned: &mut Vec<Subject<Snapshot>>,
    mutable: &mut Subject<&mut Snapshot>,
    shown: &RwLock<Vec<Shown>>,
    seed: u64,
) -> Child {
    let in_place = mutable.is_in_place();
    // No other thread holds this lock when the process is copied, so the child can take it.
    let alone = write(shown);
    match fork() {
        Fork::InParent(child) => {
            done(Kind::ForkAndUse);
            child
        }
        Fork::InChild(parent) => {
            drop(alone);
            goes_on(owned, mutable, in_place, &mut Random(seed));
            parent.exit()
        }
    }
}

fn goes_on(
    owned: &mut Vec<Subject<Snapshot>>,
    mutable: &mut Subject<&mut Snapshot>,
    in_place: bool,
    random: &mut Random,
) {
    if in_place {
        assert!(mutable.view.take_snapshot().is_err() && mutable.view.restore().is_err());
    } else {
        uses(mutable, random);
    }
    for subject in &mut *owned {
        uses(subject, random);
    }
    match random.below(3) {
        // The parent must not notice that the child drops these.
        0 => owned.clear(),
        1 => owned.iter_mut().for_each(|subject| subject.held.clear()),
        _ => {}
    }
    owned.iter().for_each(|subject| subject.check_held(random));
    mutable.check_held(random);
}

/// Checks an inherited view, and then writes, takes snapshots and restores.
fn uses<S>(subject: &mut Subject<S>, random: &mut Random) {
    subject.check("inherited");
    let range = subject.view.as_ptr().addr()..subject.view.as_ptr().addr() + subject.view.len();
    for step in 0..random.below(5) {
        // The child may be refused these calls, which are only hints.
        let _ = match random.below(4) {
            0 => raw::advise(&range, libc::MADV_PAGEOUT),
            1 => raw::advise(&range, libc::MADV_MERGEABLE),
            2 => raw::advise(&range, raw::MADV_POPULATE_READ),
            _ => Ok(()),
        };
        let part = some_range(random, subject.view.len());
        let value = random.below(3).to_le_bytes()[0];
        subject.fill(part, value);
        subject.act(random, &[]);
        if step == 0 {
            subject.check_held(random);
        }
    }
}

/// Waits for a child to end.
///
/// If a thread has failed, this waits only some seconds. A child that was forked while that thread held a
/// lock of the standard library may never end.
pub(crate) fn join(child: Child) {
    let mut patience = 10_000;
    while !child.has_ended() {
        thread::sleep(Duration::from_millis(1));
        patience -= u32::from(is_over());
        if patience == 0 {
            return drop(child);
        }
    }
    child.join();
}

/// Forks at any time, even while the other threads call their views.
///
/// Each child ends immediately, or uses the views of this thread.
pub(crate) fn elsewhere(tracking: Tracking, seed: u64) {
    let mut random = Random(seed);
    let root = pattern(40, 3);
    let snapshot = Arc::new(Snapshot::from_slice(&root).unwrap());
    let mut view = snapshot.view_arc_with(ViewOptions::new().tracking(tracking)).unwrap();
    let mut bytes = root.clone();
    loop {
        thread::sleep(Duration::from_millis(5 + random.below(20) as u64));
        if is_over() {
            return;
        }
        if !account::is_active(Kind::ForkElsewhere) {
            continue;
        }
        let part = some_range(&mut random, bytes.len());
        view[part.clone()].fill(7);
        bytes[part].fill(7);
        let ends_at_once = random.below(2) == 0;
        match fork() {
            Fork::InChild(parent) => {
                if !ends_at_once {
                    own(&mut view, &root, &bytes);
                }
                parent.exit()
            }
            Fork::InParent(child) => {
                own(&mut view, &root, &bytes);
                bytes.clone_from(&root);
                join(child);
            }
        }
        done(if ends_at_once { Kind::ForkAndExit } else { Kind::ForkElsewhere });
    }
}

fn own<S>(view: &mut View<S>, root: &[u8], bytes: &[u8]) {
    assert_same("a view elsewhere", view, bytes);
    assert_eq!(view.changes().unwrap().ranges(), differing(bytes, root));
    let taken = view.take_snapshot().unwrap();
    view[..3 * page_size()].fill(9);
    view.restore_to(&taken).unwrap();
    assert_same("a view elsewhere, restored to", view, bytes);
    assert_same("a snapshot elsewhere", &read(&taken), bytes);
    view.restore().unwrap();
    assert_same("a view elsewhere, restored", view, root);
}
