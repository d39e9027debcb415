//! The image: data like that in memory, with equal parts of code, text, zeroes and random bytes.
//!
//! Code and text are from files of this machine. Everything else is the same in each run.

use std::collections::HashSet;
use std::env;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// The length of a page of the image, which is the length of a block of the store.
pub(crate) const PAGE: usize = 4096;
/// The greatest number of bytes of one file, so that the image has bytes of many files.
const MOST_OF_A_FILE: u64 = 8 << 20;
/// The longest run of pages of one kind.
const LONGEST_RUN: usize = 64;
/// The folders with code.
const CODE: [&str; 3] = ["/usr/bin", "/usr/lib", "/usr/libexec"];
/// The folders with text, besides the sources of packages in the folder of Cargo.
const TEXT: [&str; 3] = ["/usr/share/doc", "/usr/share/common-licenses", "/usr/include"];

/// Pages of one kind, and a description of their source.
struct Pages {
    bytes: Vec<u8>,
    description: String,
}

/// Makes an image of `len` bytes. Returns it and a description of its parts.
pub(crate) fn build(len: usize) -> Result<(Vec<u8>, String)> {
    let part = len / 4 / PAGE * PAGE;
    ensure!(part > 0, "an image of {len} bytes is too small: it needs at least {} bytes", 4 * PAGE);
    let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
    let code = fill_up("code", elf_files(part)?, part, &mut random)?;
    let text = fill_up("text", text_files(part)?, part, &mut random)?;
    let mut noise = vec![0; part];
    random.fill_bytes(&mut noise);
    let description = format!(
        "{}; {}; zeroes; random bytes; {} MiB of each, in runs of 1 to {LONGEST_RUN} pages in random order",
        code.description,
        text.description,
        part >> 20
    );
    let zeroes = vec![0; part];
    let image = interleave([&code.bytes, &text.bytes, &zeroes, &noise], &mut random);
    Ok((image, description))
}

/// Divides parts of the same length into runs, and puts the runs in random order.
fn interleave(parts: [&[u8]; 4], random: &mut impl Rng) -> Vec<u8> {
    let mut image = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
    let mut left = parts;
    while left.iter().any(|part| !part.is_empty()) {
        let part = &mut left[random.random_range(0..4)];
        let run = random.random_range(1..=LONGEST_RUN) * PAGE;
        let (run, rest) = part.split_at(run.min(part.len()));
        image.extend_from_slice(run);
        *part = rest;
    }
    image
}

/// Reads files with machine code. Each file begins at the beginning of a page, as in memory.
fn elf_files(want: usize) -> Result<Pages> {
    let mut bytes = Vec::new();
    let roots: Vec<PathBuf> = CODE.iter().map(PathBuf::from).collect();
    let files = collect(&roots, want, &mut bytes, |_| true, |start| start.starts_with(b"\x7fELF"), PAGE)?;
    Ok(Pages { bytes, description: format!("code: {files} ELF files of {}", CODE.join(", ")) })
}

/// Reads text files, one directly after the other.
fn text_files(want: usize) -> Result<Pages> {
    const KINDS: [&str; 8] = ["c", "h", "html", "json", "md", "rs", "toml", "txt"];
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let roots: Vec<PathBuf> =
        TEXT.iter().map(PathBuf::from).chain(home.map(|home| home.join("registry/src"))).collect();
    let mut bytes = Vec::new();
    let is_text =
        |path: &Path| path.extension().is_none_or(|extension| KINDS.iter().any(|kind| extension == *kind));
    let readable = |start: &[u8]| !start.is_empty() && !start.contains(&0) && start[0] != 0x1f;
    let files = collect(&roots, want, &mut bytes, is_text, readable, 1)?;
    let description =
        format!("text: {files} files of {}, and of sources of Cargo's packages", TEXT.join(", "));
    Ok(Pages { bytes, description })
}

/// Appends the files below `roots` to `bytes`, until there are `want` bytes.
///
/// Returns the number of files.
///
/// A file is taken if `by_name` accepts its path and `by_start` its first bytes.
fn collect(
    roots: &[PathBuf],
    want: usize,
    bytes: &mut Vec<u8>,
    by_name: impl Fn(&Path) -> bool,
    by_start: impl Fn(&[u8]) -> bool,
    align: usize,
) -> Result<usize> {
    let (mut files, mut seen) = (0, HashSet::new());
    // Folders are read in the order of their names, so that each run takes the same files.
    let mut waiting: Vec<PathBuf> = roots.iter().rev().cloned().collect();
    while let Some(path) = waiting.pop() {
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if metadata.is_dir() {
            let mut entries: Vec<PathBuf> = fs::read_dir(&path)
                .map(|entries| entries.flatten().map(|it| it.path()).collect())
                .unwrap_or_default();
            entries.sort_unstable_by(|a, b| b.cmp(a));
            waiting.extend(entries);
        } else if metadata.is_file() && by_name(&path) && seen.insert((metadata.dev(), metadata.ino())) {
            let start = bytes.len();
            let read = File::open(&path).and_then(|file| file.take(MOST_OF_A_FILE).read_to_end(bytes));
            let accepted = read.is_ok() && by_start(&bytes[start..bytes.len().min(start + 4096)]);
            if !accepted {
                bytes.truncate(start);
                continue;
            }
            bytes.resize(bytes.len().next_multiple_of(align), 0);
            files += 1;
            if bytes.len() >= want {
                bytes.truncate(want);
                break;
            }
        }
    }
    Ok(files)
}

/// If there are too few pages, repeats them with changes.
fn fill_up(kind: &str, mut pages: Pages, want: usize, random: &mut impl Rng) -> Result<Pages> {
    let found = pages.bytes.len() / PAGE * PAGE;
    ensure!(found > 0, "this machine has no files with {kind}: {}", pages.description);
    pages.bytes.truncate(found);
    if found < want {
        pages.description += &format!(" ({} MiB; they repeat, with 1 of 16 bytes changed)", found >> 20);
    }
    while pages.bytes.len() < want {
        let from = random.random_range(0..found / PAGE) * PAGE;
        let mut page = pages.bytes[from..][..PAGE].to_vec();
        for _ in 0..PAGE / 16 {
            let at = random.random_range(0..PAGE);
            page[at] = page[random.random_range(0..PAGE)];
        }
        pages.bytes.extend(page);
    }
    Ok(pages)
}

/// Writes the image to a file, and syncs it.
pub(crate) fn write(image: &[u8], path: &Path) -> Result<()> {
    let write = || {
        let mut file = File::create(path)?;
        io::Write::write_all(&mut file, image)?;
        file.sync_all()
    };
    write().with_context(|| format!("writing {} bytes to {}", image.len(), path.display()))
}
