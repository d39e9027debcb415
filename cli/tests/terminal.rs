//! Differences on a terminal: progress bars, and attachments that are not text.
#![cfg(unix)]

mod kit;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::thread;

use kit::{BLOCK, Bench, noise};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// Opens both ends of a pseudo-terminal.
fn terminal() -> (OwnedFd, OwnedFd) {
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&controller).unwrap();
    unlockpt(&controller).unwrap();
    let name = ptsname(&controller, Vec::new()).unwrap();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
    let user = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).unwrap();
    tcsetwinsize(user.as_fd(), Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    (controller, user)
}

/// Reads from a terminal until all its writers have closed it.
fn read_all(controller: OwnedFd) -> String {
    let mut file = File::from(controller);
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    // When the last writer has closed it, Linux reports an error, and other systems report the end.
    while let Ok(read @ 1..) = file.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..read]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn bars_are_drawn_on_a_terminal_and_not_in_a_pipe() {
    let bench = Bench::with_repository();
    std::fs::write(bench.path("image"), noise(1, 4096 * BLOCK)).unwrap();

    let (controller, user) = terminal();
    let shown = thread::spawn(move || read_all(controller));
    let status = bench
        .command(&["save", "repo", "image"])
        .stdout(Stdio::null())
        .stderr(Stdio::from(user))
        .status()
        .unwrap();
    assert!(status.success());
    let shown = shown.join().unwrap();
    assert!(shown.contains("saving") && shown.contains("16.00 MiB"), "{shown:?}");

    let output = bench.run(&["save", "repo", "image"]);
    let messages = kit::stderr(&output);
    assert!(!messages.contains("saving") && !messages.contains('\x1b'), "{messages:?}");
    assert!(!String::from_utf8(output.stdout).unwrap().contains('\x1b'));
}

#[test]
fn an_attachment_does_not_control_the_terminal() {
    let bench = Bench::with_repository();
    std::fs::write(bench.path("image"), noise(1, BLOCK)).unwrap();
    std::fs::write(bench.path("state"), "\x1b[2J").unwrap();
    bench.save(&["image", "--name", "base", "--attach", "state=state", "--label", "color=\x1b[31mred"]);

    let (controller, user) = terminal();
    let shown = thread::spawn(move || read_all(controller));
    let mut command = bench.command(&["show", "repo", "base", "--attachment", "state"]);
    let output = command.stdout(Stdio::from(user)).output().unwrap();
    drop(command); // It keeps the terminal open.
    assert_eq!(output.status.code(), Some(1));
    assert!(kit::stderr(&output).contains("--output"), "{}", kit::stderr(&output));
    assert_eq!(shown.join().unwrap(), "");

    let text = bench.ok(&["show", "repo", "base"]);
    assert!(text.contains("color=\\u{1b}[31mred"), "{text:?}");
}

#[test]
fn a_terminal_is_not_saved() {
    let bench = Bench::with_repository();
    let (_controller, user) = terminal();
    let output = bench.command(&["save", "repo", "-"]).stdin(Stdio::from(user)).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(kit::stderr(&output).contains("it is a terminal"), "{}", kit::stderr(&output));
}
