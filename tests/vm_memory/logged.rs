//! Regions over logged views.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use memsnap::vm_memory::GuestRegion;
use memsnap::{Snapshot, ViewOptions, page_size};
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionCollection, MemoryRegionAddress,
    VolatileMemory,
};

use super::common::{assert_same, noise};
use super::{HIGH_PAGES, LOW_PAGES, LoggedRegion, address, bytes_of};

/// Makes a region of a view that returns an error if a page was written and not reported.
fn checked_region(snapshot: Snapshot, start: u64) -> Arc<LoggedRegion> {
    let view = Arc::new(snapshot).view_arc_with(ViewOptions::logged().checked(true)).unwrap();
    Arc::new(GuestRegion::new(view, GuestAddress(start)).unwrap())
}

/// Two adjacent logged regions, and their bytes.
struct LoggedGuest {
    regions: [Arc<LoggedRegion>; 2],
    bytes: Vec<u8>,
}

impl LoggedGuest {
    fn new() -> Self {
        let mut bytes = vec![0; LOW_PAGES * page_size()];
        let low = checked_region(Snapshot::zeroed(bytes.len()).unwrap(), 0);
        let high = checked_region(
            Snapshot::from_slice(&noise(HIGH_PAGES * page_size(), 11)).unwrap(),
            bytes.len() as u64,
        );
        bytes.extend(noise(HIGH_PAGES * page_size(), 11));
        Self { regions: [low, high], bytes }
    }

    fn memory(&self) -> GuestRegionCollection<LoggedRegion> {
        GuestRegionCollection::from_arc_regions(self.regions.to_vec()).unwrap()
    }

    /// Returns the regions, each with its bytes. No guest memory may refer to them any more.
    fn regions(&mut self) -> impl Iterator<Item = (&mut LoggedRegion, &mut [u8])> {
        let (low, high) = self.bytes.split_at_mut(LOW_PAGES * page_size());
        self.regions.iter_mut().map(|region| Arc::get_mut(region).unwrap()).zip([low, high])
    }

    /// Checks snapshots and restores of the regions, whose bytes are now `written`.
    fn check(&mut self, written: &[u8]) {
        let (low, high) = written.split_at(LOW_PAGES * page_size());
        for ((region, before), after) in self.regions().zip([low, high]) {
            let differing: usize =
                region.changes().unwrap().ranges().into_iter().map(|range| range.len()).sum();
            let taken = region.take_snapshot().unwrap();
            assert_same("taken", &taken.view().unwrap(), after);
            // All reported pages are captured. So this checks that few pages are reported that were not
            // written.
            assert!(taken.stats().captured <= differing + 2 * page_size(), "{:?}", taken.stats());
            region.restore().unwrap();
            assert_same("restored", &bytes_of(region), before);
            region.restore_to(&taken).unwrap();
            assert_same("restored to", &bytes_of(region), after);
            region.restore().unwrap();
            assert_same("restored again", &bytes_of(region), before);
        }
    }
}

/// Each method of vm-memory that writes is tested within a page, across pages and across regions.
#[test]
fn a_logged_region_is_told_what_vm_memory_writes() {
    let mut guest = LoggedGuest::new();
    let border = LOW_PAGES * page_size();
    for at in [3, page_size() - 3, border - 4, border + 7 * page_size() - 5] {
        let (object, bytes) = (0x0102_0304_0506_0708_u64, noise(3 * page_size(), at as u64));
        let at_guest = GuestAddress(at as u64);

        let mut written = guest.bytes.clone();
        if !(border - 8..border).contains(&at) {
            guest.memory().write_obj(object, at_guest).unwrap();
            written[at..at + 8].copy_from_slice(&object.to_ne_bytes());
        }
        guest.check(&written);

        let mut written = guest.bytes.clone();
        guest.memory().write_slice(&bytes, at_guest).unwrap();
        written[at..at + bytes.len()].copy_from_slice(&bytes);
        guest.check(&written);

        let mut written = guest.bytes.clone();
        assert_eq!(guest.memory().write(&bytes[..100], at_guest).unwrap(), 100);
        written[at..at + 100].copy_from_slice(&bytes[..100]);
        guest.check(&written);

        // The stream has fewer bytes than requested.
        let mut written = guest.bytes.clone();
        let streamed =
            guest.memory().read_volatile_from(at_guest, &mut &bytes[..50], 3 * page_size()).unwrap();
        written[at..at + streamed].copy_from_slice(&bytes[..streamed]);
        guest.check(&written);

        let mut written = guest.bytes.clone();
        guest.memory().read_exact_volatile_from(at_guest, &mut &bytes[..], bytes.len()).unwrap();
        written[at..at + bytes.len()].copy_from_slice(&bytes);
        guest.check(&written);

        let mut written = guest.bytes.clone();
        guest.memory().store(object, GuestAddress(at as u64 / 8 * 8), Ordering::Relaxed).unwrap();
        written[at / 8 * 8..][..8].copy_from_slice(&object.to_ne_bytes());
        guest.check(&written);
    }
}

#[test]
fn volatile_slices_of_a_logged_region_report_what_is_written_through_them() {
    let mut guest = LoggedGuest::new();
    let border = LOW_PAGES * page_size();
    let from = border + 5 * page_size() + 1;
    let bytes = noise(2 * page_size(), 12);

    // The copy goes from one region to the other. The target is a slice of a slice.
    let mut written = guest.bytes.clone();
    let memory = guest.memory();
    let source = memory.get_slice(GuestAddress(from as u64), 2 * page_size()).unwrap();
    let target = memory.get_slice(GuestAddress(page_size() as u64), 20 * page_size()).unwrap();
    let target = target.offset(page_size() - 7).unwrap().subslice(3 * page_size(), 2 * page_size()).unwrap();
    source.copy_to_volatile_slice(target);
    drop(memory);
    written.copy_within(from..from + 2 * page_size(), 5 * page_size() - 7);
    guest.check(&written);

    let mut written = guest.bytes.clone();
    let memory = guest.memory();
    let slice = memory.get_slice(GuestAddress(border as u64), 9 * page_size()).unwrap();
    slice.subslice(page_size() - 1, bytes.len()).unwrap().copy_from(&bytes);
    let object = slice.get_ref::<u32>(5 * page_size() - 2).unwrap();
    object.store(7);
    slice.get_array_ref::<u16>(7 * page_size() - 4, 4).unwrap().copy_from(&[1_u16, 2, 3, 4]);
    slice.get_array_ref::<u16>(8 * page_size(), 4).unwrap().store(3, 9);
    drop(memory);
    let high = &mut written[border..];
    high[page_size() - 1..][..bytes.len()].copy_from_slice(&bytes);
    high[5 * page_size() - 2..][..4].copy_from_slice(&7_u32.to_ne_bytes());
    for (i, value) in (0..).step_by(2).zip([1_u16, 2, 3, 4]) {
        high[7 * page_size() - 4 + i..][..2].copy_from_slice(&value.to_ne_bytes());
    }
    high[8 * page_size() + 6..][..2].copy_from_slice(&9_u16.to_ne_bytes());
    guest.check(&written);
}

/// Writes through a host address have to be reported. A page that was not reported is an error.
#[test]
fn writes_by_host_address_are_reported_by_range() {
    let mut guest = LoggedGuest::new();
    let mut written = guest.bytes.clone();
    let (region, _) = guest.regions().next().unwrap();
    let at = 3 * page_size() - 2;
    let host = region.get_host_address(MemoryRegionAddress(at as u64)).unwrap();
    // SAFETY: the four bytes are within the region, which nobody else uses.
    unsafe { host.copy_from(b"host".as_ptr(), 4) };
    let error = region.take_snapshot().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    region.restore().unwrap();
    // SAFETY: as above.
    unsafe { host.copy_from(b"host".as_ptr(), 4) };
    region.mark_written(at..at + 4).unwrap();
    written[at..at + 4].copy_from_slice(b"host");
    guest.check(&written);

    let (region, _) = guest.regions().next().unwrap();
    let len = usize::try_from(region.len()).unwrap();
    region.mark_written(len..).unwrap();
    for refused in
        [region.mark_written(..len + 1), region.mark_written(len + 1..), region.mark_written(..=usize::MAX)]
    {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

/// Marking is a safe function, so no offset and no length may reach a page outside the region.
#[test]
fn the_bitmap_of_a_logged_region_takes_any_offset() {
    let mut region = checked_region(Snapshot::zeroed(3 * page_size()).unwrap(), 0);
    let region = Arc::get_mut(&mut region).unwrap();
    let many = [0, 1, page_size(), 2 * page_size() + 5, 3 * page_size(), 3 * page_size() + 1, usize::MAX];
    for (offset, len) in many.into_iter().flat_map(|offset| many.map(|len| (offset, len))) {
        let end = offset.saturating_add(len).min(3 * page_size());
        for start in [0, offset / 2, offset] {
            let bitmap = region.bitmap();
            bitmap.slice_at(start).mark_dirty(offset - start, len);
            for page in 0..4 {
                let dirty = offset < end && (offset / page_size()..end.div_ceil(page_size())).contains(&page);
                assert_eq!(
                    bitmap.dirty_at(page * page_size()),
                    dirty,
                    "page {page} after {len} bytes at {offset}"
                );
                assert_eq!(bitmap.slice_at(page * page_size()).dirty_at(page_size() - 1), dirty);
            }
            let taken = region.take_snapshot().unwrap();
            assert!(taken.view().unwrap().iter().all(|&byte| byte == 0));
            assert!((0..4).all(|page| !region.bitmap().dirty_at(page * page_size())));
        }
    }
}

/// Tests a region of a view that has grown, and a region of a mutable view.
#[test]
fn logged_regions_over_other_views() {
    let snapshot = Snapshot::from_slice(b"short").unwrap();
    let len = 9 * page_size();
    let mut view = snapshot.view_with(ViewOptions::logged().checked(true).reserve(2 * len)).unwrap();
    view.grow(len).unwrap();
    let mut region = GuestRegion::new(view, GuestAddress(0)).unwrap();
    region.write_slice(b"long", MemoryRegionAddress(len as u64 - 4)).unwrap();
    let taken = region.take_snapshot().unwrap();
    assert_eq!(region.restore().unwrap_err().kind(), ErrorKind::InvalidInput);
    region.write_slice(b"lost", MemoryRegionAddress(len as u64 - 4)).unwrap();
    region.restore_to(&taken).unwrap();
    region.zero(1..3).unwrap();
    let mut view = region.into_view();
    assert_eq!((&view[..5], &view[len - 4..]), (&b"s\0\0rt"[..], &b"long"[..]));
    view.restore().unwrap();
    assert_eq!(view.content(), b"short");

    let mut snapshot = Snapshot::zeroed(4 * page_size()).unwrap();
    let view = snapshot.view_mut_with(ViewOptions::logged().checked(true)).unwrap();
    let mut region = GuestRegion::new(view, GuestAddress(0)).unwrap();
    region.write_slice(b"four", MemoryRegionAddress(page_size() as u64 - 2)).unwrap();
    let taken = region.take_snapshot().unwrap();
    region.write_slice(b"more", MemoryRegionAddress(page_size() as u64 - 2)).unwrap();
    region.into_view().commit().unwrap();
    let around = page_size() - 2..page_size() + 2;
    assert_eq!(&taken.view().unwrap()[around.clone()], b"four");
    assert_eq!(&snapshot.view().unwrap()[around], b"more");
}

#[test]
fn what_threads_write_to_a_logged_region_is_reported() {
    const THREADS: usize = 4;
    let mut guest = LoggedGuest::new();
    for round in 0..10 {
        let mut written = guest.bytes.clone();
        let memory = guest.memory();
        thread::scope(|scope| {
            for (thread, piece) in written.chunks_mut(page_size() / 2).enumerate().skip(round).step_by(7) {
                piece.fill(thread.to_le_bytes()[0]);
            }
            for thread in 0..THREADS {
                let (memory, written) = (&memory, &written);
                scope.spawn(move || {
                    // Two neighbouring pieces share a page, and several pages share a word of the log.
                    let pieces = written.chunks(page_size() / 2).enumerate().skip(round).step_by(7);
                    for (i, piece) in pieces.skip(thread).step_by(THREADS) {
                        memory.write_slice(piece, address(0, i * page_size() / 2)).unwrap();
                    }
                });
            }
        });
        drop(memory);
        guest.check(&written);
    }
}
