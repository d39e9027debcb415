//! Tests of the page table, which compare it with a `BTreeMap`.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// An entry that equals only its own clones, as a captured page does.
#[derive(Clone, Debug)]
struct Entry(Arc<u32>);

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Entry {
    fn new(value: u32) -> Self {
        Self(Arc::new(value))
    }
}

fn entries(table: &Table<Entry>) -> BTreeMap<usize, u32> {
    let mut all = BTreeMap::new();
    table.for_each(|page, entry| assert!(all.insert(page, *entry.0).is_none()));
    all
}

/// About as many pages as there can be addresses for.
const VAST: usize = usize::MAX >> (usize::BITS / 8 * 3);

fn changes(map: &BTreeMap<usize, u32>) -> Vec<(usize, Entry)> {
    map.iter().map(|(&page, &value)| (page, Entry::new(value))).collect()
}

/// Checks the invariant of `Node`, and that no node has more than `MOST` items.
fn check(table: &Table<Entry>) {
    fn check(node: &Node<Entry>, first: Option<usize>) -> usize {
        let (pages, height): (Vec<_>, _) = match node {
            Node::Leaf(entries) => (entries.iter().map(|entry| entry.0).collect(), 1),
            Node::Inner(children) => {
                let heights: Vec<_> =
                    children.iter().map(|(first, child)| check(child, Some(*first))).collect();
                assert!(heights.windows(2).all(|pair| pair[0] == pair[1]));
                (children.iter().map(|child| child.0).collect(), heights[0] + 1)
            }
        };
        assert!((1..=MOST).contains(&pages.len()) && pages.is_sorted_by(|a, b| a < b));
        assert!(first.is_none_or(|first| first == pages[0]));
        height
    }
    if let Some(root) = &table.root {
        check(root, None);
    }
}

/// Returns the pages whose entries are not the same in both tables. Compares all entries one by one.
fn differing(left: &Table<Entry>, right: &Table<Entry>) -> Vec<usize> {
    let mut pages = entries(left);
    pages.append(&mut entries(right));
    pages.into_keys().filter(|&page| left.get(page) != right.get(page)).collect()
}

proptest! {
    #[test]
    fn a_table_is_a_map_whose_old_versions_stay(
        capacity in prop::sample::select(vec![1_usize, 16, 17, 256, 257, 70_000, VAST]),
        steps in prop::collection::vec(
            (any::<prop::sample::Index>(), prop::collection::btree_map(0_usize..usize::MAX, 0_u32..9, 0..50)),
            1..8,
        ),
    ) {
        let mut versions = vec![(Table::new(), BTreeMap::new())];
        for (of, step) in steps {
            let step: BTreeMap<_, _> = step.into_iter().map(|(page, value)| (page % capacity, value)).collect();
            let (table, model) = of.get(&versions);
            let mut model = model.clone();
            let table = table.with(changes(&step));
            model.extend(&step);
            versions.push((table, model));
        }
        for (table, model) in &versions {
            check(table);
            prop_assert_eq!(&entries(table), model);
            prop_assert_eq!(table.len(), model.len());
            let lookup = table.lookup();
            for page in model.keys().flat_map(|&page| [page.saturating_sub(1), page, page + 1, page / 2]) {
                prop_assert_eq!(table.get(page).map(|entry| *entry.0), model.get(&page).copied());
                prop_assert_eq!(lookup.get(page), table.get(page));
            }
        }
        for left in &versions {
            for right in &versions {
                let mut differ = Vec::new();
                left.0.diff(&right.0, |page| differ.push(page));
                prop_assert_eq!(differ, differing(&left.0, &right.0));
            }
        }
    }
}

proptest! {
    #[test]
    fn the_entries_below_a_page_make_a_table(
        limits in prop::collection::vec(prop::sample::select(vec![0_usize, 1, 15, 16, 17, 250, 257, 5_000, VAST]), 1..6),
        pages in prop::collection::btree_set(0_usize..6_000, 0..80),
    ) {
        let mut model: BTreeMap<usize, u32> = pages.into_iter().map(|page| (page, 1)).collect();
        let mut table = Table::new().with(changes(&model));
        for limit in limits {
            let below = table.below(limit);
            check(&below);
            let mut differ = Vec::new();
            table.diff(&below, |page| differ.push(page));
            let gone: Vec<_> = model.split_off(&limit).into_keys().collect();
            prop_assert_eq!(differ, gone);
            prop_assert_eq!(&entries(&below), &model);
            prop_assert_eq!(below.len(), model.len());
            prop_assert!(below.get(limit).is_none() && below.get(usize::MAX).is_none());
            table = below;
            if let Some(last) = limit.checked_sub(1) {
                table = table.with(vec![(last, Entry::new(7))]);
                model.insert(last, 7);
                prop_assert_eq!(table.get(last).map(|entry| *entry.0), Some(7));
            }
        }
    }
}

/// Tables share whole nodes, so all entries of a shared node count as shared.
#[test]
fn entries_are_visited_once_no_other_table_shares_their_node() {
    let unshared = |table: &mut Table<Entry>| {
        let mut pages = Vec::new();
        table.for_each_unshared(|entry| pages.push(*entry.0));
        pages
    };
    let all: BTreeMap<usize, u32> = (0..100).map(|page| (page, u32::try_from(page).unwrap())).collect();
    let mut old = Table::new().with(changes(&all));
    assert_eq!(unshared(&mut old).len(), all.len());
    let mut new = old.with(vec![(50, Entry::new(500))]);
    let (of_old, of_new) = (unshared(&mut old), unshared(&mut new));
    // Only the entries of the changed leaf are unshared.
    assert!(of_old.contains(&50) && of_old.len() <= MOST);
    assert!(of_new.contains(&500) && of_new.len() <= MOST);
    let mut same = new.with(Vec::new());
    assert!(unshared(&mut same).is_empty());
    drop(old);
    assert!(unshared(&mut new).is_empty());
    drop(same);
    assert_eq!(unshared(&mut new).len(), all.len());
}

/// Counts the entries that are compared.
#[test]
fn equal_subtrees_are_skipped_by_pointer() {
    thread_local! {
        static COMPARED: Cell<usize> = const { Cell::new(0) };
    }
    #[derive(Clone)]
    struct Counted(u32);
    impl PartialEq for Counted {
        fn eq(&self, other: &Self) -> bool {
            COMPARED.set(COMPARED.get() + 1);
            self.0 == other.0
        }
    }
    let pages = if cfg!(miri) { 600 } else { 10_000 };
    let base = Table::new().with((0..pages).map(|page| (page, Counted(1))).collect());
    let changed = base.with(vec![(pages / 2, Counted(2)), (pages, Counted(2))]);
    let mut differ = Vec::new();
    base.diff(&changed, |page| differ.push(page));
    assert_eq!(differ, [pages / 2, pages]);
    assert!((1..=2 * MOST).contains(&COMPARED.get()), "{} entries were compared", COMPARED.get());
}
