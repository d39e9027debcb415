//! Snapshots of files and streams.
//!
//! They are complete and isolated from later changes of the file. They are sparse if the file is sparse, and
//! cloned if the file system supports it.
#![allow(clippy::single_range_in_vec_init)] // The tests compare lists of ranges.

#[path = "../common/mod.rs"]
mod common;
#[cfg(all(target_os = "linux", not(memsnap_unix)))]
mod linux;
#[cfg(unix)]
mod unix;

use std::cell::Cell;
use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::{fmt, thread};

use common::{assert_same, message, noise, padded, pipe_of};
use memsnap::{Snapshot, page_size};
use tempfile::{NamedTempFile, tempfile};

/// Returns sizes below and above the one from which files are cloned, around whole pages.
fn sizes() -> [usize; 6] {
    let page = page_size();
    [100, page, 3 * page + 3, (1 << 20) - 1, 1 << 20, (3 << 20) + 7]
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn assert_holds(what: &str, snapshot: &Snapshot, content: &[u8]) {
    assert_eq!(snapshot.content_len(), content.len(), "{what}");
    let view = snapshot.view().unwrap();
    assert_same(what, view.content(), content);
    assert_same(what, &view, &padded(content.to_vec()));
    let mut read = vec![0xA5; snapshot.len()];
    assert_eq!(snapshot.read_at(&mut read, 0).unwrap(), read.len());
    assert_same(what, &read, &view);
}

#[test]
fn a_file_is_taken_whole_whatever_its_offset() {
    for len in sizes() {
        let bytes = noise(len, 1);
        for offset in [0, 1, len / 2, len, 2 * len] {
            let mut file = file_of(&bytes);
            let mut handle = file.try_clone().unwrap();
            file.seek(SeekFrom::Start(offset as u64)).unwrap();
            let snapshot = Snapshot::from_file(file).unwrap();
            assert_eq!(handle.stream_position().unwrap(), offset as u64, "the caller's offset moved");
            assert_holds(&format!("{len} bytes, offset {offset}"), &snapshot, &bytes);
        }
    }
}

/// `from_file` moved the file offset, which all duplicates of a handle share, when it searched for holes and,
/// on Windows, whenever it read. Bytes that another thread wrote meanwhile went to the wrong place.
#[test]
fn a_file_is_taken_without_disturbing_who_writes_to_it() {
    let records: Vec<u8> = (1..=60_000_u64).flat_map(u64::to_le_bytes).collect();
    let mut expected = records.clone();
    // A thousand holes follow, so that searching for them takes some time.
    expected.resize(records.len() + 8_000_000, 0);
    expected[records.len()..].iter_mut().step_by(8_000).for_each(|byte| *byte = 0xEE);
    let named = NamedTempFile::new().unwrap();
    let mut file = named.as_file().try_clone().unwrap();
    for place in (records.len()..expected.len()).step_by(8_000) {
        file.seek(SeekFrom::Start(place as u64)).unwrap();
        file.write_all(&[0xEE]).unwrap();
    }
    file.set_len(expected.len() as u64).unwrap();
    file.rewind().unwrap();

    let mut writer = file.try_clone().unwrap();
    thread::scope(|scope| {
        let written = scope.spawn(|| records.chunks(8).try_for_each(|record| writer.write_all(record)));
        while !written.is_finished() {
            Snapshot::from_file(file.try_clone().unwrap()).unwrap();
        }
        written.join().unwrap().unwrap();
    });
    assert_eq!(file.stream_position().unwrap(), records.len() as u64);
    assert_same("written by another thread", &fs::read(named.path()).unwrap(), &expected);
}

/// Overwrites, extends, truncates and deletes a file, and calls `check` after each step.
fn damage(path: &Path, len: usize, check: impl Fn(&str)) {
    let mut file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all(&vec![0xEE; len]).unwrap();
    check("overwritten");
    file.set_len(2 * len as u64).unwrap();
    check("grown");
    file.set_len(len as u64 / 2).unwrap();
    check("shortened");
    file.set_len(0).unwrap();
    file.sync_all().unwrap();
    check("emptied");
    drop(file);
    fs::remove_file(path).unwrap();
    check("deleted");
}

#[test]
fn what_happens_to_the_file_later_changes_nothing() {
    files_can_change(&std::env::temp_dir());
}

fn files_can_change(directory: &Path) {
    for len in sizes() {
        let bytes = noise(len, 2);
        let path = NamedTempFile::new_in(directory).unwrap().into_temp_path().keep().unwrap();
        fs::write(&path, &bytes).unwrap();
        let snapshot = Snapshot::from_file(File::open(&path).unwrap()).unwrap();
        // Neither view has read the bytes of the file before.
        let before = snapshot.view().unwrap();
        let mut written = snapshot.view().unwrap();
        written[0] ^= 0xFF;
        damage(&path, len, |damage| {
            let what = format!("{} bytes in {}, {damage}", len, directory.display());
            assert_same(&what, before.content(), &bytes);
            assert_holds(&what, &snapshot, &bytes);
        });
        let taken = written.take_snapshot().unwrap();
        assert_eq!(snapshot.diff(&taken).unwrap().ranges(), [0..page_size()]);
        written.restore().unwrap();
        assert_same("restored", written.content(), &bytes);
    }
}

#[test]
fn a_file_that_is_open_for_reading_only_will_do() {
    for len in sizes() {
        let bytes = noise(len, 3);
        let mut named = NamedTempFile::new().unwrap();
        named.write_all(&bytes).unwrap();
        let file = File::open(named.path()).unwrap();
        assert_holds("read-only", &Snapshot::from_file(file).unwrap(), &bytes);
    }
}

#[test]
fn an_empty_file_makes_an_empty_snapshot() {
    let snapshot = Snapshot::from_file(tempfile().unwrap()).unwrap();
    assert_eq!((snapshot.len(), snapshot.content_len()), (0, 0));
}

/// Returns files that are open for writing only.
fn write_only() -> [(&'static str, File); 2] {
    let path = NamedTempFile::new().unwrap();
    fs::write(path.path(), noise(5000, 1)).unwrap();
    let write = OpenOptions::new().write(true).open(path.path()).unwrap();
    let append = OpenOptions::new().append(true).open(path.path()).unwrap();
    [("write-only", write), ("append-only", append)]
}

#[test]
fn a_file_that_cannot_be_read_is_refused() {
    for (what, file) in write_only() {
        // SAFETY: the file is refused, so it is not mapped.
        let error = unsafe { Snapshot::map_file(&file) }.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{what}: {error}");
        assert!(message(&error).contains("mapping a file in place"), "{what}: {error}");
        let error = Snapshot::from_file(file).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{what}: {error}");
        assert!(message(&error).contains("making a snapshot of a file"), "{what}: {error}");
    }
}

/// A reader that returns its bytes in unusual pieces, with errors in between.
struct Odd<'a> {
    rest: &'a [u8],
    most: usize,
    interrupt: bool,
    calls: Cell<usize>,
    fail: bool,
}

#[derive(Debug)]
struct Midway;

impl fmt::Display for Midway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the reader failed midway")
    }
}

impl Error for Midway {}

impl Read for Odd<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.calls.set(self.calls.get() + 1);
        if self.interrupt && self.calls.get() % 2 == 1 {
            return Err(ErrorKind::Interrupted.into());
        }
        if self.fail && self.rest.is_empty() {
            return Err(io::Error::new(ErrorKind::ConnectionReset, Midway));
        }
        let now = self.most.min(buffer.len());
        let read = self.rest.read(&mut buffer[..now])?;
        Ok(read)
    }
}

impl<'a> Odd<'a> {
    fn new(bytes: &'a [u8], most: usize) -> Self {
        Self { rest: bytes, most, interrupt: false, calls: Cell::new(0), fail: false }
    }
}

#[test]
fn a_stream_is_taken_to_its_end_however_it_comes() {
    for len in sizes() {
        let bytes = noise(len, 6);
        assert_holds("slice", &Snapshot::from_reader(&bytes[..]).unwrap(), &bytes);
        assert_holds("file", &Snapshot::from_reader(rewound(&bytes)).unwrap(), &bytes);
        assert_holds("pipe", &Snapshot::from_reader(pipe_of(bytes.clone())).unwrap(), &bytes);
        let (left, right) = bytes.split_at(len / 3);
        assert_holds("chain", &Snapshot::from_reader(left.chain(right)).unwrap(), &bytes);
        let most = page_size() + 1;
        assert_holds("odd parts", &Snapshot::from_reader(Odd::new(&bytes, most)).unwrap(), &bytes);
        let interrupted = Odd { interrupt: true, ..Odd::new(&bytes, 100_000) };
        assert_holds("interrupted", &Snapshot::from_reader(interrupted).unwrap(), &bytes);
    }
    let bytes = noise(2 * page_size() + 3, 6);
    assert_holds("byte by byte", &Snapshot::from_reader(Odd::new(&bytes, 1)).unwrap(), &bytes);
}

fn rewound(bytes: &[u8]) -> File {
    let mut file = file_of(bytes);
    file.rewind().unwrap();
    file
}

#[test]
fn a_reader_goes_on_from_where_it_stands() {
    let bytes = noise(10_000, 7);
    let mut file = rewound(&bytes);
    file.seek(SeekFrom::Start(4000)).unwrap();
    assert_holds("rest", &Snapshot::from_reader(&file).unwrap(), &bytes[4000..]);
    assert_holds("limited", &Snapshot::from_reader((&bytes[..]).take(4097)).unwrap(), &bytes[..4097]);
}

#[test]
fn the_error_of_a_reader_passes_through() {
    for read in [0, 1, 100_000] {
        let bytes = noise(read, 8);
        let torn = Odd { fail: true, ..Odd::new(&bytes, 1000) };
        let error = Snapshot::from_reader(torn).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        let text = message(&error);
        assert!(text.contains("making a snapshot of a stream"), "{text}");
        assert!(text.contains("the reader failed midway"), "{text}");
        let own = error.source().and_then(|source| source.downcast_ref::<io::Error>());
        let own = own.and_then(|own| own.get_ref()).and_then(|own| own.downcast_ref::<Midway>());
        assert!(own.is_some(), "the reader's own error is not among the sources of {error:?}");
    }
}

#[test]
fn a_mapped_file_leaves_the_offset_of_its_handle_alone() {
    let mut file = file_of(&noise(page_size(), 9));
    file.seek(SeekFrom::Start(3)).unwrap();
    // SAFETY: nobody else has the unnamed file, and it is not written again.
    let snapshot = unsafe { Snapshot::map_file(&file) }.unwrap();
    let stranger = Snapshot::zeroed(snapshot.len()).unwrap();
    // If the offset were moved and restored, other threads could see that.
    thread::scope(|scope| {
        let differs =
            scope.spawn(|| (0..20_000).for_each(|_| assert_eq!(snapshot.diff(&stranger).unwrap().len(), 1)));
        while !differs.is_finished() {
            assert_eq!(file.stream_position().unwrap(), 3, "the caller's offset moved");
        }
    });
    assert_eq!(file.stream_position().unwrap(), 3, "the caller's offset moved");
}

#[test]
fn a_mapped_file_is_never_written() {
    for len in sizes() {
        let bytes = noise(len, 10);
        let named = NamedTempFile::new().unwrap();
        fs::write(named.path(), &bytes).unwrap();
        let unchanged = |what: &str| {
            let now = fs::read(named.path()).unwrap();
            assert_same(what, &now, &bytes);
        };
        let file = File::open(named.path()).unwrap();
        // SAFETY: nobody else knows the file, and this test does not write to it again.
        let mut snapshot = unsafe { Snapshot::map_file(&file) }.unwrap();
        drop(file);
        let original = snapshot.clone();

        let mut view = snapshot.view().unwrap();
        view.fill(0xEE);
        let taken = view.take_snapshot().unwrap();
        unchanged("view written");
        view.restore().unwrap();
        assert_same("restored", view.content(), &bytes);
        view.restore_to(&taken).unwrap();
        drop(view);
        unchanged("snapshot taken");

        let mut mutable = snapshot.view_mut().unwrap();
        mutable[len / 2] ^= 0xFF;
        mutable.commit().unwrap();
        unchanged("mutable view committed");
        let mut mutable = snapshot.view_mut().unwrap();
        mutable[0] ^= 0xFF;
        mutable.restore_to(&taken).unwrap();
        drop(mutable);
        unchanged("mutable view dropped");

        assert!(snapshot.view().unwrap().iter().all(|&byte| byte == 0xEE));
        assert_holds("original", &original, &bytes);
        unchanged("the end");
    }
}
