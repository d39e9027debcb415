//! Size classes: how many bytes a small block occupies, and the chunks of units that such blocks are cut from.

use super::state::{ALIGN, UNIT};
use std::alloc::Layout;

/// How many classes there are.
pub(super) const COUNT: usize = 35;

/// The largest size of a small block.
pub(super) const LARGEST: usize = 8 << 10;

/// Sizes up to this one find their class in a table, in steps of 8.
const IN_TABLE: usize = 1 << 10;

/// The class of the first size that is not in the table.
const BEHIND_TABLE: usize = 23;

/// A class of small blocks.
pub(super) struct Class {
    /// The size of a block.
    pub(super) size: u32,
    /// 2^32 / `size`, rounded up: a multiplication instead of a division.
    reciprocal: u32,
    /// How many blocks a chunk has.
    pub(super) capacity: u16,
    /// A chunk that is not listed is listed as soon as this many of its blocks are free.
    pub(super) quarter: u16,
    /// How many units a chunk has.
    pub(super) units: u8,
}

impl Class {
    /// Returns the number of the block at `offset` in a chunk.
    ///
    /// The product is exact: an offset is under 2^16 and the error of the reciprocal under 2^13 / 2^32.
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "an offset divided by the size")]
    pub(super) fn block_at(&self, offset: usize) -> usize {
        ((offset as u64 * u64::from(self.reciprocal)) >> 32) as usize
    }
}

pub(super) static CLASSES: [Class; COUNT] = classes();
static TABLE: [u8; IN_TABLE / 8 + 1] = table();

/// 16 to 64 in steps of 8, to 128 in steps of 16, then four sizes in each doubling.
const fn size(class: usize) -> usize {
    match class {
        0..=6 => 16 + 8 * class,
        7..=10 => 64 + 16 * (class - 6),
        _ => (5 + (class - 11) % 4) << ((class - 11) / 4 + 5),
    }
}

/// A chunk has one unit for blocks of up to 512 bytes. For longer ones it has as many units as the size has eighths of a
/// power of two, so that blocks fill the chunk.
const fn units(class: usize) -> usize {
    if size(class) <= 512 { 1 } else { 5 + (class - 11) % 4 }
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "a size is at most 8 KiB, a chunk has at most 256 blocks, 8 units"
)]
const fn classes() -> [Class; COUNT] {
    const NONE: Class = Class { size: 0, reciprocal: 0, capacity: 0, quarter: 0, units: 0 };
    let mut all = [NONE; COUNT];
    let mut class = 0;
    while class < COUNT {
        let (size, units) = (size(class), units(class));
        // An entry has 256 bits. The rest of a chunk with more blocks is never touched.
        let capacity = if size < 32 { ALIGN / size } else { units * UNIT / size };
        all[class] = Class {
            size: size as u32,
            reciprocal: (1u64 << 32).div_ceil(size as u64) as u32,
            capacity: capacity as u16,
            quarter: (capacity / 4) as u16,
            units: units as u8,
        };
        class += 1;
    }
    all
}

#[allow(clippy::cast_possible_truncation, reason = "a class is less than 35")]
const fn table() -> [u8; IN_TABLE / 8 + 1] {
    let mut all = [0; IN_TABLE / 8 + 1];
    let (mut i, mut class) = (0, 0);
    while i < all.len() {
        while size(class) < 8 * i {
            class += 1;
        }
        all[i] = class as u8;
        i += 1;
    }
    all
}

/// Returns the smallest class with blocks of at least `size` bytes, which is at most [`LARGEST`] and not 0.
#[inline]
fn at_least(size: usize) -> usize {
    if size <= IN_TABLE {
        return usize::from(TABLE[size.div_ceil(8)]);
    }
    let log = (size - 1).ilog2();
    BEHIND_TABLE + (log as usize - 10) * 4 + (((size - 1) >> (log - 2)) & 3)
}

/// Returns the class of the blocks of a layout, or `None` if they are runs of units.
#[inline]
pub(super) fn class_of(layout: Layout) -> Option<usize> {
    if layout.size() > LARGEST || layout.align() > ALIGN {
        None
    } else if layout.align() <= 8 {
        Some(at_least(layout.size()))
    } else {
        Some(aligned(layout.size(), layout.align()))
    }
}

/// A chunk starts at a unit, so its blocks are aligned if their size is a multiple of the alignment. The smallest class for
/// a multiple of a power of two is one itself (the test `layouts` tries all).
#[inline]
fn aligned(size: usize, align: usize) -> usize {
    at_least(size.next_multiple_of(align))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Miri is slow.
    const STEP: usize = if cfg!(miri) { 509 } else { 1 };

    #[test]
    fn sizes() {
        let sizes: Vec<usize> = CLASSES.iter().map(|c| c.size as usize).collect();
        let first =
            [16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640];
        assert_eq!(sizes[..20], first);
        assert_eq!(sizes[31..], [5120, 6144, 7168, 8192]);
        for (c, class) in CLASSES.iter().enumerate() {
            let bytes = usize::from(class.units) * UNIT;
            let used = if sizes[c] < 32 { ALIGN } else { bytes };
            assert_eq!(usize::from(class.capacity), used / sizes[c], "{}", sizes[c]);
            assert!(class.capacity <= 256 && class.quarter > 0 && class.quarter < class.capacity);
            if sizes[c] > 512 {
                assert_eq!(usize::from(class.capacity) * sizes[c], bytes);
            }
            for offset in (0..bytes).step_by(STEP) {
                assert_eq!(class.block_at(offset), offset / sizes[c]);
            }
        }
    }

    #[test]
    fn layouts() {
        for align in (0..=13).map(|log| 1 << log) {
            for bytes in (1..=LARGEST + 1).step_by(STEP) {
                let class = class_of(Layout::from_size_align(bytes, align).unwrap());
                let Some(class) = class else {
                    assert!(bytes > LARGEST || align > ALIGN, "{bytes} {align}");
                    continue;
                };
                let size = CLASSES[class].size as usize;
                assert!(size >= bytes && size.is_multiple_of(align), "{bytes} {align}: {size}");
                if align <= 8 && class > 0 {
                    assert!(bytes > CLASSES[class - 1].size as usize, "{bytes}: {size}");
                }
            }
        }
    }
}
