//! Opens the file, the block device or the standard input that `save` reads.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;

use crate::failure::Failure;

/// The number of bytes that are read from a pipe at a time.
const PIECE: usize = 1 << 20;

/// The length of a block. Blocks of zeroes become holes of the temporary file.
const BLOCK: usize = 4096;

/// Opens the file to save.
///
/// If `diff` is set, the file must be a regular file, because only these have holes.
///
/// The store reads files at any offset. So the bytes of a pipe are copied to a temporary file first. The temporary file
/// has no name, and the system deletes it when it is closed.
pub(crate) fn open(path: &Path, diff: bool) -> Result<File, Failure> {
    if path.as_os_str() == "-" {
        return standard_input(diff);
    }
    let folder = || Failure::new(format!("cannot save {}: it is a folder", path.display()));
    let file = File::open(path).map_err(|error| match path.is_dir() {
        // Windows refuses to open a folder, and says that access is denied.
        true => folder(),
        false => Failure::file("open", path)(error),
    })?;
    let kind = file.metadata().map_err(Failure::file("read the type of", path))?.file_type();
    if kind.is_dir() {
        return Err(folder());
    }
    if kind.is_file() {
        return Ok(file);
    }
    if diff {
        return Err(no_holes(&path.display().to_string()));
    }
    if is_block_device(kind) {
        return Ok(file);
    }
    if is_pipe(kind) {
        return spool(file, &path.display().to_string());
    }
    Err(Failure::new(format!(
        "cannot save {}: it is not a regular file, a block device or a pipe",
        path.display()
    )))
}

fn standard_input(diff: bool) -> Result<File, Failure> {
    const NAME: &str = "the standard input";
    if io::stdin().is_terminal() {
        return Err(Failure::new(
            "cannot save the standard input: it is a terminal; name a file or use a pipe",
        ));
    }
    if let Some(file) =
        redirected_file().map_err(|error| Failure::new(format!("cannot read {NAME}: {error}")))?
    {
        return Ok(file);
    }
    if diff {
        return Err(no_holes(NAME));
    }
    spool(io::stdin().lock(), NAME)
}

/// Returns the standard input if it is a file of which nothing was read yet.
///
/// This is the case for `memsnap save repo - < file`.
#[cfg(unix)]
fn redirected_file() -> io::Result<Option<File>> {
    use std::os::fd::AsFd;

    let mut file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let whole = file.metadata()?.is_file() && file.stream_position()? == 0;
    Ok(whole.then_some(file))
}

#[cfg(not(unix))]
fn redirected_file() -> io::Result<Option<File>> {
    Ok(None)
}

#[cfg(unix)]
fn is_block_device(kind: std::fs::FileType) -> bool {
    std::os::unix::fs::FileTypeExt::is_block_device(&kind)
}

#[cfg(unix)]
fn is_pipe(kind: std::fs::FileType) -> bool {
    std::os::unix::fs::FileTypeExt::is_fifo(&kind)
}

#[cfg(not(unix))]
fn is_block_device(_: std::fs::FileType) -> bool {
    false
}

#[cfg(not(unix))]
fn is_pipe(_: std::fs::FileType) -> bool {
    false
}

fn no_holes(name: &str) -> Failure {
    Failure::new(format!(
        "cannot use --diff with {name}: only a regular file has holes; write the bytes to a sparse file first"
    ))
}

/// Copies a stream to a temporary file.
fn spool(reader: impl Read, name: &str) -> Result<File, Failure> {
    let failed = |error| {
        Failure::new(format!(
            "cannot copy {name} to a temporary file in {}: {error}; set TMPDIR to a folder with more space",
            std::env::temp_dir().display()
        ))
    };
    let mut file = tempfile::tempfile().map_err(failed)?;
    copy_sparse(reader, &mut file).map_err(failed)?;
    Ok(file)
}

/// Copies a stream to an empty file. Blocks of zeroes become holes.
fn copy_sparse(mut reader: impl Read, file: &mut File) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut len = 0;
    loop {
        let read = read_full(&mut reader, &mut piece)?;
        for run in data_runs(&piece[..read]) {
            file.seek(SeekFrom::Start(len + run.start as u64))?;
            file.write_all(&piece[run])?;
        }
        len += read as u64;
        if read < piece.len() {
            return file.set_len(len);
        }
    }
}

/// Returns the runs of blocks that are not zero, in ascending order. The last block may be shorter.
fn data_runs(piece: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (number, block) in piece.chunks(BLOCK).enumerate() {
        let start = number * BLOCK;
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        match runs.last_mut() {
            Some(last) if last.end == start => last.end += block.len(),
            _ => runs.push(start..start + block.len()),
        }
    }
    runs
}

/// Reads until the buffer is full or the stream ends. Returns the number of bytes that were read.
fn read_full(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut full = 0;
    while full < buffer.len() {
        match reader.read(&mut buffer[full..]) {
            Ok(0) => break,
            Ok(read) => full += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(full)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader that returns few bytes at a time, as a pipe does.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let len = buffer.len().min(60_000);
            (&mut self.0).take(len as u64).read(buffer)
        }
    }

    #[test]
    fn runs_are_what_is_not_zero() {
        let mut piece = vec![0; 5 * BLOCK + 10];
        assert_eq!(data_runs(&piece), []);
        piece[BLOCK] = 1;
        piece[3 * BLOCK - 1] = 1;
        piece[5 * BLOCK + 9] = 1;
        assert_eq!(data_runs(&piece), [BLOCK..3 * BLOCK, 5 * BLOCK..5 * BLOCK + 10]);
    }

    #[test]
    fn a_stream_is_copied_whole() {
        for len in [0, 1, BLOCK, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + BLOCK + 7] {
            let mut bytes = vec![0; len];
            for block in bytes.chunks_mut(BLOCK).step_by(3) {
                block.fill(7);
            }
            let mut file = tempfile::tempfile().unwrap();
            copy_sparse(Trickle(&bytes), &mut file).unwrap();
            let mut copied = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut copied).unwrap();
            assert!(copied == bytes, "{len} bytes");
        }
    }
}
