//! Refused commands: missing repositories, wrong references, files that cannot be saved.
//!
//! Each message names the object.

mod kit;

use std::process::Stdio;
use std::time::{Duration, Instant};

use kit::{BLOCK, Bench, noise, stderr};

#[test]
fn a_missing_repository_is_named() {
    let bench = Bench::new();
    std::fs::write(bench.path("file"), "bytes").unwrap();
    for args in [
        &["save", "repo", "file"][..],
        &["list", "repo"],
        &["show", "repo", "base"],
        &["diff", "repo", "a", "b"],
        &["extract", "repo", "base", "out"],
        &["name", "repo", "base", "n"],
        &["remove", "repo", "base"],
        &["verify", "repo"],
        &["repair", "repo"],
        &["gc", "repo"],
        &["push", "repo", "file:///no", "base"],
        &["pull", "repo", "file:///no", "base"],
    ] {
        let message = bench.refused(args);
        assert!(message.contains("repo is not a repository"), "{args:?}: {message}");
    }
    assert!(!bench.path("repo").exists(), "a refused command made the folder");
}

#[test]
fn a_folder_that_is_not_empty_stays_as_it_is() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("repo")).unwrap();
    std::fs::write(bench.path("repo/file"), "mine").unwrap();
    let message = bench.refused(&["init", "repo"]);
    assert!(message.contains("repo") && message.contains("not empty"), "{message}");
    assert_eq!(bench.read("repo/file"), b"mine");
    assert_eq!(bench.files("").len(), 1);
}

#[test]
fn a_repository_is_not_made_twice() {
    let bench = Bench::with_repository();
    assert!(bench.refused(&["init", "repo"]).contains("not empty"));
}

#[test]
fn wrong_references_are_named() {
    let bench = Bench::with_repository();
    std::fs::write(bench.path("file"), "bytes").unwrap();
    bench.save(&["file", "--name", "base"]);
    for args in [
        &["show", "repo", "bass"][..],
        &["diff", "repo", "base", "bass"],
        &["extract", "repo", "bass", "out"],
        &["name", "repo", "bass", "n"],
        &["name", "repo", "--delete", "bass"],
        &["remove", "repo", "bass"],
        &["save", "repo", "file", "--parent", "bass"],
    ] {
        let message = bench.refused(args);
        assert!(message.contains("bass"), "{args:?}: {message}");
    }
    assert!(!bench.path("out").exists());
}

/// Among a few hundred snapshots, two have ids with the same first four digits.
///
/// This makes two such snapshots.
#[test]
fn an_ambiguous_id_is_refused_with_its_candidates() {
    let bench = Bench::with_repository();
    let mut ids: Vec<String> = Vec::new();
    let (digits, first, second) = loop {
        assert!(ids.len() < 2_000, "no two of {} ids begin with the same 4 digits", ids.len());
        std::fs::write(bench.path("file"), ids.len().to_string()).unwrap();
        let id = bench.save(&["file"]);
        if let Some(other) = ids.iter().find(|other| other[..4] == id[..4]) {
            break (id[..4].to_owned(), other.clone(), id);
        }
        ids.push(id);
    };
    let message = bench.refused(&["show", "repo", &digits]);
    assert!(message.contains("ambiguous"), "{message}");
    assert!(message.contains(&first[..12]) && message.contains(&second[..12]), "{message}");
    assert_eq!(bench.json(&["show", "repo", &first[..20]])["id"], first);
}

#[test]
fn files_that_cannot_be_saved_are_named() {
    let bench = Bench::with_repository();
    assert!(bench.refused(&["save", "repo", "missing"]).contains("cannot open missing"));
    assert!(bench.refused(&["save", "repo", "repo"]).contains("repo: it is a folder"));
    std::fs::write(bench.path("file"), "bytes").unwrap();
    let message = bench.refused(&["save", "repo", "file", "--attach", "regs=missing"]);
    assert!(message.contains("attachment missing"), "{message}");
    let message = bench.refused(&["save", "repo", "file", "--name", "a/b"]);
    assert!(message.contains("a/b"), "{message}");
    assert_eq!(bench.json(&["list", "repo"])["snapshots"], serde_json::json!([]));
}

#[cfg(unix)]
#[test]
fn devices_are_refused_where_they_make_no_sense() {
    let bench = Bench::with_repository();
    let message = bench.refused(&["save", "repo", "/dev/null"]);
    assert!(message.contains("/dev/null: it is not a regular file, a block device or a pipe"), "{message}");
    std::fs::write(bench.path("file"), "bytes").unwrap();
    bench.save(&["file", "--name", "base"]);
    let message = bench.refused(&["extract", "repo", "base", "/dev/null"]);
    assert!(message.contains("/dev/null: it is a device or a pipe"), "{message}");
}

#[test]
fn a_pipe_has_no_holes() {
    let bench = Bench::with_repository();
    bench.sparse("base", 4 * BLOCK, &[(0, &noise(1, BLOCK))]);
    bench.save(&["base", "--name", "base"]);
    let output = bench
        .command(&["save", "repo", "-", "--parent", "base", "--diff"])
        .stdin(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("only a regular file has holes"), "{}", stderr(&output));
}

/// All of the pipe was copied to a temporary file before the name was refused.
#[test]
fn a_wrong_name_is_refused_before_a_pipe_is_read() {
    let bench = Bench::with_repository();
    let mut child = bench
        .command(&["save", "repo", "-", "--name", "a/b"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The pipe stays open, so a command that reads it does not end.
    let pipe = child.stdin.take();
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("the command waits for the pipe");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(pipe);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("\"a/b\" cannot be a name"), "{}", stderr(&output));
}

/// `memsnap init s3://bucket/prefix` made a folder with the name `s3:`.
#[test]
fn a_url_is_not_taken_for_a_folder() {
    let bench = Bench::new();
    for args in [
        &["init", "s3://bucket/prefix"][..],
        &["show", "s3://bucket/prefix", "base"],
        &["extract", "s3://bucket/prefix", "base", "out"],
        &["pull", "s3://bucket/prefix", "s3://bucket/prefix", "base"],
    ] {
        let output = bench.run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("s3://bucket/prefix is a URL"), "{args:?}: {}", stderr(&output));
    }
    assert_eq!(std::fs::read_dir(bench.path("")).unwrap().count(), 0);
}

#[test]
fn an_extracted_file_replaces_nothing_else() {
    let bench = Bench::with_repository();
    std::fs::write(bench.path("file"), "bytes").unwrap();
    bench.save(&["file", "--name", "base"]);
    std::fs::create_dir(bench.path("folder")).unwrap();
    assert!(bench.refused(&["extract", "repo", "base", "folder"]).contains("it is a folder"));
    assert!(bench.refused(&["extract", "repo", "base", "missing/file"]).contains("missing"));
}
