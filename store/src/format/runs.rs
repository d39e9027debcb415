//! Reads and writes runs: the part of a manifest that lists blocks.
//!
//! A [`Spool`](crate::spool::Spool) has the same form.

use std::io::{self, Read, Write};

use super::{Wrong, damaged, u64_at};
use crate::id::Id;

/// The greatest number of blocks in a run.
///
/// It limits the number of blocks that a short manifest can list.
const RUN: usize = 4096;

const HEAD: usize = 17;
const END: u8 = 0;
const HASHES: u8 = 1;
const ZEROES: u8 = 2;

/// A block that a manifest lists: its number, and its hash (`None` for zeroes).
pub(crate) type Entry = (u64, Option<Id>);

/// Writes runs. Entries are added in ascending order.
pub(crate) struct RunWriter<W> {
    out: W,
    kind: u8,
    first: u64,
    count: u64,
    hashes: Vec<u8>,
    entries: u64,
}

impl<W: Write> RunWriter<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, kind: END, first: 0, count: 0, hashes: Vec::new(), entries: 0 }
    }

    /// Adds a block. Its number must be higher than those of the blocks before.
    pub(crate) fn push(&mut self, (block, hash): Entry) -> io::Result<()> {
        let kind = if hash.is_some() { HASHES } else { ZEROES };
        let follows = kind == self.kind && block == self.first + self.count;
        if !follows || self.count == RUN as u64 {
            self.end_run()?;
            (self.kind, self.first) = (kind, block);
        }
        self.count += 1;
        self.entries += 1;
        if let Some(hash) = hash {
            self.hashes.extend(hash.as_bytes());
        }
        Ok(())
    }

    /// Returns the number of blocks that were added.
    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    /// Writes the end of the runs.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.end_run()?;
        self.out.write_all(&[END; HEAD])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn end_run(&mut self) -> io::Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        let mut head = [self.kind; HEAD];
        head[1..9].copy_from_slice(&self.first.to_le_bytes());
        head[9..].copy_from_slice(&self.count.to_le_bytes());
        self.out.write_all(&head)?;
        self.out.write_all(&self.hashes)?;
        self.hashes.clear();
        self.count = 0;
        Ok(())
    }
}

/// Reads runs, and checks that they ascend and end below `limit`.
pub(crate) struct RunReader<R> {
    input: R,
    limit: u64,
    /// The number after that of the last block that was returned.
    next: u64,
    /// The number of blocks of the current run that were not returned yet.
    left: u64,
    /// The hashes of the current run; empty if it consists of zeroes.
    hashes: Vec<u8>,
    read: u64,
    ended: bool,
}

impl<R: Read> RunReader<R> {
    pub(crate) fn new(input: R, limit: u64) -> Self {
        Self { input, limit, next: 0, left: 0, hashes: Vec::new(), read: 0, ended: false }
    }

    /// Returns the next block, or `None` after the last one.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, Wrong> {
        if self.left == 0 && (self.ended || !self.next_run()?) {
            return Ok(None);
        }
        let hash = self
            .hashes
            .len()
            .checked_sub(usize::try_from(self.left).unwrap_or(usize::MAX).saturating_mul(32));
        let hash = hash.and_then(|at| self.hashes.get(at..at + 32)).and_then(|bytes| bytes.first_chunk());
        let entry = (self.next, hash.map(|bytes| Id::from_bytes(*bytes)));
        self.next += 1;
        self.left -= 1;
        self.read += 1;
        Ok(Some(entry))
    }

    /// Returns the number of blocks that were returned.
    pub(crate) fn entries(&self) -> u64 {
        self.read
    }

    /// Returns the input.
    pub(crate) fn input(&mut self) -> &mut R {
        &mut self.input
    }

    fn next_run(&mut self) -> Result<bool, Wrong> {
        let mut head = [0; HEAD];
        self.input.read_exact(&mut head)?;
        let (kind, first, count) = (head[0], u64_at(&head, 1), u64_at(&head, 9));
        self.hashes.clear();
        if head == [END; HEAD] {
            self.ended = true;
            return Ok(false);
        }
        let fits = first.checked_add(count).is_some_and(|end| end <= self.limit);
        let len = usize::try_from(count).ok().filter(|len| (1..=RUN).contains(len));
        let (Some(len), true, HASHES | ZEROES) = (len, fits && first >= self.next, kind) else {
            return damaged(format!("its run of {count} blocks at block {first} is not valid"));
        };
        if kind == HASHES {
            self.hashes.resize(len * 32, 0);
            self.input.read_exact(&mut self.hashes)?;
        }
        (self.next, self.left) = (first, count);
        Ok(true)
    }
}
