//! Tests of remotes in memory and in a folder.
//!
//! They use odd stores, hostile contents, lost connections, and calls in a runtime.

#[path = "../../../tests/common/odd.rs"]
mod odd;

use std::io::{Cursor, Read};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use self::odd::{Odd, Odds};
use super::names::Entry;
use super::{Remote, RemoteOptions, kit};
use crate::error::{Error, Result};
use crate::id::Id;

fn remote(store: &Arc<impl ObjectStore>) -> Result<Remote> {
    Remote::with_store(store.clone(), "a/prefix", &RemoteOptions::new())
}

/// Writes an object directly, without the code under test.
fn write(store: &impl ObjectStore, path: &str, bytes: impl Into<Vec<u8>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(store.put(&Path::from(path), bytes.into().into())).unwrap();
}

/// Returns a store that contains a repository, and that begins to be odd.
fn odd(odds: Odds) -> (Arc<Odd>, Remote) {
    let inner = InMemory::new();
    write(&inner, "a/prefix/config", format!(r#"{{"format":1,"repository":"{}"}}"#, "ab".repeat(16)));
    let store = Odd::with(Arc::new(inner), odds);
    let options =
        RemoteOptions::new().timeout(Duration::from_millis(200)).retry_for(Duration::from_millis(100));
    let remote = Remote::with_store(store.clone(), "a/prefix", &options).unwrap();
    (store, remote)
}

fn id(text: &str) -> Id {
    Id::of(text.as_bytes())
}

#[test]
fn remotes_can_be_used_by_many_threads() {
    fn check<T: Send + Sync>() {}
    check::<Remote>();
    check::<super::lease::Lease>();
}

#[test]
fn a_store_in_memory_passes_the_kit() {
    let store = Arc::new(InMemory::new());
    kit::all(&|| remote(&store));
    kit::movers_at_once_lose_nothing(&remote(&store).unwrap(), &remote(&store).unwrap());
    assert!(remote(&store).unwrap().honours_conditions().unwrap());
}

#[test]
fn a_store_that_ignores_conditions_passes_the_kit() {
    let store = Odd::new(Odds::IgnoresConditions);
    kit::all(&|| remote(&store));
    kit::movers_at_once_lose_nothing(&remote(&store).unwrap(), &remote(&store).unwrap());
    assert!(!remote(&store).unwrap().honours_conditions().unwrap());
}

#[test]
fn a_folder_passes_the_kit() {
    let folder = tempfile::tempdir().unwrap();
    let url = url::Url::from_directory_path(folder.path()).unwrap().join("some/folder").unwrap().to_string();
    let options = RemoteOptions::new();
    assert!(matches!(Remote::open(&url, &options), Err(Error::NoRepository { .. })));
    Remote::create(&url, &options).unwrap();
    assert!(matches!(Remote::create(&url, &options), Err(Error::NotEmpty { .. })));
    kit::all(&|| Remote::open(&url, &options));
    let [one, other] = [(); 2].map(|()| Remote::open(&url, &options).unwrap());
    kit::movers_at_once_lose_nothing(&one, &other);
    assert!(Remote::open_or_create(&url, &options).unwrap().honours_conditions().unwrap());
    assert!(folder.path().join("some/folder/config").exists());
}

#[test]
fn a_store_without_conditional_requests_moves_names() {
    let (_, remote) = odd(Odds::LacksConditions);
    assert!(!remote.honours_conditions().unwrap());
    kit::names_move(&remote);
    let error = remote.objects().create("packs/x", &b""[..]).unwrap_err();
    assert!(matches!(error, Error::Remote { .. }), "{error}");
}

#[test]
fn the_last_of_two_entries_with_one_number_wins() {
    let store = Arc::new(InMemory::new());
    let remote = remote(&store).unwrap();
    for (entry, content) in [
        ("00000000000000000003", id("old")),
        ("00000000000000000004-00000000000000bb", id("last")),
        ("00000000000000000004-00000000000000aa", id("first")),
        ("00000000000000000004", id("plain")),
    ] {
        write(&*store, &format!("a/prefix/names/n/{entry}"), format!("{content}\n"));
    }
    let name = remote.name("n").unwrap().unwrap();
    let mut also = vec![id("first"), id("plain")];
    also.sort();
    assert_eq!((name.id, &name.also), (id("last"), &also));
    assert_eq!(remote.names().unwrap(), [name]);

    // A move to the snapshot that the name already stands for makes it unambiguous.
    let name = remote.move_name("n", Some(id("last")), id("last")).unwrap();
    assert_eq!((name.id, name.also), (id("last"), vec![]));
    // The three entries with the same number are kept or deleted together.
    assert_eq!(
        remote.prune_names(2, Duration::ZERO, remote.now().unwrap() + Duration::from_secs(9)).unwrap(),
        1
    );
}

/// Returns the entry with a number, and with the number of a mover as its end.
fn entry(number: u64, mover: u64) -> Entry {
    Entry { number, end: format!("{mover:016x}") }
}

/// Returns the entry with a number, where conditions are honoured.
fn plain(number: u64) -> Entry {
    Entry { number, end: String::new() }
}

/// Three movers, and a store that ignores conditions. The first one has moved the name. The second one read it before
/// and wrote an entry with the same number. The third one read it between the two, and hid the entry of the second one,
/// which was told that it had moved the name.
#[test]
fn a_mover_does_not_hide_an_entry_that_it_has_not_seen() {
    let store = Odd::new(Odds::IgnoresConditions);
    let remote = remote(&store).unwrap();
    let write_entry = |number: u64, mover: u64, text: &str| {
        write(&*store.inner, &format!("a/prefix/names/n/{number:020}-{mover:016x}"), id(text).to_string());
    };
    write_entry(1, 0, "base");
    write_entry(2, 1, "first");
    let seen_by_third = [entry(2, 1)];
    remote.append("n", &[entry(1, 0)], id("second")).unwrap();
    let third = remote.append("n", &seen_by_third, id("third"));
    assert!(matches!(third, Err(Error::Conflict { .. })), "{third:?}");
    let name = remote.name("n").unwrap().unwrap();
    let mut found = vec![name.id, name.also[0]];
    found.sort();
    let mut expected = vec![id("first"), id("second")];
    expected.sort();
    assert_eq!((found, name.also.len()), (expected, 1));
    // A mover that has seen both may move the name.
    remote.move_name("n", Some(name.id), id("third")).unwrap();
    let name = remote.name("n").unwrap().unwrap();
    assert_eq!((name.id, name.also), (id("third"), vec![]));
}

/// A mover decided on a number, and was stopped before it wrote its entry. Others moved the name meanwhile.
#[test]
fn a_move_that_comes_too_late_is_refused() {
    let store = Odd::new(Odds::IgnoresConditions);
    let ignored = remote(&store).unwrap();
    for (number, text) in [(1, "base"), (2, "second"), (3, "third")] {
        write(&*store.inner, &format!("a/prefix/names/n/{number:020}-{number:016x}"), id(text).to_string());
    }
    let late = ignored.append("n", &[entry(1, 1)], id("late"));
    assert!(matches!(late, Err(Error::Conflict { .. })), "{late:?}");
    let name = ignored.name("n").unwrap().unwrap();
    assert_eq!((name.id, name.also), (id("third"), vec![]));

    // If conditions are honoured, there is an entry with the number 2, unless it was pruned.
    let store = Arc::new(InMemory::new());
    let honoured = remote(&store).unwrap();
    write(&*store, &format!("a/prefix/names/n/{:020}", 3), id("third").to_string());
    let late = honoured.append("n", &[plain(1)], id("late"));
    assert!(matches!(late, Err(Error::Conflict { .. })), "{late:?}");
    assert_eq!(honoured.objects().head(&format!("names/n/{:020}", 2)).unwrap(), None);
    // A move that another one followed at once was made.
    honoured.append("n", &[plain(3)], id("fourth")).unwrap();
    honoured.objects().delete(&format!("names/n/{:020}", 4)).unwrap();
    write(&*store, &format!("a/prefix/names/n/{:020}", 5), id("fifth").to_string());
    honoured.append("n", &[plain(3)], id("fourth")).unwrap();
    assert_eq!(honoured.name("n").unwrap().unwrap().id, id("fifth"));
}

#[test]
fn each_request_may_fail_once() {
    let store = Odd::new(Odds::FailsOnce(Mutex::default()));
    let error = remote(&store).unwrap_err();
    assert!(matches!(&error, Error::Remote { object, .. } if object == "odd/a/prefix/config"), "{error}");
    assert!(error.to_string().ends_with("check the connection and the settings, then try again"), "{error}");
    let remote = (0..9).find_map(|_| remote(&store).ok()).unwrap();
    let objects = remote.objects();

    let error = objects.put("packs/x", &b"x"[..]).unwrap_err();
    assert!(error.to_string().starts_with("cannot write odd/a/prefix/packs/x: "), "{error}");
    objects.put("packs/x", &b"x"[..]).unwrap();
    for expected in [true, false] {
        assert_eq!(objects.get("packs/x", 1).is_err(), expected);
        assert_eq!(objects.head("packs/x").is_err(), expected);
        let mut bytes = std::io::repeat(1).take(17 << 20);
        let sent = objects.put_from("packs/large", 17 << 20, &mut bytes, &mut || Ok(()));
        assert_eq!(sent.is_err(), expected);
    }
    assert_eq!(objects.head("packs/large").err().map(|_| ()), Some(()));
    assert_eq!(objects.head("packs/large").unwrap().unwrap().len, 17 << 20);
}

/// If a request of a move fails, before or after its effect, the same call succeeds the next time.
#[test]
fn a_move_can_be_repeated_after_any_failure() {
    for after in [false, true] {
        let mut number = 1;
        loop {
            let (store, remote) = odd(Odds::Fails { number, after });
            let requests = store.requests();
            let first = remote.move_name("n", None, id("new"));
            let made = store.requests() - requests;
            assert!(matches!(first, Ok(_) | Err(Error::Remote { .. })), "{number} {after}: {first:?}");
            assert_eq!(first.is_ok(), number > made, "{number} {after}");
            if first.is_ok() {
                break;
            }
            let again = remote.move_name("n", None, id("new")).unwrap();
            assert_eq!((again.id, again.also), (id("new"), vec![]));
            number += 1;
        }
        assert!(number > 5, "a move has some requests");
    }
}

#[test]
fn a_slow_store_fails_within_the_time_limit() {
    let inner = InMemory::new();
    let store = Odd::with(Arc::new(inner), Odds::Slow(Duration::from_secs(600)));
    let options =
        RemoteOptions::new().timeout(Duration::from_millis(200)).retry_for(Duration::from_millis(100));
    let began = Instant::now();
    let error = Remote::with_store(store, "", &options).unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(60));
    assert!(error.to_string().contains("no answer within 300ms"), "{error}");
}

#[test]
fn a_lost_connection_is_an_error_within_the_time_limit() {
    // The first server accepts connections and never answers. There is no server at the second port.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let ports = [silent.local_addr().unwrap().port(), closed.local_addr().unwrap().port()];
    drop(closed);
    for port in ports {
        let options = RemoteOptions::new()
            .set("endpoint", format!("http://127.0.0.1:{port}"))
            .set("region", "here")
            .set("access_key_id", "key")
            .set("secret_access_key", "secret")
            .set("allow_http", "true")
            .timeout(Duration::from_millis(500))
            .retries(2)
            .retry_for(Duration::from_secs(2));
        let began = Instant::now();
        let error = Remote::open("s3://bucket/prefix", &options).unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(60));
        assert!(
            matches!(&error, Error::Remote { object, .. } if object == "s3://bucket/prefix/config"),
            "{error}"
        );
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[test]
fn a_panic_in_a_store_is_an_error() {
    let store = Odd::new(Odds::Panics);
    let error = remote(&store).unwrap_err();
    assert!(error.to_string().contains("the request was abandoned"), "{error}");
}

#[test]
fn objects_are_no_longer_than_allowed() {
    for claimed in [0, 10, 1000, u64::MAX] {
        let store = Odd::new(Odds::Endless { claimed });
        write(&*store.inner, "a/prefix/config", "{}");
        let error = remote(&store).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
    }
    let (_, remote) = odd(Odds::Cut(100));
    let objects = remote.objects();
    objects.put("packs/x", vec![1; 101]).unwrap();
    let error = objects.get("packs/x", 1000).unwrap_err();
    assert!(error.to_string().contains("ended after 100 of 101 bytes"), "{error}");
    let error = objects.get_range("packs/x", 0..101).unwrap_err();
    assert!(error.to_string().contains("ended after 100 of 101 bytes"), "{error}");
}

#[test]
fn configurations_are_checked() {
    let digits = "0".repeat(32);
    let long = vec![b' '; 65 << 10];
    for (content, expected) in [
        ("".to_owned(), "damaged"),
        ("{}".to_owned(), "damaged"),
        ("\u{0}".to_owned(), "damaged"),
        (format!(r#"{{"format":0,"repository":"{digits}"}}"#), "damaged"),
        (format!(r#"{{"format":1,"repository":"{digits}0"}}"#), "damaged"),
        (r#"{"format":1,"repository":"über"}"#.to_owned(), "damaged"),
        (r#"{"format":2,"new":"field"}"#.to_owned(), "newer"),
        (String::from_utf8(long).unwrap(), "damaged"),
        (format!(r#"{{"format":1,"repository":"{digits}"}}"#), "opened"),
    ] {
        let store = Arc::new(InMemory::new());
        write(&*store, "a/prefix/config", content.clone());
        let found = match remote(&store) {
            Ok(_) => "opened",
            Err(Error::Damaged { object, .. }) if object.ends_with("/a/prefix/config") => "damaged",
            Err(Error::Newer { found: 2, known: 1, .. }) => "newer",
            Err(error) => panic!("{content}: {error}"),
        };
        assert_eq!(found, expected, "{content}");
    }
}

#[test]
fn hostile_names_leases_and_marks_are_errors_that_name_the_object() {
    for (path, content) in [
        ("names/n/00000000000000000001", "no id".to_owned()),
        ("names/n/00000000000000000001", "0".repeat(129)),
        ("names/n/00000000000000000001", "\u{0}".repeat(64)),
        ("names/n/1", id("x").to_string()),
        ("names/n/99999999999999999999", id("x").to_string()),
        ("names/n/00000000000000000001/more", id("x").to_string()),
        ("names/n", id("x").to_string()),
        ("names/=zz/00000000000000000001", id("x").to_string()),
        ("leases/x", "{}".to_owned()),
        ("leases/x", format!(r#"{{"term_seconds":{}}}"#, u64::MAX)),
        ("leases/x", format!(r#"{{"term_seconds":1, "x":"{}"}}"#, "x".repeat(1024))),
        ("garbage/x", String::new()),
        ("garbage/00", String::new()),
    ] {
        let store = Arc::new(InMemory::new());
        let remote = remote(&store).unwrap();
        write(&*store, &format!("a/prefix/{path}"), content);
        let results = [remote.names().map(drop), remote.leases().map(drop), remote.garbage(|_, _| Ok(()))];
        let errors: Vec<Error> = results.into_iter().filter_map(Result::err).collect();
        assert_eq!(errors.len(), 1, "{path}: {errors:?}");
        assert!(
            matches!(&errors[0], Error::Damaged { object, .. } if object.ends_with(path)),
            "{}",
            errors[0]
        );
    }
    let store = Arc::new(InMemory::new());
    let remote = remote(&store).unwrap();
    write(&*store, &format!("a/prefix/names/n/{}", u64::MAX), id("x").to_string());
    let error = remote.move_name("n", Some(id("x")), id("y")).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
}

#[test]
fn a_lease_that_has_ended_cannot_be_renewed() {
    let store = Arc::new(InMemory::new());
    let second = Duration::from_secs(1);
    let options = RemoteOptions::new().lease_term(Duration::ZERO).timeout(second).retry_for(second);
    let mut remote = Remote::with_store(store, "", &options).unwrap();
    assert_eq!(remote.lease_term, Duration::from_secs(10), "the shortest term");
    remote.lease_term = Duration::from_millis(2300);
    let mut lease = remote.lease().unwrap();
    lease.renew().unwrap();
    std::thread::sleep(Duration::from_millis(400));
    let error = lease.keep().unwrap_err();
    assert!(matches!(error, Error::Expired { .. }), "{error}");
    assert_eq!(remote.leases().unwrap().len(), 1);
    remote.lease_term = Duration::from_secs(1);
    assert!(matches!(remote.lease(), Err(Error::Expired { .. })));
    drop(lease);
    assert_eq!(remote.leases().unwrap(), []);
}

/// A collector deletes while its announcement is valid. A request that takes longer would go on after the end.
#[test]
fn a_request_takes_at_most_half_of_the_term_of_a_lease() {
    let options = |request: u64, term: u64| {
        RemoteOptions::new()
            .timeout(Duration::from_secs(request - 5))
            .retry_for(Duration::from_secs(5))
            .lease_term(Duration::from_secs(term))
    };
    let open = |options: RemoteOptions| {
        let opened = Remote::with_store(Arc::new(InMemory::new()), "", &options);
        assert_eq!(opened.is_ok(), Remote::create("memory:///", &options).is_ok());
        opened
    };
    open(options(30, 60)).unwrap();
    let error = open(options(31, 60)).unwrap_err();
    assert!(matches!(&error, Error::Invalid { what } if what.contains("31s")), "{error}");
}

#[test]
fn reading_needs_no_right_to_write() {
    let inner = InMemory::new();
    write(&inner, "a/prefix/config", format!(r#"{{"format":1,"repository":"{}"}}"#, "ab".repeat(16)));
    write(&inner, "a/prefix/names/n/00000000000000000001", id("x").to_string());
    let store = Odd::with(Arc::new(inner), Odds::FailsOnce(Mutex::default()));
    let remote = (0..2).find_map(|_| remote(&store).ok()).unwrap();
    let name = (0..2).find_map(|_| remote.name("n").ok()).unwrap();
    assert_eq!(name.unwrap().id, id("x"));
    assert_eq!(remote.traffic().sent, 0);
    let error = remote.honours_conditions().unwrap_err();
    assert!(error.to_string().contains("/probe/"), "{error}");
}

#[test]
fn callers_may_be_threads_of_a_runtime() {
    let store = Arc::new(InMemory::new());
    for runtime in [
        tokio::runtime::Builder::new_current_thread().build().unwrap(),
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap(),
    ] {
        let store = store.clone();
        let task = async move {
            let remote = remote(&store).unwrap();
            remote.objects().put("packs/x", &b"x"[..]).unwrap();
            let bytes = vec![1; 17 << 20];
            remote
                .objects()
                .put_from("packs/y", bytes.len() as u64, &mut Cursor::new(&bytes), &mut || Ok(()))
                .unwrap();
            let _lease = remote.lease().unwrap();
            remote.objects().get("packs/x", 1).unwrap()
        };
        let handle = runtime.spawn(task);
        assert_eq!(runtime.block_on(handle).unwrap().as_deref(), Some(&b"x"[..]));
    }
}

#[test]
fn urls_and_settings_are_checked() {
    let options = RemoteOptions::new();
    for url in ["", "bucket", "s3://", "ftp://host/path", "http://host/path", "file://host/path"] {
        let error = Remote::open(url, &options).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{url}: {error}");
    }
    let error = Remote::open("s3://user:secret@bucket/x", &options).unwrap_err();
    assert!(matches!(&error, Error::Invalid { what } if !what.contains("secret")), "{error}");
    for url in ["s3://bucket/x", "memory:///", "file:///x"] {
        let error = Remote::open(url, &RemoteOptions::new().set("sekret_key", "hidden")).unwrap_err();
        assert!(matches!(&error, Error::Invalid { what } if what.contains("sekret_key")), "{url}: {error}");
        assert!(!error.to_string().contains("hidden"), "{error}");
    }
    let error = Remote::open("s3://bucket/x", &RemoteOptions::new().set("allow_http", "maybe")).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    assert!(!format!("{:?}", RemoteOptions::new().set("key", "hidden")).contains("hidden"));
}
