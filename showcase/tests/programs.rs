//! Tests that the programs run and print a record.

use std::io::{self, Write};
use std::process::Command;

/// Prints what was skipped, even if the output of tests is captured, because CI counts such lines.
fn skip(what: &str) {
    io::stderr().write_all(format!("\nskipped: {what}\n").as_bytes()).unwrap();
}

/// Runs `program` and returns its output. Its progress is printed if the test fails.
fn record(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let progress = String::from_utf8_lossy(&output.stderr);
    eprintln!("{progress}");
    progress.lines().filter_map(|line| line.strip_prefix("skipped: ")).for_each(skip);
    assert!(output.status.success(), "{program} ended with {}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Asserts that each way has a row of its own in a table.
fn assert_compares(record: &str, ways: &[&str]) {
    for way in ways {
        assert!(record.lines().any(|line| line.starts_with('|') && line.contains(way)), "{way}:\n{record}");
    }
}

#[test]
fn sqlite() {
    let arguments = ["--rows", "5000", "--rounds", "2", "--copies", "5"];
    let record = record(env!("CARGO_BIN_EXE_sqlite"), &arguments);
    assert!(record.contains("`PRAGMA integrity_check` reports no error"), "{record}");
    assert_compares(&record, &["memsnap", "copied file", "`sqlite3_backup` into `:memory:`", "`ROLLBACK`"]);
}

#[test]
fn wasm() {
    let record = record(env!("CARGO_BIN_EXE_wasm"), &["--quick"]);
    assert_compares(&record, &["memsnap", "on demand", "pooled, initialised image", "branches"]);
}

#[test]
fn wasm_saved() {
    let record = record(env!("CARGO_BIN_EXE_wasm"), &["--saved", "--quick"]);
    assert_compares(&record, &["cold", "loaded", "mapped"]);
}

#[test]
fn kvm() {
    let record = record(env!("CARGO_BIN_EXE_kvm"), &["--resets", "100", "--rounds", "3"]);
    match record.strip_prefix("skipped: ") {
        Some(why) => skip(why.trim_end()),
        None => {
            assert_compares(&record, &["memsnap", "memsnap, logged", "copying all", "remapping", "Armed"])
        }
    }
}
