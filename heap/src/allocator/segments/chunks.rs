//! Small blocks, cut from chunks of one class.
//!
//! Blocks are taken from the *current* chunk of their class until it is full, even if blocks are free elsewhere: so
//! blocks that are allocated one after the other are in few pages. Then the next *listed* chunk becomes current. A chunk
//! is listed once a quarter of it is free. `Entry::trigger` is the number of free blocks at which something happens:
//!
//! | the chunk | its trigger | what happens |
//! |---|---|---|
//! | is current | [`NEVER`] | |
//! | is not listed | a quarter of its blocks | it is listed |
//! | is listed | all of its blocks | its pages are free again, if other chunks are listed |
//!
//! The last listed chunk is kept: else a program that allocates and frees one block would take and give back pages.

use super::super::Grow;
use super::classes::{CLASSES, Class};
use super::state::{Arena, Entry, PAGE, bug, offset_of, page_at};
use super::{runs, state};
use std::cell::Cell;

/// The trigger of the current chunk.
pub(super) const NEVER: u16 = u16::MAX;

/// Takes a block of a class. Returns its offset.
#[inline]
pub(super) fn allocate(arena: Arena<'_>, class: usize, more: &impl Grow) -> Option<usize> {
    let page = arena.head().current[class].get();
    if page != 0 {
        // SAFETY: the current chunk is inside the arena.
        let chunk = unsafe { arena.entry_unchecked(page) };
        if let Some(block) = take(chunk) {
            return Some(offset_of(page) + block * CLASSES[class].size as usize);
        }
    }
    refill(arena, class, more)
}

/// Takes the first free block of a chunk.
#[inline]
fn take(chunk: &Entry) -> Option<usize> {
    for (i, word) in chunk.bits.iter().enumerate() {
        let bits = word.get();
        if bits != 0 {
            word.set(bits & (bits - 1));
            chunk.count.set(chunk.count.get().wrapping_sub(1));
            return Some(64 * i + bits.trailing_zeros() as usize);
        }
    }
    None
}

/// Makes another chunk current, because the current one is full, and takes a block of it.
#[cold]
#[inline(never)]
fn refill(arena: Arena<'_>, class: usize, more: &impl Grow) -> Option<usize> {
    let (head, size) = (arena.head(), &CLASSES[class]);
    let listed = head.listed[class].get();
    let page = if listed == 0 {
        make(arena, class, more)?
    } else {
        unlist(arena, class, listed);
        listed
    };
    let full = head.current[class].replace(page);
    if full != 0 {
        arena.entry(full).trigger.set(size.quarter);
    }
    let chunk = arena.entry(page);
    chunk.trigger.set(NEVER);
    let block = take(chunk)?;
    Some(offset_of(page) + block * size.size as usize)
}

/// Makes a chunk of free pages.
#[allow(clippy::cast_possible_truncation, reason = "a class is less than 35")]
fn make(arena: Arena<'_>, class: usize, more: &impl Grow) -> Option<u32> {
    let size = &CLASSES[class];
    let page = runs::allocate(arena, u32::from(size.pages), more)?;
    let chunk = arena.entry(page);
    chunk.kind.set(Entry::CHUNK);
    chunk.class.set(class as u8);
    chunk.count.set(size.capacity);
    for (word, bits) in chunk.bits.iter().zip(all_free(size)) {
        word.set(bits);
    }
    for i in 1..size.pages {
        let part = arena.entry(page + u32::from(i));
        part.kind.set(Entry::PART);
        part.class.set(i);
    }
    Some(page)
}

/// Returns the bits of a chunk without blocks in use.
pub(super) fn all_free(size: &Class) -> [u64; 4] {
    let mut bits = [0; 4];
    for block in 0..usize::from(size.capacity) {
        bits[block / 64] |= 1 << (block % 64);
    }
    bits
}

/// Frees the block at an offset.
///
/// # Safety
///
/// The block is one of this class, and in use.
#[inline]
pub(super) unsafe fn deallocate(arena: Arena<'_>, offset: usize, class: usize) {
    if cfg!(debug_assertions) {
        plausible(arena, offset, class);
    }
    let mut page = page_at(offset);
    // SAFETY: a block in use is inside the arena.
    let mut chunk = unsafe { arena.entry_unchecked(page) };
    if chunk.kind.get() == Entry::PART {
        page -= u32::from(chunk.class.get());
        // SAFETY: the first page of a chunk is inside the arena.
        chunk = unsafe { arena.entry_unchecked(page) };
    }
    let block = CLASSES[class].block_at(offset - offset_of(page));
    let word = &chunk.bits[block / 64 % 4];
    word.set(word.get() | 1 << (block % 64));
    let free = chunk.count.get().wrapping_add(1);
    chunk.count.set(free);
    if free >= chunk.trigger.get() {
        triggered(arena, class, page);
    }
}

/// Lists a chunk of which a quarter is free, or gives back the pages of one that is entirely free.
#[cold]
#[inline(never)]
fn triggered(arena: Arena<'_>, class: usize, page: u32) {
    let (head, size, chunk) = (arena.head(), &CLASSES[class], arena.entry(page));
    let first = head.listed[class].get();
    if chunk.trigger.get() != size.capacity {
        chunk.trigger.set(size.capacity);
        chunk.next.set(first);
        state::put(&chunk.prev, 0);
        if first != 0 {
            arena.entry(first).prev.set(page);
        }
        head.listed[class].set(page);
    } else if first != page || chunk.next.get() != 0 {
        unlist(arena, class, page);
        for i in 1..u32::from(size.pages) {
            arena.entry(page + i).kind.set(Entry::INSIDE);
        }
        runs::free(arena, page, u32::from(size.pages));
    }
}

/// Takes a chunk out of the list of its class.
fn unlist(arena: Arena<'_>, class: usize, page: u32) {
    unlink(arena, &arena.head().listed[class], page);
}

/// Takes an entry out of a list.
pub(super) fn unlink(arena: Arena<'_>, first: &Cell<u32>, page: u32) {
    let entry = arena.entry(page);
    let (next, prev) = (entry.next.get(), entry.prev.get());
    if next != 0 {
        arena.entry(next).prev.set(prev);
    }
    if prev == 0 {
        first.set(next);
    } else {
        arena.entry(prev).next.set(next);
    }
}

/// Ends the process if a block cannot be one of this class that is in use.
#[inline(never)]
fn plausible(arena: Arena<'_>, offset: usize, class: usize) {
    if offset >= arena.len() {
        bug("a block was freed that is not in the arena");
    }
    let mut page = page_at(offset);
    if arena.entry(page).kind.get() == Entry::PART {
        page -= u32::from(arena.entry(page).class.get());
    }
    let (chunk, size) = (arena.entry(page), &CLASSES[class]);
    let within = offset - offset_of(page);
    let block = size.block_at(within);
    if chunk.kind.get() != Entry::CHUNK || usize::from(chunk.class.get()) != class {
        bug("a block was freed with another layout than it was allocated with");
    }
    if block * size.size as usize != within || block >= usize::from(size.capacity) {
        bug("a block was freed at an address inside of it");
    }
    if chunk.bits[block / 64].get() >> (block % 64) & 1 == 1 {
        bug("a block was freed twice");
    }
}

const _: () = assert!(PAGE / 16 <= 256);
