//! Feature `tracing`: one event for each snapshot that is taken, each restore, and each image that is made
//! flat.

mod common;

use std::fmt::Debug;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use common::kinds::{self, Kind};
use memsnap::{Snapshot, View, page_size};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::with_default;
use tracing::{Event, Metadata, Subscriber};

#[derive(Default)]
struct Heard {
    message: String,
    fields: Vec<(&'static str, String)>,
}

/// A subscriber that calls a function with each of memsnap's events.
struct Listener<F>(F);

impl<F: Fn(&Event<'_>) + Send + Sync + 'static> Subscriber for Listener<F> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "memsnap"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        panic!("memsnap has no spans");
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        (self.0)(event);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

impl Visit for Heard {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => self.fields.push((name, format!("{value:?}"))),
        }
    }
}

/// Returns the events that `script` causes, with its result.
fn events<T>(script: impl FnOnce() -> T) -> (T, Vec<Heard>) {
    let all = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&all);
    let listener = Listener(move |event: &Event<'_>| {
        let mut heard = Heard::default();
        event.record(&mut heard);
        kept.lock().unwrap().push(heard);
    });
    let result = with_default(listener, script);
    let heard = std::mem::take(&mut *all.lock().unwrap());
    (result, heard)
}

/// Checks that `script` causes exactly one event, with this message and a field for the size.
#[track_caller]
fn tells<T>(what: &str, message: &str, pages: usize, script: impl FnOnce() -> T) -> T {
    let (result, heard) = events(script);
    let messages: Vec<_> = heard.iter().map(|heard| heard.message.as_str()).collect();
    assert_eq!(messages, [message], "{what}");
    assert!(heard[0].fields.contains(&("pages", pages.to_string())), "{what}: {:?}", heard[0].fields);
    result
}

fn takes_and_restores<S>(what: &str, view: &mut View<S>, other: &Snapshot) {
    let pages = view.len() / page_size();
    let take = |view: &View<S>| tells(what, "snapshot taken", pages, || view.take_snapshot().unwrap());
    for round in 0..20 {
        view[3] ^= 1;
        take(view);
        let unchanged = take(view);
        // A restore puts back few pages, many pages, or maps all of them anew.
        let written = [1, 50, kinds::PAGES][round % 3];
        view[..written * page_size()].fill(5);
        tells(what, "view restored", pages, || view.restore().unwrap());
        tells(what, "view restored", pages, || view.restore_to(&unchanged).unwrap());
        tells(what, "view restored", pages, || view.restore_excluding(&[5..9]).unwrap());
        if round % 4 == 3 {
            tells(what, "view restored", pages, || view.restore_to(other).unwrap());
        }
    }
    let (_, heard) = events(|| {
        view.zero(..).unwrap();
        view.changes().map(drop).unwrap();
        let _ = view.stats();
    });
    assert_eq!(heard.len(), 0, "{what}");
}

#[test]
fn each_snapshot_and_each_restore_is_told_once() {
    let other = Snapshot::from_slice(&common::pattern(kinds::PAGES, 7)).unwrap();
    for Kind { name, mut snapshot, .. } in kinds::all() {
        takes_and_restores(name, &mut snapshot.view().unwrap(), &other);
        takes_and_restores(&format!("mutable, {name}"), &mut snapshot.view_mut().unwrap(), &other);
    }
}

/// This event was missing, since no page is compared in this case.
#[test]
fn the_first_snapshot_of_a_view_written_in_place_is_told() {
    let mut snapshot = Snapshot::zeroed(9 * page_size()).unwrap();
    let mut view = snapshot.view_mut().unwrap();
    view.fill(3);
    tells("in place", "snapshot taken", 9, || view.take_snapshot().unwrap());
}

#[test]
fn each_consolidation_is_told_once() {
    let root = Snapshot::from_slice(&common::pattern(kinds::PAGES, 7)).unwrap();
    let mut view = root.view().unwrap();
    view[10 * page_size()..90 * page_size()].fill(1);
    view[95 * page_size()] = 1;
    let taken = view.take_snapshot().unwrap();
    // One event is for the long runs of the image, and one for the whole image.
    let (_, heard) = events(|| (0..200).for_each(|_| drop(taken.view().unwrap())));
    let messages: Vec<_> = heard.iter().map(|heard| heard.message.as_str()).collect();
    assert_eq!(messages, ["image consolidated"; 2]);
}

/// Runs `script` on another thread, with a subscriber that calls `answer` at each event.
///
/// Fails if this does not end.
fn asks_back(what: &str, answer: impl Fn() + Send + Sync + 'static, script: impl FnOnce() + Send + 'static) {
    let (sender, receiver) = mpsc::channel();
    let answered = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&answered);
    let subscriber = Listener(move |_: &Event<'_>| {
        answer();
        count.fetch_add(1, Ordering::Relaxed);
    });
    thread::spawn(move || {
        with_default(subscriber, script);
        sender.send(()).unwrap();
    });
    receiver.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(answered.load(Ordering::Relaxed) > 0, "{what}: there was no event");
}

/// The event of a snapshot was emitted while the view was locked. A subscriber that asked the view for its
/// statistics waited forever.
#[test]
fn a_subscriber_may_ask_the_view_and_the_snapshot() {
    for Kind { name, snapshot, .. } in kinds::all() {
        let snapshot = Arc::new(snapshot);
        let mut view = snapshot.view_arc().unwrap();
        view[0] ^= 1;
        let (view, asked) = (Arc::new(view), Arc::clone(&snapshot));
        let shown = Arc::clone(&view);
        let answer = move || {
            let _ = shown.stats();
            shown.changes().map(drop).unwrap();
            let _ = asked.stats();
            asked.view().map(drop).unwrap();
        };
        asks_back(name, answer, move || {
            view.take_snapshot().unwrap();
            view.take_snapshot().unwrap();
        });
    }
}

#[cfg(all(target_os = "linux", not(memsnap_unix)))]
mod linux {
    use memsnap::os::linux::SnapshotExt as _;

    use super::*;

    #[test]
    fn a_snapshot_made_flat_for_another_process_is_told_once() {
        let root = Snapshot::from_slice(&common::pattern(kinds::PAGES, 7)).unwrap();
        let mut view = root.view().unwrap();
        view[10 * page_size()..90 * page_size()].fill(1);
        view[0] ^= 1;
        let taken = view.take_snapshot().unwrap();
        tells("sharing", "image consolidated", kinds::PAGES, || taken.to_fd().unwrap());
        let (_, heard) = events(|| taken.to_fd().unwrap());
        assert_eq!(heard.len(), 0);
    }

    /// The event of `to_fd` was emitted while the snapshot was locked. A subscriber that called `to_fd`
    /// waited forever.
    #[test]
    fn a_subscriber_may_send_the_snapshot_that_is_being_sent() {
        let root = Snapshot::from_slice(&common::pattern(kinds::PAGES, 7)).unwrap();
        let mut view = root.view().unwrap();
        view[0] ^= 1;
        let taken = view.take_snapshot().unwrap();
        let asked = taken.clone();
        let answer = move || drop(asked.to_fd().unwrap());
        asks_back("sending", answer, move || drop(taken.to_fd().unwrap()));
    }
}
