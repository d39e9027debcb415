//! The persistent page table: a radix tree in which a changed copy shares every untouched node
//! with the tree it was made from.
//!
//! Sixteen children a node keep both ends cheap: changing one page copies a few 128-byte nodes, and
//! finding one follows five pointers in a gibibyte of 4 KiB pages. Making a copy costs
//! O(changes x height), comparing two costs O(nodes that differ): equal pointers are equal subtrees.

use std::sync::Arc;

const BITS: u32 = 4;
const FAN_OUT: usize = 1 << BITS;

/// Invariant: every node below `Inner` at height h has height h - 1, `Leaf` is height 0, and no
/// node is without children.
enum Node<T> {
    Leaf([Option<Arc<T>>; FAN_OUT]),
    Inner([Option<Arc<Node<T>>>; FAN_OUT]),
}

/// Entries for some of the pages `0..capacity`.
pub(crate) struct Table<T> {
    root: Option<Arc<Node<T>>>,
    height: u32,
    len: usize,
}

impl<T> Table<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        let mut height = 0;
        while capacity > 1 << (BITS * (height + 1)).min(usize::BITS - 1) {
            height += 1;
        }
        Self { root: None, height, len: 0 }
    }

    /// The number of entries.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&self, page: usize) -> Option<&Arc<T>> {
        let mut node = self.root.as_deref()?;
        let mut height = self.height;
        if page.checked_shr(BITS * (height + 1)).unwrap_or(0) != 0 {
            return None;
        }
        loop {
            let slot = slot(page, height);
            match node {
                Node::Leaf(entries) => return entries[slot].as_ref(),
                Node::Inner(children) => node = children[slot].as_deref()?,
            }
            height -= 1;
        }
    }

    /// A table with these entries added or replaced. `changes` ascend by page.
    pub(crate) fn with(&self, changes: &[(usize, Arc<T>)]) -> Self {
        debug_assert!(changes.is_sorted_by(|a, b| a.0 < b.0));
        if changes.is_empty() {
            return Self { root: self.root.clone(), height: self.height, len: self.len };
        }
        let mut added = 0;
        let root = with(self.root.as_deref(), self.height, changes, &mut added);
        Self { root: Some(Arc::new(root)), height: self.height, len: self.len + added }
    }

    /// The entries of the pages `0..capacity`, and room for those that are missing.
    pub(crate) fn resized(&self, capacity: usize) -> Self {
        let height = self.height.max(Self::new(capacity).height);
        let (root, removed) = match &self.root {
            Some(root) => below(root, self.height, capacity),
            None => (None, 0),
        };
        Self { root: lifted(root, self.height, height), height, len: self.len - removed }
    }

    /// Calls `visit` with each entry in ascending order.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(usize, &Arc<T>)) {
        if let Some(root) = &self.root {
            for_each(root, self.height, 0, &mut visit);
        }
    }

    /// Calls `visit` with each page whose entry is not the same object in both tables, ascending.
    pub(crate) fn diff(&self, other: &Self, mut visit: impl FnMut(usize)) {
        let height = self.height.max(other.height);
        let root = |table: &Self| lifted(table.root.clone(), table.height, height);
        diff(root(self).as_ref(), root(other).as_ref(), height, 0, &mut visit);
    }
}

fn slot(page: usize, height: u32) -> usize {
    (page >> (BITS * height)) & (FAN_OUT - 1)
}

fn with<T>(old: Option<&Node<T>>, height: u32, changes: &[(usize, Arc<T>)], added: &mut usize) -> Node<T> {
    if height == 0 {
        let mut entries = match old {
            Some(Node::Leaf(entries)) => entries.clone(),
            _ => Default::default(),
        };
        for (page, entry) in changes {
            let old = entries[slot(*page, 0)].replace(Arc::clone(entry));
            *added += usize::from(old.is_none());
        }
        return Node::Leaf(entries);
    }
    let mut children = match old {
        Some(Node::Inner(children)) => children.clone(),
        _ => Default::default(),
    };
    for below in changes.chunk_by(|a, b| slot(a.0, height) == slot(b.0, height)) {
        let child = &mut children[slot(below[0].0, height)];
        *child = Some(Arc::new(with(child.as_deref(), height - 1, below, added)));
    }
    Node::Inner(children)
}

/// The same tree under as many more nodes as it is lower than `to`.
fn lifted<T>(root: Option<Arc<Node<T>>>, from: u32, to: u32) -> Option<Arc<Node<T>>> {
    let mut root = root?;
    for _ in from..to {
        let mut children: [Option<Arc<Node<T>>>; FAN_OUT] = Default::default();
        children[0] = Some(root);
        root = Arc::new(Node::Inner(children));
    }
    Some(root)
}

/// The entries of `node` below `limit`, a page counted from the node's first, and the number of others.
fn below<T>(node: &Arc<Node<T>>, height: u32, limit: usize) -> (Option<Arc<Node<T>>>, usize) {
    let first_beyond = limit.checked_shr(BITS * height).unwrap_or(0);
    if first_beyond >= FAN_OUT {
        return (Some(Arc::clone(node)), 0);
    }
    let mut removed = 0;
    let rest = match &**node {
        Node::Leaf(entries) => {
            let mut entries = entries.clone();
            entries[first_beyond..]
                .iter_mut()
                .for_each(|entry| removed += usize::from(entry.take().is_some()));
            entries.iter().any(Option::is_some).then_some(Node::Leaf(entries))
        }
        Node::Inner(children) => {
            let mut children = children.clone();
            for child in &mut children[first_beyond + 1..] {
                if let Some(child) = child.take() {
                    for_each(&child, height - 1, 0, &mut |_, _| removed += 1);
                }
            }
            if let Some(child) = children[first_beyond].take() {
                let (rest, beyond) = below(&child, height - 1, limit - (first_beyond << (BITS * height)));
                removed += beyond;
                children[first_beyond] = rest;
            }
            children.iter().any(Option::is_some).then_some(Node::Inner(children))
        }
    };
    (if removed == 0 { Some(Arc::clone(node)) } else { rest.map(Arc::new) }, removed)
}

fn for_each<T>(node: &Node<T>, height: u32, prefix: usize, visit: &mut impl FnMut(usize, &Arc<T>)) {
    match node {
        Node::Leaf(entries) => {
            for (slot, entry) in entries.iter().enumerate() {
                if let Some(entry) = entry {
                    visit(prefix + slot, entry);
                }
            }
        }
        Node::Inner(children) => {
            for (slot, child) in children.iter().enumerate() {
                if let Some(child) = child {
                    for_each(child, height - 1, prefix + (slot << (BITS * height)), visit);
                }
            }
        }
    }
}

fn diff<T>(
    left: Option<&Arc<Node<T>>>,
    right: Option<&Arc<Node<T>>>,
    height: u32,
    prefix: usize,
    visit: &mut impl FnMut(usize),
) {
    match (left.map(|node| &**node), right.map(|node| &**node)) {
        (None, None) => {}
        (Some(one), None) | (None, Some(one)) => for_each(one, height, prefix, &mut |page, _| visit(page)),
        (Some(left), Some(right)) if std::ptr::eq(left, right) => {}
        (Some(Node::Leaf(left)), Some(Node::Leaf(right))) => {
            for (slot, (left, right)) in left.iter().zip(right).enumerate() {
                if left.as_ref().map(Arc::as_ptr) != right.as_ref().map(Arc::as_ptr) {
                    visit(prefix + slot);
                }
            }
        }
        (Some(Node::Inner(left)), Some(Node::Inner(right))) => {
            for (slot, (left, right)) in left.iter().zip(right).enumerate() {
                let prefix = prefix + (slot << (BITS * height));
                diff(left.as_ref(), right.as_ref(), height - 1, prefix, visit);
            }
        }
        _ => unreachable!("nodes of one height are of one kind"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn entries(table: &Table<u32>) -> BTreeMap<usize, u32> {
        let mut all = BTreeMap::new();
        table.for_each(|page, entry| assert!(all.insert(page, **entry).is_none()));
        all
    }

    /// As many pages as there can be addresses for, roughly.
    const VAST: usize = usize::MAX >> (usize::BITS / 8 * 3);

    fn changes(map: &BTreeMap<usize, u32>) -> Vec<(usize, Arc<u32>)> {
        map.iter().map(|(&page, &value)| (page, Arc::new(value))).collect()
    }

    proptest! {
        #[test]
        fn a_table_is_a_map_whose_old_versions_stay(
            capacity in prop::sample::select(vec![1_usize, 16, 17, 256, 257, 70_000, VAST]),
            steps in prop::collection::vec(prop::collection::btree_map(0_usize..usize::MAX, 0_u32..9, 0..50), 1..8),
        ) {
            let mut versions = vec![(Table::new(capacity), BTreeMap::new())];
            for step in steps {
                let step: BTreeMap<_, _> = step.into_iter().map(|(page, value)| (page % capacity, value)).collect();
                let (table, model) = versions.last().unwrap();
                let mut model = model.clone();
                let table = table.with(&changes(&step));
                model.extend(&step);
                versions.push((table, model));
            }
            for (table, model) in &versions {
                prop_assert_eq!(&entries(table), model);
                prop_assert_eq!(table.len(), model.len());
                for page in model.keys() {
                    prop_assert_eq!(table.get(*page).map(|value| **value), model.get(page).copied());
                }
            }
            for pair in versions.windows(2) {
                let mut differ = Vec::new();
                pair[0].0.diff(&pair[1].0, |page| differ.push(page));
                prop_assert!(differ.is_sorted());
                for page in pair[1].1.keys() {
                    let same = pair[0].0.get(*page).map(Arc::as_ptr) == pair[1].0.get(*page).map(Arc::as_ptr);
                    prop_assert_eq!(differ.contains(page), !same);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_resized_table_has_what_is_below(
            capacities in prop::collection::vec(prop::sample::select(vec![0_usize, 1, 15, 16, 17, 250, 257, 5_000, VAST]), 2..6),
            pages in prop::collection::btree_set(0_usize..6_000, 0..80),
        ) {
            let mut model: BTreeMap<usize, u32> =
                pages.into_iter().filter(|&page| page < capacities[0]).map(|page| (page, 1)).collect();
            let mut table = Table::new(capacities[0]).with(&changes(&model));
            for &capacity in &capacities {
                let resized = table.resized(capacity);
                let mut differ = Vec::new();
                table.diff(&resized, |page| differ.push(page));
                let gone: Vec<_> = model.split_off(&capacity).into_keys().collect();
                prop_assert_eq!(differ, gone);
                prop_assert_eq!(&entries(&resized), &model);
                prop_assert_eq!(resized.len(), model.len());
                prop_assert!(resized.get(capacity).is_none() && resized.get(usize::MAX).is_none());
                table = resized;
                if let Some(last) = capacity.checked_sub(1) {
                    table = table.with(&[(last, Arc::new(7))]);
                    model.insert(last, 7);
                    prop_assert_eq!(table.get(last).map(|value| **value), Some(7));
                }
            }
        }
    }

    #[test]
    fn equal_subtrees_are_skipped_by_pointer() {
        let pages = if cfg!(miri) { 600 } else { 10_000 };
        let base: BTreeMap<_, _> = (0..pages).map(|page| (page, 1)).collect();
        let base = Table::new(pages).with(&changes(&base));
        let changed = base.with(&[(pages / 2, Arc::new(2))]);
        let mut differ = Vec::new();
        base.diff(&changed, |page| differ.push(page));
        assert_eq!(differ, [pages / 2]);
    }
}
