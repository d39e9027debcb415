//! Special files of Linux, files with holes, and file systems that can clone files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use memsnap::{Snapshot, page_size};
use tempfile::{NamedTempFile, TempDir, tempfile};

use super::common::linux::seccomp::{filters_are_available, install, refuse};
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

/// Returns files of which no snapshot can be made, with the kind and a part of the message of the error.
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
        // SAFETY: the file is refused, so it is not mapped.
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

/// A regular file with a reported length of 0 was read from the offset of its handle, and the offset moved.
#[test]
fn a_file_in_proc_is_read_from_its_first_byte_and_its_offset_stays() {
    let mut file = File::open("/proc/version").unwrap();
    let expected = fs::read("/proc/version").unwrap();
    for offset in [0, 5, 1000] {
        file.seek(SeekFrom::Start(offset)).unwrap();
        assert_holds("version", &Snapshot::from_file(file.try_clone().unwrap()).unwrap(), &expected);
        assert_eq!(file.stream_position().unwrap(), offset, "the caller's offset moved");
    }
}

#[test]
fn a_file_in_sys_is_read_to_its_end() {
    // These files report a length of one page, but most are shorter.
    let paths = ["/sys/devices/system/cpu/online", "/sys/kernel/mm/transparent_hugepage/enabled"];
    let usable = |path: &&&str| {
        let claimed = fs::metadata(path).map_or(0, |metadata| metadata.len());
        fs::read(path).is_ok_and(|bytes| !bytes.is_empty() && (bytes.len() as u64) < claimed)
    };
    let Some(path) = paths.iter().find(usable) else {
        return skip(
            "a_file_in_sys_is_read_to_its_end",
            "no file in /sys is shorter than its reported length",
        );
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
        return skip("holes_stay_holes", "the file system of the temporary directory does not support holes");
    }

    let snapshot = Snapshot::from_file(file).unwrap();
    assert_eq!(handle.stream_position().unwrap(), 12_345, "the caller's offset moved");
    assert_eq!(snapshot.content_len() as u64, LEN);
    let held = snapshot.stats().base;
    assert!(held >= 3 * page as u64 && held < 1 << 20, "the snapshot takes {held} bytes for three pages");

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
    assert!(held < 2 << 20, "the snapshot takes {held} bytes after reads of a few pages");
}

/// A thread can have its own file table. `/proc/self/fd` shows that of the process, in which the same number
/// may be another file. The holes of that file were left out of the copy.
#[test]
fn in_a_thread_with_descriptors_of_its_own_no_other_file_is_looked_at() {
    alone("in_a_thread_with_descriptors_of_its_own_no_other_file_is_looked_at", || {
        let bytes = noise(1 << 19, 12);
        let hole = tempfile().unwrap();
        hole.set_len(1 << 19).unwrap();
        let data = tempfile().unwrap();
        data.write_all_at(&bytes, 0).unwrap();
        let in_thread = || {
            // SAFETY: the process keeps its descriptors, and the thread gets a copy of them.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0, "{}", io::Error::last_os_error());
            // SAFETY: both descriptors are open and stay open. Only in this thread, the second one refers to
            // another file.
            let number = unsafe { libc::dup2(data.as_raw_fd(), hole.as_raw_fd()) };
            assert_eq!(number, hole.as_raw_fd());
            // SAFETY: the descriptor is open. In the file table of this thread, nothing else owns it: `hole`
            // owns the number in the table of the process.
            let snapshot = Snapshot::from_file(unsafe { File::from_raw_fd(number) }).unwrap();
            let mut read = vec![0xA5; snapshot.len()];
            assert_eq!(snapshot.read_at(&mut read, 0).unwrap(), bytes.len());
            assert_same("data", &read, &bytes);
        };
        thread::scope(|scope| scope.spawn(in_thread).join().unwrap());
    });
}

#[test]
fn a_failed_stream_or_file_leaves_nothing_behind() {
    alone("a_failed_stream_or_file_leaves_nothing_behind", || {
        let bytes = noise(100_000, 8);
        let before = fs::read_dir("/proc/self/fd").unwrap().count();
        Snapshot::from_reader(Odd { fail: true, ..Odd::new(&bytes, 1000) }).unwrap_err();
        for (_, file, ..) in unusable() {
            // SAFETY: the file is refused, so it is not mapped.
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
        assert!(read < 4 << 20, "{read} bytes were read before any access");
        assert_eq!(memory_files().len(), 0, "a copy was made");
        assert_same("in place", view.content(), &bytes);
        assert_holds("in place", &snapshot, &bytes);
    });
}

/// Returns `Ok` if the machine can make a device of a file. `Err` says what it lacks.
fn has_loop_devices() -> Result<(), String> {
    if !is_capable_of(CAP_SYS_ADMIN) {
        return Err("loop devices need root (CAP_SYS_ADMIN, outside of a user namespace)".into());
    }
    let control = Path::new("/dev/loop-control");
    if control.exists() { Ok(()) } else { Err("there are no loop devices".into()) }
}

/// A file system in a file. Dropping the value unmounts it.
struct Mounted {
    directory: TempDir,
    mounted: bool,
}

impl Mounted {
    /// Makes and mounts a file system. `Err` says what the machine lacks for it.
    fn new(mkfs: &[&str]) -> Result<Self, String> {
        has_loop_devices()?;
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
        // If the kernel supports the file system, its module is loaded by now.
        let name = mkfs[0].trim_start_matches("mkfs.");
        if !fs::read_to_string("/proc/filesystems")
            .unwrap()
            .split_ascii_whitespace()
            .any(|known| known == name)
        {
            return Err(format!("the kernel does not support {name}"));
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

    /// Unmounts the file system. Fails if one of its files is still open or mapped.
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

/// Checks snapshots on a file system that can clone files. `Err` says what the machine lacks for it.
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
    assert_eq!(fs::read_dir(mounted.point()).unwrap().count(), 1, "a file with a name was left");
    // This copy shows that the used space is a usable measure.
    fs::write(mounted.point().join("copy"), &bytes).unwrap();
    assert!(mounted.used() - before >= LEN as u64, "the used space does not include the copy");
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

    // If no unnamed file can be made next to it, the file is copied.
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

fn open_directly(path: &Path) -> io::Result<File> {
    let direct = rustix::fs::OFlags::DIRECT.bits().try_into().unwrap();
    OpenOptions::new().read(true).custom_flags(direct).open(path)
}

/// Returns whether files in `directory` that are opened with `O_DIRECT` can only be read in whole blocks.
fn demands_blocks(directory: &Path) -> bool {
    let file = NamedTempFile::new_in(directory).unwrap();
    fs::write(file.path(), noise(10_000, 13)).unwrap();
    let refused = open_directly(file.path()).map(|file| file.read_at(&mut [0; 5], 1));
    refused.is_ok_and(|read| read.is_err_and(|error| error.kind() == ErrorKind::InvalidInput))
}

/// Runs `body` with a directory in which files can only be read in whole blocks. Skips `test` if there is
/// none.
fn with_blocks(test: &str, body: impl FnOnce(&Path)) {
    let here = std::env::temp_dir();
    if demands_blocks(&here) {
        return body(&here);
    }
    let mounted = match Mounted::new(&["mkfs.ext4", "-q"]) {
        Ok(mounted) => mounted,
        Err(reason) => {
            return skip(test, format!("no available file system requires whole blocks: {reason}"));
        }
    };
    if demands_blocks(&mounted.point()) {
        body(&mounted.point());
    } else {
        skip(test, "no available file system requires whole blocks");
    }
}

/// Files were read in pieces that `O_DIRECT` does not allow, so that the reads failed with EINVAL.
#[test]
fn a_file_opened_without_the_cache_is_taken_whole() {
    const TEST: &str = "a_file_opened_without_the_cache_is_taken_whole";
    alone(TEST, || {
        with_blocks(TEST, |directory| {
            let lens = [1, 511, 512, 4096, 4097, 65_536, 262_144, 262_145, 700_001, (1 << 20) + 7];
            let contents = lens.map(|len| noise(len, len as u64));
            let files = contents.each_ref().map(|bytes| {
                let named = NamedTempFile::new_in(directory).unwrap();
                fs::write(named.path(), bytes).unwrap();
                named
            });
            let sparse = NamedTempFile::new_in(directory).unwrap();
            sparse.as_file().set_len(9_000_000).unwrap();
            sparse.as_file().write_all_at(b"behind a hole", 8_000_000).unwrap();
            let with_hole = fs::read(sparse.path()).unwrap();
            let directly = files.iter().chain([&sparse]).map(|file| open_directly(file.path()).unwrap());
            let opened: Vec<_> = directly.collect();
            let take_all = |what: &str| {
                for (mut file, bytes) in opened.iter().zip(contents.iter().chain([&with_hole])) {
                    file.seek(SeekFrom::Start(77)).unwrap();
                    let snapshot = Snapshot::from_file(file.try_clone().unwrap()).unwrap();
                    let data = bytes.iter().filter(|&&byte| byte != 0).count();
                    let held = snapshot.stats().base;
                    assert!(
                        held < data as u64 + (1 << 20),
                        "{what}: the snapshot takes {held} bytes for {data} bytes of data"
                    );
                    assert_holds(what, &snapshot, bytes);
                    // SAFETY: nobody writes to the file any more.
                    let mapped = unsafe { Snapshot::map_file(file) }.unwrap();
                    assert_holds(what, &mapped, bytes);
                    assert_eq!(file.stream_position().unwrap(), 77, "{what}: the caller's offset moved");
                }
            };
            take_all("opened anew");
            if !filters_are_available() {
                return skip(TEST, "the kernel has no seccomp filters, so all files were opened anew");
            }
            install(&[
                refuse(libc::SYS_openat, libc::EACCES),
                #[cfg(any(target_arch = "x86_64", target_arch = "x86", target_arch = "arm"))]
                refuse(libc::SYS_open, libc::EACCES),
            ]);
            take_all("in whole blocks");
        });
    });
}

/// A device with the bytes of a file. Dropping the value removes the device.
struct Loop(PathBuf);

impl Loop {
    /// Makes a device of a file. `Err` says what the machine lacks for it.
    fn of(image: &Path) -> Result<Self, String> {
        has_loop_devices()?;
        let mut command = Command::new("losetup");
        let output = match command.args(["--find", "--show"]).arg(image).output() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err("there is no losetup".into()),
            output => output.unwrap(),
        };
        assert_success("losetup", &output);
        Ok(Self(String::from_utf8(output.stdout).unwrap().trim().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).output();
    }
}

/// A block device was read from the offset of its handle, and the offset moved.
#[test]
fn a_block_device_is_taken_from_its_first_byte_and_its_offset_stays() {
    const TEST: &str = "a_block_device_is_taken_from_its_first_byte_and_its_offset_stays";
    let image = NamedTempFile::new().unwrap();
    let bytes = noise(1_000 * 512, 14);
    fs::write(image.path(), &bytes).unwrap();
    let device = match Loop::of(image.path()) {
        Ok(device) => device,
        Err(reason) => return skip(TEST, reason),
    };
    for mut file in [File::open(&device.0).unwrap(), open_directly(&device.0).unwrap()] {
        file.seek(SeekFrom::Start(4096)).unwrap();
        assert_holds("device", &Snapshot::from_file(file.try_clone().unwrap()).unwrap(), &bytes);
        assert_eq!(file.stream_position().unwrap(), 4096, "the caller's offset moved");
    }
}
