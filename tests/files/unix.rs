//! Files without a length: pipes, sockets and devices.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;

use memsnap::Snapshot;

use super::assert_holds;
use super::common::unix::pipe_of;
use super::common::{message, noise};

#[test]
fn what_has_no_size_is_read_to_its_end() {
    for len in [0, 1, 1000, 300_000] {
        let bytes = noise(len, 4);
        assert_holds("pipe", &Snapshot::from_file(pipe_of(bytes.clone())).unwrap(), &bytes);

        let (mut near, far) = UnixStream::pair().unwrap();
        let sent = bytes.clone();
        let sender = thread::spawn(move || near.write_all(&sent).unwrap());
        let snapshot = Snapshot::from_file(File::from(OwnedFd::from(far))).unwrap();
        sender.join().unwrap();
        assert_holds("socket", &snapshot, &bytes);
    }
}

/// A snapshot of `/dev/zero` was read until memory was exhausted.
#[test]
fn a_device_that_may_never_end_is_refused_and_the_error_says_what_to_do() {
    // Reading the first device would do no harm, but it is refused too.
    for path in ["/dev/null", "/dev/tty", "/dev/ptmx", "/dev/urandom", "/dev/zero"] {
        // Some processes have no terminal.
        let Ok(device) = File::open(path) else { continue };
        let error = Snapshot::from_file(device).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{path}: {error}");
        let message = message(&error);
        assert!(message.contains("from_reader(file.take("), "{path}: {message}");
    }
    let zeroes = File::open("/dev/zero").unwrap();
    assert_holds("limited", &Snapshot::from_reader(zeroes.take(10_000)).unwrap(), &[0; 10_000]);
}
