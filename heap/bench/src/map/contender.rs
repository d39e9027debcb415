//! Maps that take turns.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Change, Map, Script};
use crate::measure::time;

/// A map with marks, whose calls are timed.
pub trait Contender {
    /// The name in tables and plots.
    fn name(&self) -> &'static str;

    /// Makes changes, and keeps a mark. Returns the times of the changes and of the mark.
    ///
    /// # Errors
    ///
    /// Those of the map.
    fn step(&mut self, changes: &[Change]) -> Result<[Duration; 2]>;

    /// Makes changes and undoes them. Returns the time to go back, or `None` if the map cannot go back.
    ///
    /// # Errors
    ///
    /// Those of the map.
    fn undo(&mut self, changes: &[Change]) -> Result<Option<Duration>>;

    /// Looks up keys. Returns the time, or `None` if it is not measured.
    fn read(&self, keys: &[String]) -> Option<Duration>;

    /// Hashes the map. `None` if it is in another process.
    fn hash(&self) -> Option<u64>;
}

/// A [`Map`] that is a [`Contender`].
pub struct Timed<M: Map> {
    map: M,
    marks: VecDeque<M::Mark>,
    keep: usize,
}

impl<M: Map> Timed<M> {
    /// Makes a map of so many entries, and its first mark. `keep` is how many marks are kept at a time.
    ///
    /// # Errors
    ///
    /// Those of [`Map::build`].
    pub fn new(entries: u64, keep: usize) -> Result<Self> {
        let mut map = M::build(entries)?;
        let marks = VecDeque::from([map.mark()?]);
        Ok(Self { map, marks, keep: keep.min(M::KEPT) })
    }

    /// Returns the map.
    pub fn map(&mut self) -> &mut M {
        &mut self.map
    }

    /// Returns the kept marks, the oldest first.
    #[must_use]
    pub fn marks(&self) -> &VecDeque<M::Mark> {
        &self.marks
    }

    /// Goes back to a kept mark.
    ///
    /// # Errors
    ///
    /// Those of [`Map::back_to`], and an error if there is no such mark.
    pub fn back_to(&mut self, mark: usize) -> Result<Duration> {
        let mark = self.marks.get(mark).context("going back to a mark that was not kept")?;
        let (back, duration) = time(|| self.map.back_to(mark));
        back.map(|()| duration)
    }
}

impl<M: Map> Contender for Timed<M> {
    fn name(&self) -> &'static str {
        M::NAME
    }

    fn step(&mut self, changes: &[Change]) -> Result<[Duration; 2]> {
        while self.marks.len() >= self.keep.max(1) {
            self.marks.pop_front();
        }
        let ((), changed) = time(|| self.map.change(changes));
        let (mark, marked) = time(|| self.map.mark());
        self.marks.push_back(mark?);
        Ok([changed, marked])
    }

    fn undo(&mut self, changes: &[Change]) -> Result<Option<Duration>> {
        self.map.change(changes);
        self.back_to(self.marks.len().saturating_sub(1)).map(Some)
    }

    fn read(&self, keys: &[String]) -> Option<Duration> {
        Some(time(|| std::hint::black_box(self.map.read(keys))).1)
    }

    fn hash(&self) -> Option<u64> {
        Some(self.map.hash())
    }
}

/// A contender, and the script of its changes, which is the same for all.
pub struct Player {
    /// The contender.
    pub contender: Box<dyn Contender>,
    /// Its changes.
    pub script: Script,
}

impl Player {
    /// Pairs a contender with the script that all contenders have.
    #[must_use]
    pub fn new(contender: impl Contender + 'static, entries: u64) -> Self {
        Self { contender: Box::new(contender), script: Script::new(1, entries) }
    }
}
