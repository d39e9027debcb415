//! Tests of `MemoryFile`: what a file holds, and copies of files and streams.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Seek, Write};

use super::{Area, content, file, looks, on_disk, range, with_each_failure};
use crate::pages::PageSet;
use crate::sys::{MemoryFile, Source, borrowed, copy_of, fault, page_size, stream};

#[test]
fn a_file_is_zero_and_then_what_was_written() {
    let mut file = MemoryFile::create(5, 9, None).unwrap();
    assert_eq!(file.pages(), 5);
    assert_eq!(content(&file), [0; 5]);
    file.write_at(&[], 0).unwrap();
    file.write_pages(5, std::iter::empty()).unwrap();
    let page = page_size();
    file.write_at(&vec![7; 2 * page], page).unwrap();
    file.write_pages(4, [vec![9; page]].iter().map(|bytes| &bytes[..])).unwrap();
    assert_eq!(content(&file), [0, 7, 7, 0, 9]);
    file.write_at(&vec![8; page - 1], 3 * page + 1).unwrap();
    file.write_at(&[8], 3 * page).unwrap();
    assert_eq!(content(&file), [0, 7, 7, 8, 9]);
    assert!(file.allocated() > 0);
    assert!([1, 2, 3, 4].iter().all(|&page| file.data().contains(page)));
    assert!(file.data().below(5) == file.data(), "pages beyond the end hold data");
    file.set_pages(9).unwrap();
    assert_eq!(content(&file), [0, 7, 7, 8, 9, 0, 0, 0, 0]);
    file.finish();
    assert_eq!(content(&file), [0, 7, 7, 8, 9, 0, 0, 0, 0]);
}

#[test]
fn a_hole_is_zero_or_was_not_made() {
    let file = file(50, 6).unwrap();
    let unsealed = MemoryFile::create(6, 6, None).unwrap();
    unsealed.write_at(&vec![5; 6 * page_size()], 0).unwrap();
    let punched = unsealed.punch(range(2, 4)).is_ok();
    assert_eq!(content(&unsealed), if punched { [5, 5, 0, 0, 5, 5] } else { [5; 6] });
    let _ = unsealed.punch(range(3, 3));
    assert!([0, 1, 4, 5].iter().all(|&page| unsealed.data().contains(page)));
    assert_eq!(content(&file), looks(50, 6));
}

#[test]
fn files_of_no_pages_are_files() {
    let mut empty = MemoryFile::create(0, 3, None).unwrap();
    assert_eq!((empty.pages(), empty.data()), (0, PageSet::new()));
    for source in [Source::Zero, Source::Private(&empty), Source::ReadOnly(&empty)] {
        assert!(Area::new(0, source).unwrap().look().is_empty());
    }
    empty.set_pages(3).unwrap();
    assert_eq!(content(&empty), [0; 3]);
}

#[test]
fn copies_have_the_bytes_as_they_were_and_zeroes_behind() {
    let page = page_size();
    for len in [0, 1, page - 1, page, page + 1, 3 * page, 100 * page + 5, 300_000] {
        let bytes: Vec<u8> = (0..len).map(|i| (i / 7).to_le_bytes()[0] | 1).collect();
        let mut original = on_disk(&bytes);
        let (copy, copied) = copy_of(&original, None).unwrap();
        let (mapped, borrowed) = borrowed(&original).unwrap();
        let (streamed, read) = stream(&bytes[..], Some(c"name")).unwrap();
        let (dribbled, _) = stream(Dribble(&bytes, false), None).unwrap();
        assert_eq!((copied, borrowed, read), (len, len, len));
        for file in [&copy, &mapped, &streamed, &dribbled] {
            assert_eq!(file.pages(), len.div_ceil(page));
            assert!(file.data().len() == file.pages() || len > page);
            let area = Area::new(file.pages(), Source::Private(file)).unwrap();
            // SAFETY: the pages are the area's and can be read. Nobody writes to them.
            let shown = unsafe { area.range(range(0, area.pages())) };
            assert!(shown[..len] == bytes, "{len} bytes are others");
            assert!(shown[len..].iter().all(|byte| *byte == 0), "there is something behind {len} bytes");
        }
        original.rewind().unwrap();
        original.write_all(&vec![0xFF; len]).unwrap();
        let area = Area::new(copy.pages(), Source::Private(&copy)).unwrap();
        // SAFETY: as above.
        let shown = unsafe { area.range(range(0, area.pages())) };
        assert!(shown[..len] == bytes, "the copy of {len} bytes changed with the original");
    }
}

#[test]
fn a_copy_of_a_file_with_holes_is_whole() {
    let page = page_size();
    let mut original = tempfile::tempfile().unwrap();
    original.set_len((2000 * page) as u64).unwrap();
    for at in [5, 700, 1999] {
        original.seek(io::SeekFrom::Start((at * page) as u64)).unwrap();
        original.write_all(&vec![9; page]).unwrap();
    }
    let position = original.stream_position().unwrap();
    let (copy, len) = copy_of(&original, None).unwrap();
    assert_eq!(len, 2000 * page);
    assert_eq!(original.stream_position().unwrap(), position);
    let mut expected = vec![0; 2000];
    [5, 700, 1999].iter().for_each(|&page| expected[page] = 9);
    assert_eq!(content(&copy), expected);
    assert!([5, 700, 1999].iter().all(|&page| copy.data().contains(page)));
}

#[test]
fn what_cannot_be_read_is_an_error() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("broken"))
        }
    }
    assert!(stream(Broken, None).is_err_and(|error| error.to_string() == "broken"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let unreadable = File::create(&path).unwrap();
    for refused in [copy_of(&unreadable, None), borrowed(&unreadable)] {
        assert!(refused.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied));
    }
}

#[test]
fn a_failed_file_is_none_and_a_failed_copy_too() {
    let original = on_disk(&[3; 100_000]);
    with_each_failure(|| {
        for (file, len) in [
            copy_of(&original, None),
            borrowed(&original),
            stream(&[3; 100_000][..], None),
            MemoryFile::create(2, 2, None).and_then(|file| {
                file.write_at(&vec![3; 2 * page_size()], 0)?;
                Ok((file, 2 * page_size()))
            }),
        ]
        .into_iter()
        .flatten()
        {
            fault::suspend(|| {
                let area = Area::new(file.pages(), Source::Private(&file)).unwrap();
                // SAFETY: the pages are the area's and can be read. Nobody writes to them.
                let shown = unsafe { area.range(range(0, area.pages())) };
                assert!(shown[..len].iter().all(|byte| *byte == 3));
            });
        }
    });
}

/// A reader that returns few bytes at a time and fails with `Interrupted` before each.
struct Dribble<'a>(&'a [u8], bool);

impl Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 = !self.1;
        if self.1 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let len = buffer.len().min(1 + self.0.len() / 2);
        self.0.read(&mut buffer[..len])
    }
}
