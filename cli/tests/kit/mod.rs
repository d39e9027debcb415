//! Runs the command in a temporary folder.
#![allow(dead_code)] // No test file uses all functions.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// The length of a block, in files.
pub(crate) const BLOCK: u64 = 4096;

/// The length of a block, in memory.
pub(crate) const BLOCK_LEN: usize = 4096;

/// A temporary folder in which commands run. `repo` is the repository of most tests.
pub(crate) struct Bench(TempDir);

impl Bench {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Makes a folder with an empty repository in `repo`.
    pub(crate) fn with_repository() -> Self {
        let bench = Self::new();
        bench.ok(&["init", "repo"]);
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Returns a command that has not run.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        // Under Wine, the path that cargo gives has no drive. The temporary folder may be on another one.
        let program = std::path::absolute(env!("CARGO_BIN_EXE_memsnap")).unwrap();
        let mut command = Command::new(program);
        command.args(args).current_dir(self.0.path());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that has to succeed. Returns what it printed.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that has to be refused. Returns its message.
    pub(crate) fn refused(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).starts_with("memsnap: "), "{args:?}: {}", stderr(&output));
        stderr(&output)
    }

    /// Runs a command with `--json`, and reads its only document.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let printed = self.ok(&[args, &["--json"]].concat());
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{args:?}: {error}: {printed}"))
    }

    /// Saves a file. Returns the id.
    pub(crate) fn save(&self, args: &[&str]) -> String {
        let id = self.ok(&[&["save", "repo"], args].concat()).trim_end().to_owned();
        assert!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        id
    }

    /// Writes a sparse file: bytes at offsets, and holes elsewhere.
    pub(crate) fn sparse(&self, name: &str, len: u64, data: &[(u64, &[u8])]) {
        write_sparse(&self.path(name), len, data);
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// Returns the files of a folder of the repository.
    pub(crate) fn files(&self, folder: &str) -> Vec<PathBuf> {
        let folder = std::fs::read_dir(self.path("repo").join(folder)).unwrap();
        folder.map(|entry| entry.unwrap().path()).collect()
    }
}

pub(crate) fn write_sparse(path: &Path, len: u64, data: &[(u64, &[u8])]) {
    let mut file = File::create(path).unwrap();
    file.set_len(len).unwrap();
    for (offset, bytes) in data {
        file.seek(SeekFrom::Start(*offset)).unwrap();
        file.write_all(bytes).unwrap();
    }
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Returns bytes that do not compress and differ for each seed.
pub(crate) fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

/// Returns the number of bytes of a file that are on the disk.
#[cfg(unix)]
pub(crate) fn allocated(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(path).unwrap()) * 512
}
