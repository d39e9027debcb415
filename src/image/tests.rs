//! Tests of images: live slots, failed captures, and threads that share a store.

use std::collections::{BTreeMap, HashMap};
use std::panic::{self, AssertUnwindSafe};
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::page_size;

fn capture<'a>(image: &'a Image, size: (usize, usize), pages: &PageSet, bytes: &'a [u8]) -> Image {
    let (taken, same) = image.capture(size, pages, false, |_| bytes).unwrap();
    assert_eq!(same, 0);
    taken.expect("pages that differ make another image")
}

const MOST_PAGES: usize = if cfg!(miri) { 40 } else { 200 };

/// A step of the test. The first number of each step chooses one of the images that exist.
#[derive(Clone, Debug)]
enum Step {
    /// Captures these pages, filled with these bytes, in a new image. The last number is its length in pages.
    Take(usize, BTreeMap<usize, u8>, usize),
    /// Captures pages of which the last one cannot be read. The slots of the other pages are returned to the store.
    Fail(usize),
    Drop(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let pages = prop::collection::btree_map(0..MOST_PAGES, 0_u8..4, 0..40);
    prop_oneof![
        4 => (any::<usize>(), pages, 1..MOST_PAGES).prop_map(|(of, pages, len)| Step::Take(of, pages, len)),
        1 => any::<usize>().prop_map(Step::Fail),
        3 => any::<usize>().prop_map(Step::Drop),
    ]
}

proptest! {
    /// Each slot is live exactly as long as an image refers to it, however images share nodes and pages. No two pages
    /// are in one slot.
    #[test]
    fn slots_are_live_while_an_image_refers_to_them(steps in prop::collection::vec(step(), 1..if cfg!(miri) { 10 } else { 30 })) {
        let root = Image::new(Base::Zero, 1, page_size(), Label::default());
        let mut images: Vec<(Image, BTreeMap<usize, u8>)> = Vec::new();
        let filled: Vec<_> = (0..4_u8).map(|byte| vec![byte; page_size()]).collect();
        for step in steps {
            let nothing = BTreeMap::new();
            let of = |of: usize| of.checked_rem(images.len()).map(|of| (&images[of].0, &images[of].1));
            match step {
                Step::Take(image, pages, len) => {
                    let (image, model) = of(image).unwrap_or((&root, &nothing));
                    let mut model = model.clone();
                    model.split_off(&len);
                    let pages: BTreeMap<_, _> = pages.into_iter().filter(|(page, _)| *page < len).collect();
                    let candidates = pages.keys().copied().collect();
                    let now = |page: usize| &*filled[usize::from(pages[&page])];
                    let size = (len, len * page_size());
                    let (taken, _) = image.capture(size, &candidates, false, now).unwrap();
                    model.extend(pages.iter());
                    images.extend(taken.map(|taken| (taken, model)));
                }
                Step::Fail(image) => {
                    let (image, _) = of(image).unwrap_or((&root, &nothing));
                    let candidates: PageSet = (0..MOST_PAGES).collect();
                    let now = |page| if page < MOST_PAGES - 1 { &*filled[1] } else { panic!("no such page") };
                    let size = (MOST_PAGES, MOST_PAGES * page_size());
                    let failed = panic::catch_unwind(AssertUnwindSafe(|| image.capture(size, &candidates, true, now)));
                    prop_assert!(failed.is_err());
                }
                Step::Drop(image) => {
                    if !images.is_empty() {
                        images.swap_remove(image % images.len());
                    }
                }
            }
            let mut slots = HashMap::new();
            for (image, model) in &images {
                let reader = image.reader().unwrap();
                for page in 0..image.pages {
                    let byte = model.get(&page).copied().unwrap_or(0);
                    let shown = reader.page(page);
                    prop_assert_eq!((shown[0], shown[page_size() - 1]), (byte, byte), "page {}", page);
                    if let Origin::Captured(slot) = image.origin(page) {
                        prop_assert_eq!(*slots.entry(slot).or_insert((page, byte)), (page, byte));
                    }
                }
            }
            prop_assert_eq!(root.store_usage().live, slots.len());
            root.store.0.check();
        }
        drop(images);
        prop_assert_eq!(root.store_usage().live, 0);
    }
}

/// Threads capture pages in one store and compare their images.
///
/// The only system calls of this test are for the memory of the store, so Miri can run it.
#[test]
fn relatives_share_a_store_across_threads() {
    const PAGES: usize = 20;
    let size = (PAGES, PAGES * page_size());
    let root = Image::new(Base::Zero, size.0, size.1, Label::default());
    let of = |image: &Image, pages: &[usize], byte: u8| {
        let (pages, bytes) = (pages.iter().copied().collect(), vec![byte; page_size()]);
        capture(image, size, &pages, &bytes)
    };
    let first = of(&root, &[1, 2, 17], 1);
    thread::scope(|scope| {
        for thread in 3..6 {
            let (first, of, root) = (&first, &of, &root);
            scope.spawn(move || {
                for round in 0..3 {
                    let own = of(first, &[2, usize::from(thread), 10 + round], thread);
                    let changed = [2, usize::from(thread), 10 + round].into_iter().collect::<PageSet>();
                    assert_eq!(own.diff(first).unwrap(), changed);
                    let zero = of(&own, &[2, 10 + round], 0);
                    assert!(zero.shows_zeroes(2) && !own.shows_zeroes(2));
                    let reader = own.reader().unwrap();
                    assert_eq!(reader.page(1), vec![1; page_size()]);
                    assert_eq!(reader.page(2), vec![thread; page_size()]);
                    assert_eq!(reader.page(19), zeroes());
                    assert!(own.family() >= 4 && root.captured_pages().is_empty());
                }
            });
        }
    });
    assert_eq!(first.store_usage().live, 3);
    drop(first);
    assert_eq!(root.store_usage().live, 0);
    assert_eq!(root.family(), 1);
}

/// The old and the new image share all nodes of their page tables but those of the written pages. So a comparison does
/// not visit the others.
#[test]
fn a_comparison_with_a_written_image_visits_what_was_written() {
    const PAGES: usize = if cfg!(miri) { 300 } else { 20_000 };
    let size = (PAGES, PAGES * page_size());
    let root = Image::new(Base::Zero, size.0, size.1, Label::default());
    let filled = vec![1; page_size()];
    let old = capture(&root, size, &PageSet::all(PAGES), &filled);
    let writes =
        [(7 * page_size() + 1, &[2_u8, 2][..]), ((PAGES - 1) * page_size(), &filled[1..]), (9, &[1])];
    let new = old.written(size, &writes).unwrap().expect("a page differs");
    assert_eq!(old.may_differ(&new), PageSet::from(PageRange::new(7, 8)));
    assert_eq!(old.diff(&new).unwrap(), PageSet::from(PageRange::new(7, 8)));
    assert_eq!(root.store_usage().live, PAGES + 1);
    // The nodes that only the new image has.
    let mut unshared = 0;
    let mut new = new;
    new.captured.for_each_unshared(|_| unshared += 1);
    assert!((1..=16).contains(&unshared), "{unshared} entries were copied");
    assert!(old.written(size, &[(0, &filled), (5, &[]), (3, &[1, 1])]).unwrap().is_none());
}
