//! A view becomes `Bytes` without a copy, and lives as long as these.

mod support;

use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use memsnap::{Snapshot, page_size};
use support::{alone, assert_same, memory, pattern};

#[test]
fn bytes_show_the_content_at_the_address_of_the_view() {
    let content = pattern(3 * page_size() + 5, 1);
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
    alone("the_last_clone_gives_the_memory_back", || {
        let snapshot = Arc::new(Snapshot::zeroed(LEN).unwrap());
        let mut view = snapshot.view_arc().unwrap();
        view.fill(1);
        let bytes = Bytes::from(view);
        let last = bytes.clone().split_off(LEN - 1);
        drop(bytes);
        let held = memory().anonymous;
        assert!(held >= LEN, "{held} bytes are held for a slice");
        assert_eq!(Arc::strong_count(&snapshot), 2);

        drop(last);
        let held = memory().anonymous;
        assert!(held < LEN / 2, "{held} bytes are held for nothing");
        assert_eq!(Arc::strong_count(&snapshot), 1);
    });
}
