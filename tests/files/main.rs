//! Snapshots of files and streams: whole, isolated from what happens to the file later, sparse where it
//! is sparse, cloned where the file system can.
#![allow(clippy::single_range_in_vec_init)] // What is compared with is a list of ranges.

mod support;

use std::cell::Cell;
use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fmt, thread};

use memsnap::{Snapshot, page_size};
use support::{
    allocated, alone, assert_same, memory, memory_file_bytes, memory_files, message, padded, pattern,
    pipe_of, skipped,
};
use tempfile::{NamedTempFile, TempDir, tempfile};

/// Below and above the size from which files are cloned rather than copied, at and around whole pages.
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
        let bytes = pattern(len, 1);
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

/// Overwrites, grows, truncates and deletes a file, and calls `check` after each.
fn damage(path: &Path, len: usize, check: impl Fn(&str)) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&vec![0xEE; len], 0).unwrap();
    check("overwritten");
    file.set_len(2 * len as u64).unwrap();
    check("grown");
    file.set_len(len as u64 / 2).unwrap();
    check("shortened");
    file.set_len(0).unwrap();
    file.sync_all().unwrap();
    check("emptied");
    fs::remove_file(path).unwrap();
    drop(file);
    check("deleted");
}

#[test]
fn what_happens_to_the_file_later_changes_nothing() {
    let directories = [std::env::temp_dir(), PathBuf::from("/dev/shm")];
    for directory in directories.iter().filter(|directory| directory.is_dir()) {
        for len in sizes() {
            let bytes = pattern(len, 2);
            let path = NamedTempFile::new_in(directory).unwrap().into_temp_path().keep().unwrap();
            fs::write(&path, &bytes).unwrap();
            let snapshot = Snapshot::from_file(File::open(&path).unwrap()).unwrap();
            // Neither view has looked at the file's bytes before.
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
}

#[test]
fn a_file_that_is_open_for_reading_only_will_do() {
    for len in sizes() {
        let bytes = pattern(len, 3);
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

/// Files that a snapshot can be made of in no way, with what the error has to say.
fn unusable() -> Vec<(&'static str, File, ErrorKind, &'static str)> {
    let path = NamedTempFile::new().unwrap();
    fs::write(path.path(), pattern(5000, 1)).unwrap();
    let write_only = OpenOptions::new().write(true).open(path.path()).unwrap();
    let append_only = OpenOptions::new().append(true).open(path.path()).unwrap();
    let flags = rustix::fs::OFlags::PATH.bits().try_into().unwrap();
    let path_only = OpenOptions::new().read(true).custom_flags(flags).open(path.path()).unwrap();
    vec![
        ("write-only", write_only, ErrorKind::PermissionDenied, "reading"),
        ("append-only", append_only, ErrorKind::PermissionDenied, "reading"),
        ("path-only", path_only, ErrorKind::PermissionDenied, "reading"),
    ]
}

#[test]
fn a_file_that_cannot_be_read_is_refused_and_the_error_says_why() {
    let directory = File::open(std::env::temp_dir()).unwrap();
    let mut unusable = unusable();
    unusable.push(("directory", directory, ErrorKind::IsADirectory, "directory"));
    for (what, file, kind, reason) in unusable {
        let error = Snapshot::from_file(file).unwrap_err();
        assert_eq!(error.kind(), kind, "{what}: {error}");
        let message = message(&error);
        assert!(message.contains("making a snapshot of a file"), "{what}: {message}");
        assert!(message.contains(reason), "{what}: {message}");
    }
}

#[test]
fn what_has_no_size_is_read_to_its_end() {
    for len in [0, 1, 1000, 300_000] {
        let bytes = pattern(len, 4);
        assert_holds("pipe", &Snapshot::from_file(pipe_of(bytes.clone())).unwrap(), &bytes);

        let (mut near, far) = UnixStream::pair().unwrap();
        let sent = bytes.clone();
        let sender = thread::spawn(move || near.write_all(&sent).unwrap());
        let snapshot = Snapshot::from_file(File::from(OwnedFd::from(far))).unwrap();
        sender.join().unwrap();
        assert_holds("socket", &snapshot, &bytes);
    }
}

#[test]
fn a_file_in_proc_is_read_to_its_end() {
    let version = File::open("/proc/version").unwrap();
    assert_eq!(version.metadata().unwrap().len(), 0);
    assert_holds("version", &Snapshot::from_file(version).unwrap(), &fs::read("/proc/version").unwrap());
    let status = Snapshot::from_file(File::open("/proc/self/status").unwrap()).unwrap();
    let view = status.view().unwrap();
    let text = str::from_utf8(view.content()).unwrap();
    assert!(text.starts_with("Name:") && text.ends_with('\n'), "{text}");
}

#[test]
fn a_file_in_sys_is_read_to_its_end() {
    // Its files claim to be a page long, and mostly are not.
    let paths = ["/sys/devices/system/cpu/online", "/sys/kernel/mm/transparent_hugepage/enabled"];
    let usable = |path: &&&str| {
        let claimed = fs::metadata(path).map_or(0, |metadata| metadata.len());
        fs::read(path).is_ok_and(|bytes| !bytes.is_empty() && (bytes.len() as u64) < claimed)
    };
    let Some(path) = paths.iter().find(usable) else {
        return skipped("a_file_in_sys_is_read_to_its_end", "no file in /sys is shorter than it claims");
    };
    assert_holds(path, &Snapshot::from_file(File::open(path).unwrap()).unwrap(), &fs::read(path).unwrap());
}

#[test]
fn holes_stay_holes() {
    const LEN: u64 = (1 << 30) + 5;
    let page = page_size();
    let places = [0, 300 << 20, (1 << 30) - page];
    let bytes = pattern(3 * page, 5);
    let mut file = tempfile().unwrap();
    file.set_len(LEN).unwrap();
    for (place, bytes) in places.iter().zip(bytes.chunks(page)) {
        file.write_all_at(bytes, *place as u64).unwrap();
    }
    file.seek(SeekFrom::Start(12_345)).unwrap();
    let mut handle = file.try_clone().unwrap();
    if allocated(&file) > 1 << 20 {
        return skipped("holes_stay_holes", "the file system of the temporary directory knows no holes");
    }

    let snapshot = Snapshot::from_file(file).unwrap();
    assert_eq!(handle.stream_position().unwrap(), 12_345, "the caller's offset moved");
    assert_eq!(snapshot.content_len() as u64, LEN);
    let held = snapshot.stats().base;
    assert!(held >= 3 * page as u64 && held < 1 << 20, "{held} bytes held for three pages");

    let view = snapshot.view().unwrap();
    let mut read = vec![0xA5; page];
    for (place, bytes) in places.iter().zip(bytes.chunks(page)) {
        assert_same("data", &view[*place..*place + page], bytes);
        assert_eq!(snapshot.read_at(&mut read, *place).unwrap(), page);
        assert_same("data", &read, bytes);
        let hole = place + page;
        assert!(view[hole..hole + page].iter().all(|&byte| byte == 0));
    }
    let zeroed = Snapshot::zeroed(snapshot.len()).unwrap();
    let data: Vec<_> = places.iter().map(|&place| place..place + page).collect();
    assert_eq!(snapshot.diff(&zeroed).unwrap().ranges(), data);
    let held = snapshot.stats().base;
    assert!(held < 2 << 20, "{held} bytes held after a look at a few pages");
}

/// A reader that gives what it has in odd ways.
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
        f.write_str("the tape tore")
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
        let bytes = pattern(len, 6);
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
    let bytes = pattern(2 * page_size() + 3, 6);
    assert_holds("byte by byte", &Snapshot::from_reader(Odd::new(&bytes, 1)).unwrap(), &bytes);
}

fn rewound(bytes: &[u8]) -> File {
    let mut file = file_of(bytes);
    file.rewind().unwrap();
    file
}

#[test]
fn a_reader_goes_on_from_where_it_stands() {
    let bytes = pattern(10_000, 7);
    let mut file = rewound(&bytes);
    file.seek(SeekFrom::Start(4000)).unwrap();
    assert_holds("rest", &Snapshot::from_reader(&file).unwrap(), &bytes[4000..]);
    assert_holds("limited", &Snapshot::from_reader((&bytes[..]).take(4097)).unwrap(), &bytes[..4097]);
}

#[test]
fn the_error_of_a_reader_passes_through() {
    for read in [0, 1, 100_000] {
        let bytes = pattern(read, 8);
        let torn = Odd { fail: true, ..Odd::new(&bytes, 1000) };
        let error = Snapshot::from_reader(torn).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        let text = message(&error);
        assert!(text.contains("making a snapshot of a stream"), "{text}");
        assert!(text.contains("the tape tore"), "{text}");
        let own = error.source().and_then(|source| source.downcast_ref::<io::Error>());
        let own = own.and_then(|own| own.get_ref()).and_then(|own| own.downcast_ref::<Midway>());
        assert!(own.is_some(), "the reader's own error is not among the sources of {error:?}");
    }
}

#[test]
fn a_failed_stream_or_file_leaves_nothing_behind() {
    alone("a_failed_stream_or_file_leaves_nothing_behind", || {
        let bytes = pattern(100_000, 8);
        let before = fs::read_dir("/proc/self/fd").unwrap().count();
        Snapshot::from_reader(Odd { fail: true, ..Odd::new(&bytes, 1000) }).unwrap_err();
        for (_, file, ..) in unusable() {
            // SAFETY: it is refused, and so not mapped.
            unsafe { Snapshot::map_file(&file) }.unwrap_err();
            Snapshot::from_file(file).unwrap_err();
        }
        assert_eq!(fs::read_dir("/proc/self/fd").unwrap().count(), before);
    });
}

#[test]
fn a_mapped_file_is_used_in_place_and_lazily() {
    alone("a_mapped_file_is_used_in_place_and_lazily", || {
        let bytes = pattern(32 << 20, 9);
        let named = NamedTempFile::new().unwrap();
        fs::write(named.path(), &bytes).unwrap();
        let file = File::open(named.path()).unwrap();
        let before = memory().rss;
        // SAFETY: nobody else knows the file, and it is not written any more.
        let snapshot = unsafe { Snapshot::map_file(&file) }.unwrap();
        drop(file);
        let view = snapshot.view().unwrap();
        let read = memory().rss.saturating_sub(before);
        assert!(read < 4 << 20, "{read} bytes came in before anybody looked");
        assert_eq!(memory_files().len(), 0, "a copy was made");
        assert_same("in place", view.content(), &bytes);
        assert_holds("in place", &snapshot, &bytes);
    });
}

#[test]
fn a_mapped_file_leaves_the_offset_of_its_handle_alone() {
    let mut file = file_of(&pattern(page_size(), 9));
    file.seek(SeekFrom::Start(3)).unwrap();
    // SAFETY: nobody else has the unnamed file, and it is not written again.
    let snapshot = unsafe { Snapshot::map_file(&file) }.unwrap();
    let stranger = Snapshot::zeroed(snapshot.len()).unwrap();
    // An offset that is moved and put back shows to whoever looks meanwhile.
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
        let bytes = pattern(len, 10);
        let named = NamedTempFile::new().unwrap();
        fs::write(named.path(), &bytes).unwrap();
        let unchanged = |what: &str| {
            let now = fs::read(named.path()).unwrap();
            assert_same(what, &now, &bytes);
        };
        let file = File::open(named.path()).unwrap();
        // SAFETY: nobody else knows the file, and this test never writes to it again.
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

#[test]
fn a_file_that_cannot_be_mapped_is_refused_and_the_error_says_why() {
    let directory = File::open(std::env::temp_dir()).unwrap();
    let (reader, _writer) = io::pipe().unwrap();
    let pipe = File::from(OwnedFd::from(reader));
    let mut unusable = unusable();
    unusable.push(("directory", directory, ErrorKind::InvalidInput, "regular file"));
    unusable.push(("pipe", pipe, ErrorKind::InvalidInput, "regular file"));
    for (what, file, kind, reason) in unusable {
        // SAFETY: it is refused, and so not mapped.
        let error = unsafe { Snapshot::map_file(&file) }.unwrap_err();
        assert_eq!(error.kind(), kind, "{what}: {error}");
        let message = message(&error);
        assert!(message.contains("mapping a file in place"), "{what}: {message}");
        assert!(message.contains(reason), "{what}: {message}");
    }
}

/// A file system in a file, mounted until this is dropped.
struct Mounted {
    directory: TempDir,
    mounted: bool,
}

impl Mounted {
    /// `Err` says why there can be none here.
    fn new(mkfs: &[&str]) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("mounting needs root".to_owned());
        }
        let mut mounted = Self { directory: TempDir::new().unwrap(), mounted: false };
        let (image, point) = (mounted.directory.path().join("image"), mounted.point());
        File::create(&image).unwrap().set_len(512 << 20).unwrap();
        fs::create_dir(&point).unwrap();
        run(Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).args([&image, &point]))?;
        mounted.mounted = true;
        Ok(mounted)
    }

    fn point(&self) -> PathBuf {
        self.directory.path().join("mounted")
    }

    fn used(&self) -> u64 {
        run(Command::new("sync").arg("-f").arg(self.point())).unwrap();
        let stat = rustix::fs::statvfs(self.point()).unwrap();
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    }

    /// Fails if anybody still has a file of it open or mapped.
    fn unmount(mut self) {
        run(Command::new("umount").arg(self.point())).unwrap();
        self.mounted = false;
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.mounted {
            let _ = run(Command::new("umount").arg("-l").arg(self.point()));
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// What has to hold on a file system that can clone files.
fn is_cloned_and_isolated(mkfs: &[&str]) -> Result<(), String> {
    const LEN: usize = 64 << 20;
    let mounted = Mounted::new(mkfs)?;
    let path = mounted.point().join("original");
    let bytes = pattern(LEN - 100, 11);
    fs::write(&path, &bytes).unwrap();

    let before = mounted.used();
    let snapshot = Snapshot::from_file(File::open(&path).unwrap()).unwrap();
    let cloned = mounted.used().saturating_sub(before);
    assert!(cloned < 4 << 20, "a clone took {cloned} bytes of disk");
    assert_eq!(memory_file_bytes(), 0, "the file was copied into memory");
    assert!(snapshot.stats().base >= LEN as u64, "{:?}", snapshot.stats());
    assert_eq!(fs::read_dir(mounted.point()).unwrap().count(), 1, "a named file is left");
    // To see that the measure can tell.
    fs::write(mounted.point().join("copy"), &bytes).unwrap();
    assert!(mounted.used() - before >= LEN as u64, "used space is no measure here");
    fs::remove_file(mounted.point().join("copy")).unwrap();

    let untouched = snapshot.view().unwrap();
    let mut written = snapshot.view().unwrap();
    written[5 << 20] ^= 0xFF;
    damage(&path, LEN, |damage| assert_same(damage, untouched.content(), &bytes));
    assert_holds("afterwards", &snapshot, &bytes);
    let taken = written.take_snapshot().unwrap();
    assert_eq!(snapshot.diff(&taken).unwrap().ranges(), [5 << 20..(5 << 20) + page_size()]);
    written.restore().unwrap();
    assert_same("restored", &written, &padded(bytes.clone()));
    drop((untouched, written));
    drop((snapshot, taken));

    // Where no unnamed file can be made beside it, a file is copied.
    fs::write(&path, &bytes).unwrap();
    run(Command::new("mount").args(["-o", "remount,ro"]).arg(mounted.point()))?;
    let snapshot = Snapshot::from_file(File::open(&path).unwrap()).unwrap();
    assert!(memory_file_bytes() >= bytes.len() as u64);
    assert_holds("copied", &snapshot, &bytes);
    drop(snapshot);
    mounted.unmount();
    Ok(())
}

#[test]
fn on_xfs_a_file_is_cloned_and_isolated() {
    const TEST: &str = "on_xfs_a_file_is_cloned_and_isolated";
    alone(TEST, || {
        let cloned = is_cloned_and_isolated(&["mkfs.xfs", "-q", "-m", "reflink=1"]);
        cloned.unwrap_or_else(|reason| skipped(TEST, &reason));
    });
}

#[test]
fn on_btrfs_a_file_is_cloned_and_isolated() {
    const TEST: &str = "on_btrfs_a_file_is_cloned_and_isolated";
    alone(TEST, || {
        let cloned = is_cloned_and_isolated(&["mkfs.btrfs", "-q"]);
        cloned.unwrap_or_else(|reason| skipped(TEST, &reason));
    });
}
