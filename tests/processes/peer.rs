//! A second process, and a socket to it that carries descriptors.

use std::env;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use super::common::alone::{command, passed};

/// The environment variable that names the test whose peer this process is.
pub(crate) const ROLE: &str = "MEMSNAP_TEST_ROLE";

/// A second process that runs the same test, with a socket between the two.
pub(crate) struct Peer {
    child: Option<Child>,
    pub(crate) socket: UnixStream,
}

/// Returns the socket to the process that started this one, if this one was started as the peer of `test`.
pub(crate) fn to_starter(test: &str) -> Option<UnixStream> {
    env::var_os(ROLE).is_some_and(|role| role == test).then(|| {
        let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned().unwrap());
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket
    })
}

impl Peer {
    pub(crate) fn start(test: &str) -> Self {
        let (socket, theirs) = UnixStream::pair().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let child = command(test)
            .env(ROLE, test)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child: Some(child), socket }
    }

    /// Waits until the process ends, and fails if it failed.
    pub(crate) fn join(mut self) {
        let output = self.child.take().unwrap().wait_with_output().unwrap();
        assert!(
            passed(&output),
            "the other process: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
            let mut error = String::new();
            let _ = child.stderr.map(|mut stderr| stderr.read_to_string(&mut error));
            eprintln!("the other process said: {error}");
        }
    }
}

pub(crate) fn send(socket: &UnixStream, fd: impl AsFd) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    assert!(rights.push(SendAncillaryMessage::ScmRights(&fds)));
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(b"!")], &mut rights, SendFlags::empty());
    assert_eq!(sent.unwrap(), 1);
}

pub(crate) fn receive(socket: &UnixStream) -> OwnedFd {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::empty();
    let got = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut rights, flags).unwrap();
    assert_eq!((got.bytes, byte), (1, *b"!"), "the other process has ended");
    let fd = rights.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fd.expect("no descriptor came with the message")
}

pub(crate) fn signal(mut socket: &UnixStream) {
    socket.write_all(b".").unwrap();
}

pub(crate) fn wait(mut socket: &UnixStream) {
    socket.read_exact(&mut [0]).expect("the other process has not ended");
}
