//! What the fuzz targets run. Each input is a file that was damaged or made to do harm.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use memsnap::Snapshot;

use crate::format::manifest::ManifestReader;
use crate::format::pack::{Decoder, read_contents};
use crate::format::{BLOCK, Sequential};
use crate::id::Id;
use crate::storage::ReadFile;
use crate::{Depth, Repository};

/// Bytes as a file.
#[derive(Debug)]
struct Bytes(Vec<u8>);

impl ReadFile for Bytes {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.0.get(at..).and_then(|bytes| bytes.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Reads bytes as a pack and as a manifest.
///
/// # Panics
///
/// If a reader returns something that the format does not allow.
pub fn formats(bytes: &[u8]) {
    let file = Bytes(bytes.to_vec());
    if let Ok(contents) = read_contents(&file) {
        let mut decoder = Decoder::new().expect("memory for the decoder");
        for frame in contents.frames {
            let mut stored = vec![0; frame.stored as usize];
            file.read_exact_at(&mut stored, frame.offset.into()).expect("frames are in the file");
            let decoded = decoder.decode(&stored, frame.encoding, frame.blocks.into());
            assert!(
                decoded.is_err()
                    || decoded.is_ok_and(|bytes| bytes.len() == usize::from(frame.blocks) * BLOCK)
            );
        }
    }
    // The hash is right, so that the reader comes to the end.
    let file = Sequential::new(Box::new(file)).expect("bytes have a length");
    if let Ok(mut manifest) = ManifestReader::new(file, Id::of(bytes)) {
        let mut last = None;
        while let Ok(Some((block, _))) = manifest.next() {
            assert!(last < Some(block), "blocks ascend");
            last = Some(block);
        }
    }
}

/// The files of a small repository, and the bytes of its snapshots.
struct Small {
    files: Vec<(String, Vec<u8>)>,
    snapshots: Vec<(Id, Vec<u8>)>,
}

fn small() -> &'static Small {
    static SMALL: OnceLock<Small> = OnceLock::new();
    SMALL.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("repository");
        let repository = Repository::create(&path).expect("a repository");
        let mut bytes: Vec<u8> = (0..=u8::MAX).cycle().take(5 * BLOCK).collect();
        bytes[BLOCK..2 * BLOCK].fill(0);
        let base = repository.save(&Snapshot::from_slice(&bytes).expect("a snapshot")).name("base").run();
        let base = base.expect("a save");
        let mut snapshots = vec![(base.id(), bytes.clone())];
        bytes[2 * BLOCK] = 9;
        let child = Snapshot::from_slice(&bytes).expect("a snapshot");
        let child = repository.save(&child).parent(&base).attach("a", *b"b").run().expect("a save");
        snapshots.push((child.id(), bytes));
        let mut files = Vec::new();
        for part in ["", "packs", "manifests", "names"] {
            for entry in fs::read_dir(path.join(part)).expect("a folder") {
                let entry = entry.expect("a file");
                if entry.path().is_file() {
                    let name = format!("{part}/{}", entry.file_name().to_string_lossy());
                    files.push((name, fs::read(entry.path()).expect("bytes")));
                }
            }
        }
        files.sort();
        Small { files, snapshots }
    })
}

/// Replaces a part of a file of a small repository, and reads everything in it.
///
/// The first byte of the input chooses the file, four give the offset, and the rest are the new bytes.
///
/// # Panics
///
/// If a snapshot is loaded with other bytes than it was saved with.
pub fn repository(input: &[u8]) {
    let small = small();
    let Some((&[file, a, b, c, d], new)) = input.split_first_chunk() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    for part in ["packs", "manifests", "names", "tmp"] {
        fs::create_dir(folder.path().join(part)).expect("a folder");
    }
    for (number, (name, bytes)) in small.files.iter().enumerate() {
        let mut bytes = bytes.clone();
        if number == usize::from(file) % small.files.len() {
            let at = u32::from_le_bytes([a, b, c, d]) as usize % (bytes.len() + 1);
            let len = new.len().min(bytes.len() - at);
            bytes[at..at + len].copy_from_slice(&new[..len]);
        }
        fs::write(folder.path().join(name.trim_start_matches('/')), bytes).expect("a file");
    }
    read_all(folder.path(), small);
}

fn read_all(path: &Path, small: &Small) {
    let Ok(repository) = Repository::open(path) else { return };
    let _ = (repository.list(), repository.names(), repository.verify(Depth::Data));
    for (id, bytes) in &small.snapshots {
        let _ = repository.manifest(id);
        if let Ok(saved) = repository.load(id).run() {
            let view = saved.snapshot().view().expect("a view");
            assert!(view.content() == bytes, "{id} has other bytes");
        }
    }
}
