//! Restoring a view to the snapshots of a tree, in random order.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use memsnap::{CowView, Snapshot};
use rand::RngExt;
use rand_xoshiro::Xoshiro256PlusPlus;

use super::Scale;
use crate::case::{Case, GIB};
use crate::competitor::{Competitor, Limit, Region};
use crate::harness::{nanoseconds, time};
use crate::image::Image;
use crate::pages::{Change, Pattern, Residency, random_changes, read_all, rng, write};
use crate::results::{LIMIT, Metric, Results, SUBJECT};

pub(crate) const JUMP: Metric = Metric::nanoseconds("restore_to");

const NAME: &str = "tree";
const ANY_TWO: &str = "any two nodes";
const PARENT_AND_CHILD: &str = "parent and child";
const DEPTH: usize = 32;
const FAN_OUT: usize = 4;
/// Pages in which a node differs from its parent.
pub(crate) const CHANGED: usize = 64;
/// The most pages in which two nodes can differ.
const MOST: usize = 2 * DEPTH * CHANGED;

/// Returns the case of jumps between nodes that differ in at most `changed` pages, and in more than half as many.
pub(crate) fn anywhere(changed: usize, residency: Residency) -> Case {
    let case = Case::of_size(NAME, GIB, ANY_TWO).changed(changed).pattern(Pattern::Random);
    Case { residency: Some(residency), ..case }
}

/// Returns the case of jumps between a node and its parent.
pub(crate) fn neighbours(residency: Residency) -> Case {
    anywhere(CHANGED, residency).variant(PARENT_AND_CHILD)
}

/// Returns the upper ends of the ranges of differences by which jumps are grouped.
pub(crate) fn buckets() -> impl Iterator<Item = usize> {
    (0..).map(|power| CHANGED << power).take_while(|&bucket| bucket <= MOST)
}

struct Node {
    snapshot: Snapshot,
    parent: usize,
    children: Vec<usize>,
    depth: usize,
    /// For each changed page, the node that changed it last.
    pages: BTreeMap<usize, usize>,
}

pub(crate) fn run(scale: Scale, results: &mut Results) -> Result<()> {
    let image = Image::new(GIB)?;
    let root = Snapshot::from_slice(image.bytes())?;
    for residency in [Residency::Sparse, Residency::Resident] {
        eprintln!("tree: {residency}");
        let mut rng = rng(CHANGED);
        let mut view = root.view()?;
        if residency == Residency::Resident {
            read_all(&view);
        }
        let nodes = grow(&root, &mut view, scale.pick(200, 400), &mut rng)?;
        let mut jumps = Jumps::new(&image, view, &nodes, residency)?;
        let mut here = jumps.go(0, nodes.len() - 1, None)?;
        for _ in 0..scale.pick(200, 2000) {
            let next = neighbour(&nodes, here, &mut rng);
            here = jumps.go(here, next, Some(PARENT_AND_CHILD))?;
        }
        for _ in 0..scale.pick(500, 5_000) {
            here = jumps.go(here, rng.random_range(0..nodes.len()), Some(ANY_TWO))?;
        }
        for ((name, bucket), samples) in &jumps.samples {
            let case = anywhere(*bucket, residency).variant(name);
            results.add(&case, SUBJECT, JUMP, &samples.subject);
            results.add(&case, LIMIT, JUMP, &samples.limit);
        }
    }
    Ok(())
}

/// Makes a random tree. About half of the nodes are children of the node before, the others of a random node.
fn grow(
    root: &Snapshot,
    view: &mut CowView<'_>,
    count: usize,
    rng: &mut Xoshiro256PlusPlus,
) -> Result<Vec<Node>> {
    let node = |snapshot, parent, depth, pages| Node { snapshot, parent, children: Vec::new(), depth, pages };
    let mut nodes = vec![node(root.clone(), 0, 0, BTreeMap::new())];
    while nodes.len() < count {
        let last = nodes.len() - 1;
        let parent = if rng.random_bool(0.5) { last } else { rng.random_range(0..=last) };
        if nodes[parent].depth == DEPTH || nodes[parent].children.len() == FAN_OUT {
            continue;
        }
        view.restore_to(&nodes[parent].snapshot)?;
        let changes = random_changes(GIB / memsnap::page_size(), CHANGED, rng);
        write(view, &changes, nodes.len() as u64);
        let mut pages = nodes[parent].pages.clone();
        pages.extend(changes.iter().map(|change| (change.page, nodes.len())));
        let child = node(view.take_snapshot()?, parent, nodes[parent].depth + 1, pages);
        let number = nodes.len();
        nodes[parent].children.push(number);
        nodes.push(child);
    }
    Ok(nodes)
}

/// Chooses the parent or a child of a node, all with the same probability.
fn neighbour(nodes: &[Node], here: usize, rng: &mut Xoshiro256PlusPlus) -> usize {
    let children = &nodes[here].children;
    let choice = rng.random_range(0..children.len() + usize::from(here != 0));
    children.get(choice).copied().unwrap_or(nodes[here].parent)
}

struct Jumps<'a> {
    view: CowView<'a>,
    limit: Box<dyn Region>,
    nodes: &'a [Node],
    /// Times by the name of the jumps and by the range of their differences.
    samples: BTreeMap<(&'static str, usize), Samples>,
}

#[derive(Default)]
struct Samples {
    subject: Vec<f64>,
    limit: Vec<f64>,
}

impl<'a> Jumps<'a> {
    fn new(image: &Image, view: CowView<'a>, nodes: &'a [Node], residency: Residency) -> Result<Self> {
        let mut limit = Limit::WithEntries.open(image, &anywhere(MOST, residency))?;
        read_all(limit.bytes());
        // Makes all of these pages of the limit resident.
        let written: Vec<Change> =
            nodes.iter().flat_map(|node| node.pages.keys()).map(|&page| Change::first_word(page)).collect();
        limit.restore(&written)?;
        Ok(Self { view, limit, nodes, samples: BTreeMap::new() })
    }

    /// Restores the view to a node, and makes the limit copy as many pages. Records both times if there is a name.
    fn go(&mut self, from: usize, to: usize, name: Option<&'static str>) -> Result<usize> {
        let differing = difference(&self.nodes[from], &self.nodes[to]);
        let snapshot = &self.nodes[to].snapshot;
        let (done, subject) = time(|| self.view.restore_to(snapshot));
        done.context("restore_to")?;
        let (done, limit) = time(|| self.limit.restore(&differing));
        done?;
        let bucket = buckets().find(|&bucket| differing.len() <= bucket);
        if let (Some(bucket), Some(name), false) = (bucket, name, differing.is_empty()) {
            let samples = self.samples.entry((name, bucket)).or_default();
            samples.subject.push(nanoseconds(subject));
            samples.limit.push(nanoseconds(limit + self.limit.surcharge(&differing)));
        }
        Ok(to)
    }
}

/// Returns the pages in which two nodes differ, in ascending order.
fn difference(a: &Node, b: &Node) -> Vec<Change> {
    let mut pages: Vec<usize> = a.pages.keys().chain(b.pages.keys()).copied().collect();
    pages.sort_unstable();
    pages.dedup();
    pages.retain(|page| a.pages.get(page) != b.pages.get(page));
    pages.into_iter().map(Change::first_word).collect()
}
