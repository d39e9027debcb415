//! Tests in processes of their own.

use std::env;
use std::process::{self, Command, Output, Stdio};

use super::tell;

/// The environment variable that names the test that a re-executed test binary runs.
const ALONE: &str = "MEMSNAP_TEST_ALONE";

/// The environment variable that names the access, by test and number, that a re-executed test binary ends
/// with.
const DOOMED: &str = "MEMSNAP_TEST_DOOMED";

/// The exit code of a process that the system did not stop.
const NOT_STOPPED: i32 = 77;

/// Runs `body` in a process of its own.
///
/// `body` is the whole of the test named `test`. Limits, memory and descriptors belong to a process, and
/// other tests run in this one.
pub(crate) fn alone(test: &str, body: impl FnOnce()) {
    alone_with(test, &[], body);
}

/// Like `alone`, with these variables in the environment of the process.
pub(crate) fn alone_with(test: &str, environment: &[(&str, &str)], body: impl FnOnce()) {
    if env::var_os(ALONE).is_some_and(|name| name == test) {
        return body();
    }
    let output = run(test, &[environment, &[(ALONE, test)]].concat());
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(passed(&output), "{test} in a process of its own: {}\n{said}\n{error}", output.status);
    error.lines().filter(|line| line.starts_with("skipped: ") || line.starts_with("note: ")).for_each(tell);
}

/// The modules of test crates that have tests in processes of their own. The empty name is the root.
const MODULES: [&str; 9] = [
    "",
    "address_space::",
    "copies::",
    "descriptors::",
    "kept::",
    "keys::",
    "linux::",
    "mappings::",
    "refused::",
];

/// A command that runs this test binary for one test, which is in one of [`MODULES`].
pub(crate) fn command(test: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(MODULES.map(|module| format!("{module}{test}"))).args(["--exact", "--nocapture"]);
    command
}

/// Whether the process of a [`command`] ran its test, and the test passed.
pub(crate) fn passed(output: &Output) -> bool {
    let said = String::from_utf8_lossy(&output.stdout);
    output.status.success() && said.contains("test result: ok. 1 passed")
}

fn run(test: &str, environment: &[(&str, &str)]) -> Output {
    command(test).envs(environment.iter().copied()).stdin(Stdio::null()).output().unwrap()
}

/// Runs a test again in processes that end at one access, for which the system may stop them.
pub(crate) struct Doomed {
    test: &'static str,
    started: usize,
}

impl Doomed {
    pub(crate) fn of(test: &'static str) -> Self {
        Self { test, started: 0 }
    }

    /// Runs the test again in a process that runs `script` at this line, and checks whether the system stops
    /// it.
    #[track_caller]
    pub(crate) fn assert_stopped(&mut self, expected: bool, script: impl FnOnce()) {
        let access = format!("{} {}", self.test, self.started);
        self.started += 1;
        match env::var(DOOMED) {
            Ok(this) if this == access => {
                script();
                process::exit(NOT_STOPPED);
            }
            Ok(_) => return,
            Err(_) => {}
        }
        let output = run(self.test, &[(DOOMED, &access)]);
        let end = output.status.to_string();
        let stopped = ["SIGSEGV", "SIGBUS", "0xc0000005"].iter().any(|name| end.contains(name));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(stopped || output.status.code() == Some(NOT_STOPPED), "{access}: {end}\n{error}");
        assert_eq!(stopped, expected, "{access}: {end}");
    }
}
