//! Files that have no size.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;

use memsnap::Snapshot;

use super::assert_holds;
use super::common::noise;
use super::common::unix::pipe_of;

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
