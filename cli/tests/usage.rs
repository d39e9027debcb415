//! Exit codes, help texts, completions and manual pages, which need no repository.

mod kit;

use kit::{Bench, stderr};

const COMMANDS: [&str; 15] = [
    "init",
    "save",
    "list",
    "show",
    "diff",
    "extract",
    "name",
    "remove",
    "verify",
    "repair",
    "gc",
    "push",
    "pull",
    "completions",
    "manual",
];

#[test]
fn help_names_all_commands_and_exits_with_0() {
    let bench = Bench::new();
    let help = bench.ok(&["--help"]);
    for command in COMMANDS {
        assert!(help.contains(&format!("\n  {command} ")), "{command} is missing in {help}");
        let help = bench.ok(&[command, "--help"]);
        assert!(help.contains(&format!("Usage: memsnap {command} ")), "{help}");
    }
    assert!(help.contains("Exit codes: 0 done, 1 refused, failed or damaged, 2 wrong usage."), "{help}");
    assert_eq!(bench.ok(&["--version"]), concat!("memsnap ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn wrong_usage_exits_with_2_and_prints_to_the_standard_error() {
    let bench = Bench::new();
    for args in [
        &["frobnicate"][..],
        &[],
        &["save", "repo"],
        &["save", "repo", "file", "--diff"],
        &["save", "repo", "file", "--label", "a=1", "--label", "a=2"],
        &["gc", "repo", "--grace", "24"],
        &["name", "repo", "id"],
        &["extract", "repo", "id", "-", "--json"],
    ] {
        let output = bench.run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        let message = stderr(&output);
        assert!(
            message.contains("Usage: memsnap") || message.contains("try '--help'"),
            "{args:?}: {message}"
        );
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn completions_are_generated_for_each_shell() {
    let bench = Bench::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = bench.ok(&["completions", shell]);
        for command in COMMANDS {
            assert!(script.contains(command), "{command} is missing in the script for {shell}");
        }
    }
}

#[test]
fn manual_pages_are_printed_or_written() {
    let bench = Bench::new();
    assert!(bench.ok(&["manual"]).contains(".TH memsnap 1"));
    assert_eq!(bench.ok(&["manual", "pages/man1"]), "");
    for command in COMMANDS {
        let page = bench.read(&format!("pages/man1/memsnap-{command}.1"));
        assert!(String::from_utf8(page).unwrap().contains(&format!("memsnap\\-{command}")), "{command}");
    }
    std::fs::write(bench.path("file"), "").unwrap();
    assert!(bench.refused(&["manual", "file"]).contains("file"));
}

/// The result of a command whose reader closes the pipe early, as `head` does.
#[test]
fn a_closed_pipe_is_no_failure() {
    let bench = Bench::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = bench.command(&["completions", "zsh"]).stdout(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_the_standard_output_is_a_failure() {
    let bench = Bench::new();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = bench.command(&["completions", "zsh"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).starts_with("memsnap: cannot write to the standard output: "),
        "{}",
        stderr(&output)
    );
}
