//! The tests of remotes over the S3 protocol.

use std::time::{Duration, Instant};

use memsnap_store::{Error, Remote, kit};
use memsnap_store_s3::Server;

#[test]
fn the_server_passes_the_kit() {
    let server = Server::start();
    let (url, options) = (server.url(), server.options());
    assert!(matches!(Remote::open(&url, &options), Err(Error::NoRepository { .. })));
    Remote::create(&url, &options).unwrap();
    kit::all(&|| Remote::open(&url, &options));
    // The server checks a condition and writes in two steps, so moves of a name at the same time are not tested here.
    assert!(Remote::open(&url, &options).unwrap().honours_conditions().unwrap());
}

#[test]
fn repositories_in_one_bucket_do_not_see_each_other() {
    let server = Server::start();
    let [one, other] =
        ["one", "one/other"].map(|prefix| Remote::create(&server.url_of(prefix), &server.options()).unwrap());
    kit::names_move(&one);
    assert_eq!(one.names().unwrap().len(), 2);
    assert_eq!(other.names().unwrap(), []);
    kit::names_move(&other);
}

#[test]
fn wrong_credentials_are_an_error() {
    let server = Server::start();
    let wrong = server.options().set("secret_access_key", "wrong").retries(0);
    let error = Remote::open(&server.url(), &wrong).unwrap_err();
    assert!(matches!(error, Error::Remote { .. }), "{error}");
    assert!(error.to_string().contains("s3://bucket/repository/config"), "{error}");
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
}

#[test]
fn a_server_that_stops_is_an_error_within_the_time_limit() {
    let server = Server::start();
    let options =
        server.options().timeout(Duration::from_secs(5)).retries(2).retry_for(Duration::from_secs(5));
    let remote = Remote::create(&server.url(), &options).unwrap();
    kit::names_move(&remote);
    drop(server);
    let began = Instant::now();
    let error = remote.names().unwrap_err();
    assert!(matches!(error, Error::Remote { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(60));
}
