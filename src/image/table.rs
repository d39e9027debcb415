//! The page table of an image: a persistent map from page numbers to entries.
//!
//! This file decides how the entries are arranged and shared. Its caller (`image/mod.rs`) decides what an entry is: a
//! captured page.
//!
//! The table is a B+ tree. A changed copy of a table shares all nodes that did not change with the old table. A node
//! has up to 16 entries, however far apart their pages are. So 16 new pages need about one allocation, whether they are
//! scattered over a large image or in a row. To change one page among many, a few small nodes are copied.
//!
//! Making a changed copy takes O(changes + nodes copied) time. Comparing two tables takes O(nodes that differ) time,
//! since two pointers to the same node mean equal subtrees.

use std::cell::Cell;
use std::cmp::Ordering;
use std::sync::Arc;
use std::vec;

/// The most items of a node.
///
/// With larger nodes, a change of one page takes longer, since the copy of its leaf counts one more reference to each
/// of the other pages in the leaf. With smaller nodes, the tree is higher. DESIGN.md has measurements.
const MOST: usize = 16;

/// A node of the tree. Its items are entries or child nodes, each with a page number.
///
/// Invariant: no node is empty. The page numbers ascend. The page number of a child is the first page for which the
/// child has an entry. All leaves of a tree are at the same height.
enum Node<E> {
    Leaf(Arc<[(usize, E)]>),
    Inner(Arc<[(usize, Node<E>)]>),
}

/// A persistent map from page numbers to entries.
pub(crate) struct Table<E> {
    root: Option<Node<E>>,
    len: usize,
}

/// Finds entries of a table. Searches for pages in ascending order are the fastest.
pub(crate) struct Lookup<'a, E> {
    table: &'a Table<E>,
    /// The entries of the leaf that was searched last, from the place of the last search on.
    entries: Cell<&'a [(usize, E)]>,
}

impl<E> Node<E> {
    /// Whether both are the same node in memory.
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Leaf(entries), Self::Leaf(other)) => Arc::ptr_eq(entries, other),
            (Self::Inner(children), Self::Inner(other)) => Arc::ptr_eq(children, other),
            _ => false,
        }
    }
}

impl<E> Clone for Node<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Leaf(entries) => Self::Leaf(Arc::clone(entries)),
            Self::Inner(children) => Self::Inner(Arc::clone(children)),
        }
    }
}

impl<E: Clone + PartialEq> Table<E> {
    pub(crate) const fn new() -> Self {
        Self { root: None, len: 0 }
    }

    /// The number of entries.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&self, page: usize) -> Option<&E> {
        of(up_to(self.leaf(page), page), page)
    }

    pub(crate) fn lookup(&self) -> Lookup<'_, E> {
        Lookup { table: self, entries: Cell::new(&[]) }
    }

    /// Returns the entries of the only leaf that may have an entry of `page`.
    fn leaf(&self, page: usize) -> &[(usize, E)] {
        let Some(mut node) = self.root.as_ref() else { return &[] };
        loop {
            match node {
                Node::Leaf(entries) => return entries,
                Node::Inner(children) => {
                    let after = children.partition_point(|child| child.0 <= page);
                    node = &children[after.saturating_sub(1)].1;
                }
            }
        }
    }

    /// Makes a table in which these entries are added or replaced. `changes` ascend by page.
    pub(crate) fn with(&self, changes: Vec<(usize, E)>) -> Self {
        debug_assert!(changes.is_sorted_by(|a, b| a.0 < b.0));
        if changes.is_empty() {
            return Self { root: self.root.clone(), len: self.len };
        }
        let (count, mut nodes) = (changes.len(), Vec::new());
        let entries = Vec::with_capacity(count.min(MOST) + MOST);
        let mut merge = Merge { changes: changes.into_iter(), entries, added: 0 };
        match &self.root {
            Some(root) => merge.node(root, count, &mut nodes),
            None => merge.leaf(&[], count, &mut nodes),
        }
        while nodes.len() > 1 {
            let mut children = std::mem::take(&mut nodes);
            pack(&mut children, &mut nodes, Node::Inner);
        }
        Self { root: nodes.pop().map(|(_, root)| root), len: self.len + merge.added }
    }

    /// Makes a table with only the entries of the pages below `limit`.
    pub(crate) fn below(&self, limit: usize) -> Self {
        let Some(mut root) = self.root.as_ref().and_then(|root| below(root, limit)) else {
            return Self::new();
        };
        while let Node::Inner(children) = &root
            && let [(_, child)] = &**children
        {
            root = child.clone();
        }
        let mut removed = 0;
        if let Some(old) = &self.root {
            for_each_from(old, limit, &mut |_, _| removed += 1);
        }
        Self { root: Some(root), len: self.len - removed }
    }

    /// Calls `visit` with each entry in ascending order.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(usize, &E)) {
        if let Some(root) = &self.root {
            for_each_from(root, 0, &mut visit);
        }
    }

    /// Calls `visit` with each page whose entries in the two tables differ, in ascending order.
    ///
    /// This includes the pages for which only one of the tables has an entry.
    pub(crate) fn diff(&self, other: &Self, mut visit: impl FnMut(usize)) {
        let (mut left, mut right) = (Walk::of(self), Walk::of(other));
        while let (Some((a, at)), Some((b, other))) = (left.next(), right.next()) {
            // The walk at the lower page advances. If both are at the same page, the walk at the higher node advances,
            // until both are at nodes of the same height, which may be the same node.
            match a.cmp(&b).then_with(|| other.height().cmp(&at.height())) {
                Ordering::Less => left.step(&mut visit),
                Ordering::Greater => right.step(&mut visit),
                Ordering::Equal if at.same(&other) => {
                    left.skip();
                    right.skip();
                }
                Ordering::Equal => {
                    left.step(&mut visit);
                    right.step(&mut |_| ());
                }
            }
        }
        for mut rest in [left, right] {
            while rest.next().is_some() {
                rest.step(&mut visit);
            }
        }
    }

    /// Calls `visit` with each entry in nodes that no other table shares.
    pub(crate) fn for_each_unshared(&mut self, mut visit: impl FnMut(&mut E)) {
        if let Some(root) = &mut self.root {
            for_each_unshared(root, &mut visit);
        }
    }
}

impl<'a, E: Clone + PartialEq> Lookup<'a, E> {
    #[inline]
    pub(crate) fn get(&self, page: usize) -> Option<&'a E> {
        let entries = match self.entries.get() {
            [_, rest @ ..] if rest.first().is_some_and(|next| next.0 == page) => rest,
            entries @ [first, .., last] if (first.0..=last.0).contains(&page) => up_to(entries, page),
            _ => up_to(self.table.leaf(page), page),
        };
        self.entries.set(entries);
        of(entries, page)
    }
}

/// Skips the entries before the last one whose page is `page` or lower. Skips none if all pages are higher.
fn up_to<E>(entries: &[(usize, E)], page: usize) -> &[(usize, E)] {
    &entries[entries.partition_point(|entry| entry.0 <= page).saturating_sub(1)..]
}

/// Returns the first entry if it is the entry of `page`.
fn of<E>(entries: &[(usize, E)], page: usize) -> Option<&E> {
    entries.first().filter(|entry| entry.0 == page).map(|entry| &entry.1)
}

/// Makes as few nodes of `items` as possible, all of about the same size, and appends them to `nodes`.
///
/// `items` must not be empty. It is empty afterwards.
fn pack<T, E>(
    items: &mut Vec<(usize, T)>,
    nodes: &mut Vec<(usize, Node<E>)>,
    node: impl Fn(Arc<[(usize, T)]>) -> Node<E>,
) {
    let mut push = |items: Arc<[(usize, T)]>| nodes.push((items[0].0, node(items)));
    let mut items = items.drain(..);
    while items.len() > MOST {
        let even = items.len().div_ceil(items.len().div_ceil(MOST));
        push(items.by_ref().take(even).collect());
    }
    push(items.collect());
}

/// The state of making a changed copy of a tree.
struct Merge<E> {
    /// The changes that are still to be merged.
    changes: vec::IntoIter<(usize, E)>,
    /// The old and new entries that replace those of the current leaf. Empty between two leaves.
    ///
    /// This is a field so that all leaves use the same memory.
    entries: Vec<(usize, E)>,
    /// The number of changes so far that did not replace an entry.
    added: usize,
}

impl<E: Clone> Merge<E> {
    /// Makes the nodes that replace `old` after the next `count` changes, and appends them to `nodes`.
    fn node(&mut self, old: &Node<E>, mut count: usize, nodes: &mut Vec<(usize, Node<E>)>) {
        let old = match old {
            Node::Leaf(entries) => return self.leaf(entries, count, nodes),
            Node::Inner(children) => children,
        };
        let mut children = Vec::with_capacity(MOST + 1);
        let mut rest = &**old;
        while count > 0 {
            let changes = &self.changes.as_slice()[..count];
            let at = rest.partition_point(|child| child.0 <= changes[0].0).saturating_sub(1);
            let here =
                rest.get(at + 1).map_or(count, |next| changes.partition_point(|change| change.0 < next.0));
            children.extend_from_slice(&rest[..at]);
            self.node(&rest[at].1, here, &mut children);
            rest = &rest[at + 1..];
            count -= here;
        }
        children.extend_from_slice(rest);
        pack(&mut children, nodes, Node::Inner);
    }

    /// Makes the leaves that replace a leaf with the entries `old`, and appends them to `nodes`.
    fn leaf(&mut self, mut old: &[(usize, E)], count: usize, nodes: &mut Vec<(usize, Node<E>)>) {
        let before = old.len();
        for (page, entry) in self.changes.by_ref().take(count) {
            let has_less = old.first().is_some_and(|entry| entry.0 < page);
            let less = if has_less { old.partition_point(|entry| entry.0 < page) } else { 0 };
            self.entries.extend_from_slice(&old[..less]);
            let same = old.get(less).is_some_and(|entry| entry.0 == page);
            old = &old[less + usize::from(same)..];
            self.entries.push((page, entry));
        }
        self.entries.extend_from_slice(old);
        self.added += self.entries.len() - before;
        pack(&mut self.entries, nodes, Node::Leaf);
    }
}

/// Makes a node with only the entries of `node` below `limit`. Returns `None` if there are none.
fn below<E: Clone>(node: &Node<E>, limit: usize) -> Option<Node<E>> {
    match node {
        Node::Leaf(entries) => match entries.partition_point(|entry| entry.0 < limit) {
            0 => None,
            count if count == entries.len() => Some(node.clone()),
            count => Some(Node::Leaf(entries[..count].into())),
        },
        Node::Inner(children) => {
            let whole = children.partition_point(|child| child.0 < limit).checked_sub(1)?;
            let last = below(&children[whole].1, limit)?;
            if whole + 1 == children.len() && last.same(&children[whole].1) {
                return Some(node.clone());
            }
            let last = (children[whole].0, last);
            Some(Node::Inner(children[..whole].iter().cloned().chain([last]).collect()))
        }
    }
}

/// Calls `visit` with the entries of the pages from `start` on.
fn for_each_from<E>(node: &Node<E>, start: usize, visit: &mut impl FnMut(usize, &E)) {
    match node {
        Node::Leaf(entries) => {
            let before = entries.partition_point(|entry| entry.0 < start);
            entries[before..].iter().for_each(|(page, entry)| visit(*page, entry));
        }
        Node::Inner(children) => {
            let after = children.partition_point(|child| child.0 <= start);
            children[after.saturating_sub(1)..]
                .iter()
                .for_each(|(_, child)| for_each_from(child, start, visit));
        }
    }
}

/// Calls `visit` with the entries of `node`, except those in nodes that another table shares.
fn for_each_unshared<E>(node: &mut Node<E>, visit: &mut impl FnMut(&mut E)) {
    match node {
        Node::Leaf(entries) => {
            let entries = unshared(entries).into_iter().flatten();
            entries.for_each(|(_, entry)| visit(entry));
        }
        Node::Inner(children) => {
            let children = unshared(children).into_iter().flatten();
            children.for_each(|(_, child)| for_each_unshared(child, visit));
        }
    }
}

/// Returns the items of a node if no other reference to the node exists.
fn unshared<T>(items: &mut Arc<[T]>) -> Option<&mut [T]> {
    // Most nodes are shared. Reading the count takes less time than `get_mut`, which writes to a counter.
    if Arc::strong_count(items) == 1 { Arc::get_mut(items) } else { None }
}

/// A walk over a table in ascending order, which can skip whole nodes.
struct Walk<'a, E> {
    /// The parts that are still to be visited, each with its first page. The last part is visited next.
    ahead: Vec<(usize, Part<'a, E>)>,
}

/// An entry, or a node of which no entry was visited yet.
enum Part<'a, E> {
    Entry(&'a E),
    /// A node and its height.
    Node(&'a Node<E>, usize),
}

impl<'a, E: PartialEq> Walk<'a, E> {
    fn of(table: &'a Table<E>) -> Self {
        let Some(root) = &table.root else { return Self { ahead: Vec::new() } };
        let (mut height, mut node) = (1, root);
        let first = loop {
            match node {
                Node::Leaf(entries) => break entries[0].0,
                Node::Inner(children) => (height, node) = (height + 1, &children[0].1),
            }
        };
        Self { ahead: vec![(first, Part::Node(root, height))] }
    }

    /// Returns the next part and its first page, without going past it.
    fn next(&self) -> Option<(usize, Part<'a, E>)> {
        self.ahead.last().copied()
    }

    /// Goes past the next part.
    fn skip(&mut self) {
        self.ahead.pop();
    }

    /// Replaces the next part by its items if it is a node. If it is an entry, calls `visit` with its page and goes
    /// past it.
    fn step(&mut self, visit: &mut impl FnMut(usize)) {
        match self.ahead.pop() {
            None => {}
            Some((page, Part::Entry(_))) => visit(page),
            Some((_, Part::Node(Node::Leaf(entries), _))) => {
                let entries = entries.iter().rev();
                self.ahead.extend(entries.map(|(page, entry)| (*page, Part::Entry(entry))));
            }
            Some((_, Part::Node(Node::Inner(children), height))) => {
                let children = children.iter().rev();
                self.ahead.extend(children.map(|(page, child)| (*page, Part::Node(child, height - 1))));
            }
        }
    }
}

impl<E: PartialEq> Part<'_, E> {
    /// The height of a node, which is 1 for a leaf; 0 for an entry.
    fn height(&self) -> usize {
        match self {
            Self::Entry(_) => 0,
            Self::Node(_, height) => *height,
        }
    }

    /// Whether both are equal entries or the same node.
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Entry(entry), Self::Entry(other)) => entry == other,
            (Self::Node(node, _), Self::Node(other, _)) => node.same(other),
            _ => false,
        }
    }
}

impl<E> Clone for Part<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Part<'_, E> {}

#[cfg(test)]
mod tests;
