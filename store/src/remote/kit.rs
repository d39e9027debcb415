//! Tests that every kind of object store has to pass.
//!
//! The tests of this crate run them on stores in memory and in a folder. The crate `memsnap-store-s3` runs them on a
//! server.
#![allow(
    missing_docs,
    clippy::missing_panics_doc,
    reason = "test functions, with names that say what they test"
)]

use std::io::Cursor;
use std::time::Duration;

use super::Remote;
use crate::error::{Error, Result};
use crate::id::Id;

/// Returns an id with this number.
fn id(number: u64) -> Id {
    Id::of(&number.to_le_bytes())
}

/// Returns bytes without a pattern.
fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

/// Runs all tests on a repository, except [`movers_at_once_lose_nothing`].
///
/// Each call of `open` opens the repository again.
///
/// A store that checks a condition and writes in two steps cannot pass the test that is left out.
pub fn all(open: &dyn Fn() -> Result<Remote>) {
    let remote = open().unwrap();
    objects_are_written_read_and_deleted(&remote);
    ranges_are_read(&remote);
    large_objects_are_sent_in_parts(&remote);
    many_objects_are_listed_and_deleted(&remote, 1100);
    names_move(&remote);
    old_entries_of_names_are_pruned(&remote);
    leases_are_seen_by_others(&remote, &open().unwrap());
    packs_are_marked(&remote);
    assert_eq!(open().unwrap().repository(), remote.repository());
}

pub fn objects_are_written_read_and_deleted(remote: &Remote) {
    let objects = remote.objects();
    let before = remote.traffic();
    objects.put("packs/kit", &b"some bytes"[..]).unwrap();
    assert_eq!(objects.get("packs/kit", 10).unwrap().as_deref(), Some(&b"some bytes"[..]));
    let after = remote.traffic();
    assert_eq!(
        (after.sent - before.sent, after.received - before.received, after.requests - before.requests),
        (10, 10, 2)
    );
    assert!(matches!(objects.get("packs/kit", 9), Err(Error::Damaged { .. })));
    assert_eq!(objects.head("packs/kit").unwrap().unwrap().len, 10);

    objects.put("packs/kit", &b"others"[..]).unwrap();
    assert_eq!(objects.get("packs/kit", 10).unwrap().as_deref(), Some(&b"others"[..]));
    if remote.honours_conditions().unwrap() {
        assert!(!objects.create("packs/kit", &b"more"[..]).unwrap());
        assert_eq!(objects.get("packs/kit", 10).unwrap().as_deref(), Some(&b"others"[..]));
    }
    objects.put("packs/empty", &b""[..]).unwrap();
    assert_eq!(objects.get("packs/empty", 0).unwrap().as_deref(), Some(&b""[..]));

    objects.delete("packs/kit").unwrap();
    objects.delete("packs/kit").unwrap();
    objects.delete("packs/empty").unwrap();
    assert_eq!(objects.get("packs/kit", 10).unwrap(), None);
    assert_eq!(objects.head("packs/kit").unwrap(), None);
    assert_eq!(objects.get_range("packs/kit", 0..1).unwrap(), None);
    assert!(objects.create("packs/kit", &b"again"[..]).unwrap());
    objects.delete("packs/kit").unwrap();
}

pub fn ranges_are_read(remote: &Remote) {
    let objects = remote.objects();
    let bytes = noise(2 << 20);
    objects.put("packs/ranges", bytes.clone()).unwrap();
    assert_eq!(objects.get_range("packs/ranges", 100..200).unwrap().unwrap(), &bytes[100..200]);

    // The second and the fourth range are far from the others, which are near each other.
    let ranges = [5000..9000, 1_900_000..1_900_001, 0..100, 1_000_000..1_100_000, 7..7, 8000..12_000];
    let before = remote.traffic().requests;
    let parts = objects.get_ranges("packs/ranges", &ranges).unwrap().unwrap();
    assert_eq!(remote.traffic().requests - before, 3);
    assert_eq!(parts.len(), ranges.len());
    for (range, part) in ranges.iter().zip(&parts) {
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        assert!(part[..] == bytes[range.clone()], "{range:?}");
    }
    for range in [(2 << 20) - 10..(2 << 20) + 1, 3 << 20..4 << 20] {
        let error = objects.get_range("packs/ranges", range).unwrap_err();
        assert!(matches!(&error, Error::Damaged { what, .. } if what.contains("2097152 bytes")), "{error}");
    }
    objects.delete("packs/ranges").unwrap();
}

pub fn large_objects_are_sent_in_parts(remote: &Remote) {
    let objects = remote.objects();
    for len in [1000, 16 << 20, (16 << 20) + 1, 33_333_333] {
        let bytes = noise(len);
        objects.put_from("packs/large", len as u64, &mut Cursor::new(&bytes), &mut || Ok(())).unwrap();
        assert!(objects.get("packs/large", len as u64).unwrap().unwrap() == bytes, "{len}");
        objects.delete("packs/large").unwrap();

        // A source that ends early leaves nothing.
        let error = objects
            .put_from("packs/large", len as u64, &mut Cursor::new(&bytes[1..]), &mut || Ok(()))
            .unwrap_err();
        assert!(matches!(error, Error::File { .. }), "{error}");
        assert_eq!(objects.head("packs/large").unwrap(), None);
    }
}

pub fn many_objects_are_listed_and_deleted(remote: &Remote, count: usize) {
    let objects = remote.objects();
    for number in 0..count {
        objects.put(&format!("places/{number}"), number.to_string()).unwrap();
    }
    objects.put("placesX", &b"not in this folder"[..]).unwrap();
    let mut listed = Vec::new();
    objects
        .list("places", |object| {
            let number: usize = object.path.strip_prefix("places/").unwrap().parse().unwrap();
            assert_eq!(object.len, number.to_string().len() as u64);
            listed.push(number);
            Ok(())
        })
        .unwrap();
    listed.sort_unstable();
    assert_eq!(listed, (0..count).collect::<Vec<_>>());

    let stop = objects.list("places", |_| Err(Error::invalid("enough"))).unwrap_err();
    assert_eq!(stop.to_string(), "enough");
    objects.delete_many((0..count + 1).map(|number| format!("places/{number}"))).unwrap();
    objects.delete("placesX").unwrap();
    objects.list("places", |object| panic!("{object:?} was not deleted")).unwrap();
    objects.list("no-such-folder", |object| panic!("{object:?} is not there")).unwrap();
}

pub fn names_move(remote: &Remote) {
    assert_eq!(remote.name("mover").unwrap(), None);
    assert_eq!(remote.move_name("mover", None, id(1)).unwrap().id, id(1));
    assert!(matches!(remote.move_name("mover", None, id(2)), Err(Error::Conflict { .. })));
    assert!(matches!(remote.move_name("mover", Some(id(2)), id(3)), Err(Error::Conflict { .. })));
    assert_eq!(remote.move_name("mover", Some(id(1)), id(2)).unwrap().id, id(2));
    // A name that already stands for the snapshot is not moved again, whatever is expected.
    assert_eq!(remote.move_name("mover", Some(id(1)), id(2)).unwrap().id, id(2));
    remote.move_name("über mover/1", None, id(4)).unwrap();
    let names: Vec<(String, Id)> =
        remote.names().unwrap().into_iter().map(|name| (name.name, name.id)).collect();
    assert!(names.contains(&("mover".to_owned(), id(2))), "{names:?}");
    assert!(names.contains(&("über mover/1".to_owned(), id(4))), "{names:?}");
    assert!(matches!(remote.name(""), Err(Error::Invalid { .. })));

    assert!(!remote.remove_name_of("mover", id(1)).unwrap());
    assert!(remote.remove_name_of("mover", id(2)).unwrap());
    assert!(!remote.remove_name_of("mover", id(2)).unwrap());
    assert_eq!(remote.name("mover").unwrap(), None);
    assert!(remote.names().unwrap().iter().all(|name| name.name != "mover"));
    assert!(matches!(remote.move_name("mover", Some(id(2)), id(3)), Err(Error::Conflict { .. })));
    assert_eq!(remote.move_name("mover", None, id(3)).unwrap().id, id(3));
}

/// Tests that if two processes move a name at the same time, each move is found later or was refused.
pub fn movers_at_once_lose_nothing(one: &Remote, other: &Remote) {
    for round in 0..5 {
        let name = format!("raced-{round}");
        one.move_name(&name, None, id(0)).unwrap();
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads = [(one, id(1)), (other, id(2))].map(|(remote, to)| {
                let name = &name;
                scope.spawn(move || (to, remote.move_name(name, Some(id(0)), to)))
            });
            threads.map(|thread| thread.join().unwrap()).into()
        });
        let found = one.name(&name).unwrap().unwrap();
        let mut moved = 0;
        for (to, result) in results {
            match result {
                Ok(_) => {
                    assert!(found.id == to || found.also.contains(&to), "{found:?} lacks {to}");
                    moved += 1;
                }
                Err(Error::Conflict { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert!(moved > 0, "no process moved {name}");

        // The next move makes the name unambiguous.
        one.move_name(&name, Some(found.id), id(3)).unwrap();
        let after = other.name(&name).unwrap().unwrap();
        assert_eq!((after.id, after.also), (id(3), vec![]));
    }
}

pub fn old_entries_of_names_are_pruned(remote: &Remote) {
    let mut last = None;
    for number in 0..6 {
        remote.move_name("pruned", last, id(number)).unwrap();
        last = Some(id(number));
    }
    let entries = || {
        let mut count = 0;
        remote
            .objects()
            .list("names/pruned", |_| {
                count += 1;
                Ok(())
            })
            .unwrap();
        count
    };
    let later = remote.now().unwrap() + Duration::from_secs(3600);
    remote.prune_names(3, Duration::from_secs(7200), later).unwrap();
    assert_eq!(entries(), 6);
    assert!(remote.prune_names(3, Duration::from_secs(60), later).unwrap() >= 3);
    assert_eq!(entries(), 3);
    assert_eq!(remote.name("pruned").unwrap().unwrap().id, id(5));
    remote.prune_names(0, Duration::from_secs(60), later).unwrap();
    assert_eq!(entries(), 1);
    assert_eq!(remote.move_name("pruned", last, id(6)).unwrap().id, id(6));
}

pub fn leases_are_seen_by_others(remote: &Remote, other: &Remote) {
    assert_eq!(other.leases().unwrap(), []);
    let mut lease = remote.lease().unwrap();
    let term = remote.lease_term;
    assert!(lease.remaining() > term / 2 && lease.remaining() < term);
    let found = other.leases().unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].ends.duration_since(found[0].renewed).unwrap(), term);
    let now = other.now().unwrap();
    // Times of many stores are whole seconds.
    assert!(now + Duration::from_secs(1) >= found[0].renewed && now < found[0].ends);

    std::thread::sleep(Duration::from_millis(1100));
    let before = (lease.remaining(), remote.traffic().requests);
    lease.keep().unwrap();
    assert_eq!(remote.traffic().requests, before.1, "nothing was due");
    lease.renew().unwrap();
    assert!(lease.remaining() > before.0);
    let renewed = other.leases().unwrap();
    assert!(renewed[0].renewed > found[0].renewed);
    drop(lease);
    assert_eq!(other.leases().unwrap(), []);
}

pub fn packs_are_marked(remote: &Remote) {
    assert_eq!(remote.garbage_since(id(1)).unwrap(), None);
    remote.mark_garbage(id(1)).unwrap();
    remote.mark_garbage(id(2)).unwrap();
    let since = remote.garbage_since(id(1)).unwrap().unwrap();
    let mut marked = Vec::new();
    remote
        .garbage(|id, time| {
            marked.push((id, time));
            Ok(())
        })
        .unwrap();
    assert_eq!(marked.len(), 2);
    let listed = marked.iter().find(|(marked, _)| *marked == id(1)).unwrap().1;
    // Some stores return milliseconds in a listing, and seconds for a single object.
    assert!(listed >= since && listed < since + Duration::from_secs(1), "{listed:?} {since:?}");
    remote.unmark_garbage(id(1)).unwrap();
    remote.unmark_garbage(id(1)).unwrap();
    remote.unmark_garbage(id(2)).unwrap();
    assert_eq!(remote.garbage_since(id(1)).unwrap(), None);
    remote.garbage(|id, _| panic!("{id} is marked")).unwrap();
}
