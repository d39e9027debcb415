//! Saving and extracting images: bytes, holes, diffs, pipes, attachments.

mod kit;

use std::fs::File;
use std::io::Write;
use std::process::Stdio;

use kit::{BLOCK, BLOCK_LEN, Bench, noise};
use serde_json::json;

const LEN: u64 = 256 * BLOCK;

#[test]
fn a_sparse_file_comes_back_with_its_bytes_and_holes() {
    let bench = Bench::with_repository();
    // The length is not a multiple of a block. One of the written blocks is zero.
    let len = LEN + 777;
    bench.sparse("image", len, &[(0, &noise(1, 3 * BLOCK)), (LEN / 2, &noise(2, BLOCK)), (LEN, &[7; 777])]);
    bench.save(&["image", "--name", "base"]);

    let printed = bench.ok(&["extract", "repo", "base", "out"]);
    assert!(printed.starts_with("out: "), "{printed}");
    assert!(bench.read("out") == bench.read("image"));
    #[cfg(unix)]
    {
        let used = kit::allocated(&bench.path("out"));
        // Some file systems allocate 64 KiB at a time, none a megabyte for 5 blocks.
        assert!(used < len / 2, "{used} of {len} bytes are on the disk");
    }
    let extracted = bench.json(&["extract", "repo", "base", "out"]);
    assert_eq!(extracted["len"], json!(len));
    assert_eq!(extracted["written"], json!(5 * BLOCK));
    assert_eq!(extracted["shared"], json!(false));
    assert!(bench.read("out") == bench.read("image"), "a file is replaced");
}

#[test]
fn a_file_is_shared_where_the_file_system_can() {
    let bench = Bench::with_repository();
    std::fs::write(bench.path("base"), noise(1, LEN)).unwrap();
    bench.save(&["base", "--name", "base"]);
    let output = bench.run(&["extract", "repo", "base", "out", "--share", "--json"]);
    assert!(output.status.success(), "{}", kit::stderr(&output));
    assert!(bench.read("out") == noise(1, LEN));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let (shared, said_no) =
        (document["shared"] == json!(true), kit::stderr(&output).contains("shares nothing"));
    assert_ne!(shared, said_no, "{document}: {}", kit::stderr(&output));
    // Nothing is kept where it is of no use.
    let cached = bench.files("cache").len();
    assert_eq!(cached, if shared { 2 } else { 0 }, "{:?}", bench.files("cache"));
}

/// As with Firecracker: a base, and then files whose holes are unchanged memory.
#[test]
fn a_diff_takes_its_holes_from_the_parent() {
    if cfg!(windows) {
        println!("skipped: a_diff_takes_its_holes_from_the_parent: holes of files are not found on Windows");
        return;
    }
    let bench = Bench::with_repository();
    let base = noise(1, LEN);
    std::fs::write(bench.path("base"), &base).unwrap();
    let base_id = bench.save(&["base", "--name", "base"]);

    // Holes of some file systems are 64 KiB at least, so the pages are far apart and long.
    let step = 16 * BLOCK_LEN;
    let mut expected = base;
    let (first, second) = (noise(2, step as u64), vec![0; step]);
    bench.sparse("diff1", LEN, &[(step as u64, &first), (8 * step as u64, &second)]);
    expected[step..2 * step].copy_from_slice(&first);
    expected[8 * step..9 * step].fill(0);
    let one = bench.json(&["save", "repo", "diff1", "--parent", "base", "--diff", "--name", "one"]);
    assert_eq!(one["blocks"], json!(16), "zeroes are not stored");
    bench.ok(&["extract", "repo", "one", "out1"]);
    assert!(bench.read("out1") == expected);

    let third = noise(3, step as u64);
    bench.sparse("diff2", LEN, &[(4 * step as u64, &third)]);
    expected[4 * step..5 * step].copy_from_slice(&third);
    bench.save(&["diff2", "--parent", "one", "--diff", "--name", "two"]);
    bench.ok(&["extract", "repo", "two", "out2"]);
    assert!(bench.read("out2") == expected);

    let two = bench.json(&["show", "repo", "two"]);
    assert_eq!(two["parent"], one["id"]);
    assert_eq!(two["blocks"], json!(16));
    let diff = bench.json(&["diff", "repo", "base", "two"]);
    let range = |at: usize| json!({"start": at * step, "end": (at + 1) * step});
    assert_eq!(diff["ranges"], json!([range(1), range(4), range(8)]));
    assert_eq!(diff["bytes"], json!(3 * step));
    assert_eq!(diff["a"], json!(base_id));
    let printed = bench.ok(&["diff", "repo", "base", "two"]);
    assert!(printed.ends_with("196608 bytes (192.0 KiB) differ in 3 ranges\n"), "{printed}");
}

/// A copy of a diff without its holes was saved, and its zeroes replaced the bytes of the parent.
#[test]
fn a_diff_without_holes_is_saved_only_on_demand() {
    let bench = Bench::with_repository();
    std::fs::write(bench.path("base"), noise(1, LEN)).unwrap();
    bench.save(&["base", "--name", "base"]);
    let mut copy = vec![0; noise(1, LEN).len()];
    copy[..BLOCK_LEN].fill(7);
    std::fs::write(bench.path("copy"), &copy).unwrap();
    let message = bench.refused(&["save", "repo", "copy", "--parent", "base", "--diff"]);
    assert!(message.contains("no hole") && message.contains("--allow-no-holes"), "{message}");
    bench.save(&["copy", "--parent", "base", "--diff", "--allow-no-holes", "--name", "copy"]);
    bench.ok(&["extract", "repo", "copy", "out"]);
    assert!(bench.read("out") == copy);
}

#[test]
fn with_a_parent_and_without_diff_holes_are_zeroes() {
    let bench = Bench::with_repository();
    std::fs::write(bench.path("base"), noise(1, LEN)).unwrap();
    bench.save(&["base", "--name", "base"]);
    let mut child = noise(1, LEN);
    child[..BLOCK_LEN].fill(0);
    child[BLOCK_LEN..2 * BLOCK_LEN].fill(9);
    bench.sparse("child", LEN, &[(BLOCK, &child[BLOCK_LEN..])]);
    let saved = bench.json(&["save", "repo", "child", "--parent", "base", "--name", "child"]);
    assert_eq!(saved["blocks"], json!(1), "only what differs is stored");
    bench.ok(&["extract", "repo", "child", "out"]);
    assert!(bench.read("out") == child);
}

#[test]
fn a_pipe_and_a_redirected_file_are_saved() {
    let bench = Bench::with_repository();
    let mut image = noise(1, LEN);
    image[BLOCK_LEN..9 * BLOCK_LEN].fill(0);
    image.truncate(image.len() - 100);
    std::fs::write(bench.path("image"), &image).unwrap();

    let mut child = bench
        .command(&["save", "repo", "-", "--name", "piped"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&image).unwrap();
    assert!(child.wait().unwrap().success());
    let file = File::open(bench.path("image")).unwrap();
    let status = bench
        .command(&["save", "repo", "-", "--name", "file"])
        .stdin(file)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());

    for name in ["piped", "file"] {
        bench.ok(&["extract", "repo", name, "out"]);
        assert!(bench.read("out") == image, "{name}");
    }
    let output = bench.run(&["extract", "repo", "piped", "-"]);
    assert!(output.status.success() && output.stdout == image);
}

/// A redirected file that was read in part is saved from there on, as any other reader would see it.
#[cfg(unix)]
#[test]
fn a_file_that_was_read_in_part_is_saved_from_its_offset() {
    use std::io::{Seek, SeekFrom};

    let bench = Bench::with_repository();
    let image = noise(1, 4 * BLOCK);
    std::fs::write(bench.path("image"), &image).unwrap();
    let mut file = File::open(bench.path("image")).unwrap();
    file.seek(SeekFrom::Start(100)).unwrap();
    let status = bench.command(&["save", "repo", "-", "--name", "rest"]).stdin(file).status().unwrap();
    assert!(status.success());
    let output = bench.run(&["extract", "repo", "rest", "-"]);
    assert!(output.stdout == image[100..]);
}

#[cfg(unix)]
#[test]
fn a_named_pipe_is_saved() {
    let bench = Bench::with_repository();
    let image = noise(1, LEN);
    let path = bench.path("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let mut child = bench.command(&["save", "repo", "pipe", "--name", "piped"]).spawn().unwrap();
    File::options().write(true).open(&path).unwrap().write_all(&image).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(bench.run(&["extract", "repo", "piped", "-"]).stdout == image);
}

#[test]
fn attachments_come_back() {
    let bench = Bench::with_repository();
    std::fs::write(bench.path("image"), noise(1, BLOCK)).unwrap();
    let state = noise(2, 10_000);
    std::fs::write(bench.path("state"), &state).unwrap();
    std::fs::write(bench.path("notes"), "a=b\n").unwrap();
    bench.save(&["image", "--name", "base", "--attach", "vmstate=state", "--attach", "notes=notes"]);

    let output = bench.run(&["show", "repo", "base", "--attachment", "vmstate"]);
    assert!(output.status.success() && output.stdout == state);
    assert_eq!(bench.ok(&["show", "repo", "base", "--attachment", "vmstate", "--output", "out"]), "");
    assert!(bench.read("out") == state);
    let message = bench.refused(&["show", "repo", "base", "--attachment", "regs"]);
    assert!(message.contains("no attachment regs; its attachments: notes, vmstate"), "{message}");
}

#[cfg(unix)]
#[test]
fn a_link_is_followed_and_stays() {
    let bench = Bench::with_repository();
    let image = noise(1, 2 * BLOCK);
    std::fs::write(bench.path("image"), &image).unwrap();
    bench.save(&["image", "--name", "base"]);
    std::fs::write(bench.path("old"), "old").unwrap();
    std::os::unix::fs::symlink("old", bench.path("link")).unwrap();
    bench.ok(&["extract", "repo", "base", "link"]);
    assert!(bench.path("link").is_symlink());
    assert!(bench.read("old") == image);
}
