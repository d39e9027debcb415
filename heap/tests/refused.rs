//! What the compiler refuses: values, references and handles that leave a heap, and values that cannot be in one.

use std::process::Command;

/// The compiler whose messages are recorded. Others word them differently.
const COMPILER: &str = "rustc 1.95.";

#[test]
fn the_compiler_refuses_what_would_be_unsound() {
    let version =
        Command::new("rustc").arg("--version").output().expect("rustc runs, because it built this test");
    let version = String::from_utf8_lossy(&version.stdout);
    if !version.starts_with(COMPILER) {
        println!("skipped: refused: the messages of {COMPILER} are recorded, and this is {version}");
        return;
    }
    trybuild::TestCases::new().compile_fail("tests/refused/*.rs");
}
