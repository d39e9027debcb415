//! Files of Linux's own, holes, and file systems that clone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use memsnap::{Snapshot, page_size};
use tempfile::{NamedTempFile, TempDir, tempfile};

use super::common::linux::{CAP_SYS_ADMIN, allocated, is_capable_of, memory_files};
use super::common::maps::memory;
use super::common::{alone, assert_same, memory_file_bytes, message, noise, padded, skip};
use super::{Odd, assert_holds, damage, files_can_change, write_only};

#[test]
fn what_happens_to_a_file_in_memory_later_changes_nothing() {
    let directory = Path::new("/dev/shm");
    if !directory.is_dir() {
        return skip("what_happens_to_a_file_in_memory_later_changes_nothing", "there is no /dev/shm");
    }
    files_can_change(directory);
}

/// Files that a snapshot can be made of in no way, with what the error has to say.
fn unusable() -> Vec<(&'static str, File, ErrorKind, &'static str)> {
    let path = NamedTempFile::new().unwrap();
    let [(_, write_only), (_, append_only)] = write_only();
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
        return skip("a_file_in_sys_is_read_to_its_end", "no file in /sys is shorter than it claims");
    };
    assert_holds(path, &Snapshot::from_file(File::open(path).unwrap()).unwrap(), &fs::read(path).unwrap());
}

#[test]
fn holes_stay_holes() {
    const LEN: u64 = (1 << 30) + 5;
    let page = page_size();
    let places = [0, 300 << 20, (1 << 30) - page];
    let bytes = noise(3 * page, 5);
    let mut file = tempfile().unwrap();
    file.set_len(LEN).unwrap();
    for (place, bytes) in places.iter().zip(bytes.chunks(page)) {
        file.write_all_at(bytes, *place as u64).unwrap();
    }
    file.seek(SeekFrom::Start(12_345)).unwrap();
    let mut handle = file.try_clone().unwrap();
    if allocated(&file) > 1 << 20 {
        return skip("holes_stay_holes", "the file system of the temporary directory knows no holes");
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

#[test]
fn a_failed_stream_or_file_leaves_nothing_behind() {
    alone("a_failed_stream_or_file_leaves_nothing_behind", || {
        let bytes = noise(100_000, 8);
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
        let bytes = noise(32 << 20, 9);
        let named = NamedTempFile::new().unwrap();
        fs::write(named.path(), &bytes).unwrap();
        let file = File::open(named.path()).unwrap();
        let before = memory().unwrap().rss;
        // SAFETY: nobody else knows the file, and it is not written any more.
        let snapshot = unsafe { Snapshot::map_file(&file) }.unwrap();
        drop(file);
        let view = snapshot.view().unwrap();
        let read = memory().unwrap().rss.saturating_sub(before);
        assert!(read < 4 << 20, "{read} bytes came in before anybody looked");
        assert_eq!(memory_files().len(), 0, "a copy was made");
        assert_same("in place", view.content(), &bytes);
        assert_holds("in place", &snapshot, &bytes);
    });
}

/// A file system in a file, mounted until this is dropped.
struct Mounted {
    directory: TempDir,
    mounted: bool,
}

impl Mounted {
    /// `Err` says what the machine lacks for it.
    fn new(mkfs: &[&str]) -> Result<Self, String> {
        if !is_capable_of(CAP_SYS_ADMIN) {
            return Err("only root may mount".into());
        }
        if !Path::new("/dev/loop-control").exists() {
            return Err("there are no loop devices".into());
        }
        let mut mounted = Self { directory: TempDir::new().unwrap(), mounted: false };
        let (image, point) = (mounted.directory.path().join("image"), mounted.point());
        File::create(&image).unwrap().set_len(512 << 20).unwrap();
        fs::create_dir(&point).unwrap();
        match Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image).output() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(format!("there is no {}", mkfs[0]));
            }
            output => assert_success(mkfs[0], &output.unwrap()),
        }
        let output = Command::new("mount").args(["-o", "loop"]).args([&image, &point]).output().unwrap();
        // If the kernel can have the file system, it does by now.
        let name = mkfs[0].trim_start_matches("mkfs.");
        if !fs::read_to_string("/proc/filesystems")
            .unwrap()
            .split_ascii_whitespace()
            .any(|known| known == name)
        {
            return Err(format!("the kernel has no {name}"));
        }
        assert_success("mount", &output);
        mounted.mounted = true;
        Ok(mounted)
    }

    fn point(&self) -> PathBuf {
        self.directory.path().join("mounted")
    }

    fn used(&self) -> u64 {
        run(Command::new("sync").arg("-f").arg(self.point()));
        let stat = rustix::fs::statvfs(self.point()).unwrap();
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    }

    /// Fails if anybody still has a file of it open or mapped.
    fn unmount(mut self) {
        run(Command::new("umount").arg(self.point()));
        self.mounted = false;
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg("-l").arg(self.point()).output();
        }
    }
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert_success(&format!("{command:?}"), &output);
}

#[track_caller]
fn assert_success(what: &str, output: &Output) {
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr).trim());
}

/// What has to hold on a file system that can clone files. `Err` says what the machine lacks for it.
fn is_cloned_and_isolated(mkfs: &[&str]) -> Result<(), String> {
    const LEN: usize = 64 << 20;
    let mounted = Mounted::new(mkfs)?;
    let path = mounted.point().join("original");
    let bytes = noise(LEN - 100, 11);
    fs::write(&path, &bytes).unwrap();

    let before = mounted.used();
    let snapshot = Snapshot::from_file(File::open(&path).unwrap()).unwrap();
    let cloned = mounted.used().saturating_sub(before);
    assert!(cloned < 4 << 20, "a clone took {cloned} bytes of disk");
    assert_eq!(memory_file_bytes(), Some(0), "the file was copied into memory");
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
    run(Command::new("mount").args(["-o", "remount,ro"]).arg(mounted.point()));
    let snapshot = Snapshot::from_file(File::open(&path).unwrap()).unwrap();
    assert!(memory_file_bytes() >= Some(bytes.len() as u64));
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
        cloned.unwrap_or_else(|reason| skip(TEST, reason));
    });
}

#[test]
fn on_btrfs_a_file_is_cloned_and_isolated() {
    const TEST: &str = "on_btrfs_a_file_is_cloned_and_isolated";
    alone(TEST, || {
        let cloned = is_cloned_and_isolated(&["mkfs.btrfs", "-q"]);
        cloned.unwrap_or_else(|reason| skip(TEST, reason));
    });
}
