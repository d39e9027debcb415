//! Views as slices, and what the types of the interface implement.

use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use memsnap::{ArcView, CowView, MutView, OwnedView, Snapshot, View, page_size};

use super::common::{noise, padded};

#[test]
fn a_view_indexes_like_a_slice() {
    let bytes = padded(noise(2 * page_size(), 3));
    let snapshot = Snapshot::from_slice(&bytes).unwrap();
    let mut view = snapshot.view().unwrap();
    let end = view.len();
    assert_eq!(view[5], bytes[5]);
    assert_eq!(view[5..9], bytes[5..9]);
    assert_eq!(view[5..=9], bytes[5..=9]);
    assert_eq!(view[5..], bytes[5..]);
    assert_eq!(view[..9], bytes[..9]);
    assert_eq!(view[..=9], bytes[..=9]);
    assert_eq!(view[..], bytes[..]);
    let bounds = (Bound::Excluded(5), Bound::Included(9));
    assert_eq!(view[bounds], bytes[6..10]);
    assert_eq!(view[end..], []);

    view[0] = 1;
    view[1..2].fill(2);
    view[2..=2].fill(3);
    view[end - 1..].fill(4);
    view[..1][0] += 10;
    view[..=1][1] += 10;
    view[(Bound::Excluded(2), Bound::Excluded(4))][0] = 5;
    assert_eq!(view[..4], [11, 12, 3, 5]);
    assert_eq!(view[..][end - 1], 4);

    let outside: [fn(&View<&Snapshot>) -> u8; 3] =
        [|view| view[view.len()], |view| view[view.len()..=view.len()][0], |view| view[view.len() + 1..][0]];
    for outside in outside {
        assert!(catch_unwind(AssertUnwindSafe(|| outside(&view))).is_err());
    }
    assert!(catch_unwind(AssertUnwindSafe(|| view[end] = 1)).is_err());
}

#[test]
fn a_view_is_a_slice_wherever_one_is_wanted() {
    fn sum(bytes: &[u8]) -> u32 {
        bytes.iter().map(|&byte| u32::from(byte)).sum()
    }
    fn first(bytes: impl AsRef<[u8]>) -> Option<u8> {
        bytes.as_ref().first().copied()
    }
    fn fill(mut bytes: impl AsMut<[u8]>, value: u8) {
        bytes.as_mut()[..3].fill(value);
    }
    let snapshot = Snapshot::from_slice(b"abc").unwrap();
    let mut view = snapshot.view().unwrap();
    assert_eq!(sum(&view), 294);
    assert_eq!(first(&view), Some(b'a'));
    assert_eq!(view.iter().position(|&byte| byte == b'c'), Some(2));
    assert_eq!(view.chunks(page_size()).count(), 1);
    fill(&mut view, 1);
    assert_eq!(view.as_slice()[..4], [1, 1, 1, 0]);
    view.as_mut_slice()[..2].copy_from_slice(&[2, 3]);
    view.reverse();
    assert_eq!(view[view.len() - 3..], [1, 3, 2]);
    assert!(view.starts_with(&[0, 0]));
    drop(view);
    assert_eq!(sum(&Arc::new(snapshot).view_arc().unwrap()), 294);
}

#[test]
fn debug_output_tells_lengths_and_not_megabytes() {
    let snapshot = Snapshot::from_slice(&noise(1 << 20, 1)).unwrap();
    let view = snapshot.view().unwrap();
    for text in [format!("{snapshot:?}"), format!("{view:?}"), format!("{view:#?}")] {
        assert!(text.contains(&snapshot.len().to_string()), "{text}");
        assert!(text.len() < 1000, "{} characters: {text}", text.len());
    }
}

#[test]
fn handles_and_views_can_be_sent_and_shared() {
    fn sent_and_shared<T: Send + Sync>() {}
    sent_and_shared::<Snapshot>();
    sent_and_shared::<ArcView>();
    sent_and_shared::<OwnedView>();
    sent_and_shared::<CowView<'_>>();
    sent_and_shared::<MutView<'_>>();

    let snapshot = Arc::new(Snapshot::from_slice(b"here").unwrap());
    let mut view = snapshot.view_arc().unwrap();
    drop(snapshot);
    let view = thread::spawn(move || {
        view[..4].copy_from_slice(b"gone");
        view
    });
    let mut view = view.join().unwrap();
    assert_eq!(view.content(), b"gone");
    view.restore().unwrap();
    assert_eq!(view.content(), b"here");
}
