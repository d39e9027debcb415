//! `Bytes` made of a view use its memory without a copy, and keep it until the last clone is dropped.

mod common;

use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use common::maps::memory;
use common::{alone, assert_same, noise, skip};
use memsnap::{Snapshot, page_size};

#[test]
fn bytes_show_the_content_at_the_address_of_the_view() {
    let content = noise(3 * page_size() + 5, 1);
    let snapshot = Arc::new(Snapshot::from_slice(&content).unwrap());
    let mut view = snapshot.view_arc().unwrap();
    view[page_size()] ^= 1;
    let mut written = content;
    written[page_size()] ^= 1;

    let address = view.as_ptr();
    let bytes = Bytes::from(view);
    assert_eq!(bytes.as_ptr(), address);
    assert_same("bytes", &bytes, &written);

    let part = bytes.slice(page_size()..);
    assert_eq!(part.as_ptr(), address.wrapping_add(page_size()));
    drop(bytes);
    let part = thread::spawn(move || part.slice(..10)).join().unwrap();
    assert_same("sliced in another thread", &part, &written[page_size()..][..10]);
}

#[test]
fn an_empty_view_is_empty_bytes() {
    let snapshot = Arc::new(Snapshot::zeroed(0).unwrap());
    assert!(Bytes::from(snapshot.view_arc().unwrap()).is_empty());
}

#[test]
fn the_last_clone_gives_the_memory_back() {
    const LEN: usize = 64 << 20;
    const TEST: &str = "the_last_clone_gives_the_memory_back";
    alone(TEST, || {
        let anonymous = || memory().map(|memory| memory.anonymous);
        if anonymous().is_none() {
            skip(TEST, "the system does not report the memory of the process");
        }
        let snapshot = Arc::new(Snapshot::zeroed(LEN).unwrap());
        let mut view = snapshot.view_arc().unwrap();
        view.fill(1);
        let bytes = Bytes::from(view);
        let last = bytes.clone().split_off(LEN - 1);
        drop(bytes);
        let held = anonymous();
        assert!(held.is_none_or(|held| held >= LEN), "only {held:?} bytes are held for a slice");
        assert_eq!(Arc::strong_count(&snapshot), 2);

        drop(last);
        let held = anonymous();
        assert!(
            held.is_none_or(|held| held < LEN / 2),
            "{held:?} bytes are held, although nothing needs them"
        );
        assert_eq!(Arc::strong_count(&snapshot), 1);
    });
}
