//! Views as guest memory, with the traits of vm-memory.
//!
//! Snapshots capture writes through guest memory, restores undo them, and the host address stays the same.

#[path = "../common/mod.rs"]
mod common;
mod logged;

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use common::{assert_same, noise, padded};
use memsnap::vm_memory::{GuestAccess, GuestRegion};
use memsnap::{Logged, Snapshot, View, ViewOptions, page_size};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, GuestRegionCollection,
    MemoryRegionAddress,
};

type Region = GuestRegion<Arc<Snapshot>>;
type LoggedRegion = GuestRegion<Arc<Snapshot>, Logged>;
type Memory = GuestRegionCollection<Region>;

const LOW_PAGES: usize = 40;
const HIGH_PAGES: usize = 70;

fn region_of(snapshot: Snapshot, start: u64) -> Arc<Region> {
    let view = Arc::new(snapshot).view_arc().unwrap();
    Arc::new(GuestRegion::new(view, GuestAddress(start)).unwrap())
}

fn address(start: u64, offset: usize) -> GuestAddress {
    GuestAddress(start + offset as u64)
}

/// Returns all bytes of a region, read with volatile accesses.
fn bytes_of<S, A: GuestAccess>(region: &GuestRegion<S, A>) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(region.len()).unwrap()];
    region.read_slice(&mut bytes, MemoryRegionAddress(0)).unwrap();
    bytes
}

/// Guest memory with zeroes from address 0, a hole, a region with bytes, and a region of zeroes directly
/// behind it.
struct Guest {
    low: Arc<Region>,
    high: Arc<Region>,
    next: Arc<Region>,
    high_start: u64,
    next_start: u64,
    /// The initial bytes of each region.
    contents: [Vec<u8>; 3],
}

impl Guest {
    fn new() -> Self {
        let high_start = 1 << 32;
        let next_start = high_start + (HIGH_PAGES * page_size()) as u64;
        let low = vec![0; LOW_PAGES * page_size()];
        let high = padded(noise(HIGH_PAGES * page_size() - 5, 1));
        let next = vec![0; LOW_PAGES * page_size()];
        Self {
            low: region_of(Snapshot::zeroed(low.len()).unwrap(), 0),
            high: region_of(Snapshot::from_slice(&high).unwrap(), high_start),
            next: region_of(Snapshot::zeroed(next.len()).unwrap(), next_start),
            high_start,
            next_start,
            contents: [low, high, next],
        }
    }

    fn memory(&self) -> Memory {
        let regions = [&self.low, &self.high, &self.next].map(Arc::clone);
        Memory::from_arc_regions(regions.into()).unwrap()
    }

    /// Returns the regions. No guest memory may refer to them any more.
    fn regions(&mut self) -> [&mut Region; 3] {
        [&mut self.low, &mut self.high, &mut self.next].map(|region| Arc::get_mut(region).unwrap())
    }
}

#[test]
fn objects_and_slices_are_read_and_written_across_regions() {
    let guest = Guest::new();
    let memory = guest.memory();
    let (high, next) = (guest.high_start, guest.next_start);
    assert_eq!(memory.num_regions(), 3);
    assert_eq!(memory.last_addr(), address(next, LOW_PAGES * page_size() - 1));

    memory.write_obj(0x0102_0304_u32, GuestAddress(page_size() as u64 - 2)).unwrap();
    assert_eq!(memory.read_obj::<u32>(GuestAddress(page_size() as u64 - 2)).unwrap(), 0x0102_0304);
    memory.store(7_u64, address(high, 8), Ordering::Release).unwrap();
    assert_eq!(memory.load::<u64>(address(high, 8), Ordering::Acquire).unwrap(), 7);

    let written = noise(3 * page_size(), 2);
    let border = GuestAddress(next - page_size() as u64);
    memory.write_slice(&written, border).unwrap();
    let mut read = vec![0; written.len()];
    memory.read_slice(&mut read, border).unwrap();
    assert_same("across", &read, &written);
    assert_same("before", &bytes_of(&guest.high)[(HIGH_PAGES - 1) * page_size()..], &written[..page_size()]);
    assert_same("behind", &bytes_of(&guest.next)[..2 * page_size()], &written[page_size()..]);

    let streamed = noise(2 * page_size(), 3);
    memory.read_exact_volatile_from(border, &mut &streamed[..], streamed.len()).unwrap();
    memory.read_slice(&mut read, border).unwrap();
    assert_same("streamed", &read[..streamed.len()], &streamed);
}

#[test]
fn what_is_out_of_bounds_is_an_error() {
    let guest = Guest::new();
    let memory = guest.memory();
    let (high, len) = (guest.high_start, LOW_PAGES * page_size());
    let ends =
        [address(0, len), GuestAddress(high - 1), address(guest.next_start, len), GuestAddress(u64::MAX)];
    for outside in ends {
        let refused = memory.write_obj(1_u8, outside);
        assert!(
            matches!(refused, Err(GuestMemoryError::InvalidGuestAddress(at)) if at == outside),
            "{refused:?}"
        );
        assert!(memory.read_obj::<u8>(outside).is_err());
        assert!(memory.get_host_address(outside).is_err());
    }

    let into_the_hole = memory.write_slice(&[1; 8], address(0, len - 3));
    assert!(
        matches!(into_the_hole, Err(GuestMemoryError::PartialBuffer { expected: 8, completed: 3 })),
        "{into_the_hole:?}"
    );
    assert!(memory.store(1_u32, address(0, len - 2), Ordering::Relaxed).is_err());

    let region = &guest.low;
    let at = |offset: usize| MemoryRegionAddress(offset as u64);
    assert_eq!(region.get_slice(at(0), len).unwrap().len(), len);
    assert_eq!(region.get_slice(at(len - 1), 1).unwrap().len(), 1);
    assert_eq!(region.get_slice(at(len), 0).unwrap().len(), 0);
    for (offset, count) in
        [(0, len + 1), (len - 1, 2), (len, 1), (len + 1, 0), (usize::MAX, 1), (1, usize::MAX)]
    {
        let refused = region.get_slice(at(offset), count);
        assert!(
            matches!(refused, Err(GuestMemoryError::InvalidBackendAddress)),
            "{count} bytes at {offset}: {refused:?}"
        );
    }
    assert!(region.get_host_address(at(len)).is_err());
    assert!(region.get_host_address(at(usize::MAX)).is_err());
}

#[test]
fn writes_are_captured_and_undone_at_the_same_host_address() {
    let mut guest = Guest::new();
    let (high, next) = (guest.high_start, guest.next_start);
    let before = guest.contents.clone();
    let mut after = before.clone();
    let written = noise(2 * page_size() + 3, 4);
    let starts = [0, high, next].map(GuestAddress);
    let hosts = starts.map(|start| guest.memory().get_host_address(start).unwrap());

    let memory = guest.memory();
    memory.write_slice(&written, address(0, 5 * page_size())).unwrap();
    after[0][5 * page_size()..][..written.len()].copy_from_slice(&written);
    memory.write_slice(&written[..10], GuestAddress(next - 6)).unwrap();
    after[1][HIGH_PAGES * page_size() - 6..].copy_from_slice(&written[..6]);
    after[2][..4].copy_from_slice(&written[6..10]);
    drop(memory);

    let pages = [5..8, HIGH_PAGES - 1..HIGH_PAGES, 0..1];
    let mut taken = Vec::new();
    for ((region, after), pages) in guest.regions().into_iter().zip(&after).zip(pages) {
        assert_eq!(region.changes().unwrap().ranges(), [pages.start * page_size()..pages.end * page_size()]);
        let snapshot = region.take_snapshot().unwrap();
        assert_same("taken", &snapshot.view().unwrap(), after);
        assert_eq!(snapshot.stats().captured, pages.len() * page_size());
        assert_same("as it was", &bytes_of(region), after);
        assert!(region.stats().private >= pages.len() * page_size());
        taken.push(snapshot);
    }
    for (region, before) in guest.regions().into_iter().zip(&before) {
        region.restore().unwrap();
        assert_same("restored", &bytes_of(region), before);
    }

    // Writes to the restored bytes before the next restore.
    guest.memory().write_obj(u64::MAX, address(0, 6 * page_size())).unwrap();
    guest.memory().write_obj(u64::MAX, address(high, 6 * page_size())).unwrap();
    for ((region, after), snapshot) in guest.regions().into_iter().zip(&after).zip(&taken) {
        region.restore_to(snapshot).unwrap();
        assert_same("restored to", &bytes_of(region), after);
    }
    assert_eq!(starts.map(|start| guest.memory().get_host_address(start).unwrap()), hosts);

    let [low, _, _] = guest.regions();
    assert_eq!(low.restore_to(&taken[1]).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_same("after a refusal", &bytes_of(low), &after[0]);
}

#[test]
fn host_addresses_are_those_of_the_view() {
    let snapshot = Snapshot::from_slice(&noise(2 * page_size(), 5)).unwrap();
    let mut view = snapshot.view().unwrap();
    view[3] = 9;
    let start = view.as_ptr();
    let region = GuestRegion::new(view, GuestAddress(0x1000)).unwrap();
    assert_eq!(region.start_addr(), GuestAddress(0x1000));
    assert!(
        format!("{region:?}").starts_with("GuestRegion { start: GuestAddress(4096), len: "),
        "{region:?}"
    );
    assert_eq!(region.get_host_address(MemoryRegionAddress(0)).unwrap().cast_const(), start);
    let last = MemoryRegionAddress(region.len() - 1);
    assert_eq!(region.get_host_address(last).unwrap().cast_const(), start.wrapping_add(2 * page_size() - 1));
    assert_eq!(
        region.get_slice(last, 1).unwrap().ptr_guard().as_ptr(),
        start.wrapping_add(2 * page_size() - 1)
    );
    assert_eq!(region.read_obj::<u8>(MemoryRegionAddress(3)).unwrap(), 9);

    region.write_obj(10_u8, last).unwrap();
    let view = region.into_view();
    assert_eq!(view.as_ptr(), start);
    assert_eq!((view[3], view[2 * page_size() - 1]), (9, 10));
}

#[test]
fn a_region_over_a_mutable_view_fills_its_snapshot() {
    let mut snapshot = Snapshot::zeroed(4 * page_size()).unwrap();
    let mut region = GuestRegion::new(snapshot.view_mut().unwrap(), GuestAddress(0)).unwrap();
    let at = MemoryRegionAddress(page_size() as u64 - 2);
    region.write_slice(b"four", at).unwrap();
    let taken = region.take_snapshot().unwrap();
    region.write_slice(b"more", at).unwrap();
    region.into_view().commit().unwrap();
    let around = page_size() - 2..page_size() + 2;
    assert_eq!(&taken.view().unwrap()[around.clone()], b"four");
    assert_eq!(&snapshot.view().unwrap()[around], b"more");
}

#[test]
fn views_that_cannot_be_guest_memory_are_refused() {
    fn kind_of<S>(view: View<S>, start: u64) -> Result<(), ErrorKind> {
        GuestRegion::new(view, GuestAddress(start)).map(drop).map_err(|error| error.kind())
    }
    let empty = Snapshot::zeroed(0).unwrap();
    assert_eq!(kind_of(empty.view().unwrap(), 0), Err(ErrorKind::InvalidInput));

    let page = Snapshot::zeroed(1).unwrap();
    let highest = u64::MAX - page_size() as u64;
    assert_eq!(kind_of(page.view().unwrap(), highest), Ok(()));
    assert_eq!(kind_of(page.view().unwrap(), highest + 1), Err(ErrorKind::InvalidInput));
    assert_eq!(kind_of(page.view().unwrap(), u64::MAX), Err(ErrorKind::InvalidInput));
}

/// A region of a view that had grown was restored to the snapshot that the view was opened on, and shrank.
/// Then it was shorter than its neighbours expect. If that snapshot was empty, the last address of the region
/// was before the first.
#[test]
fn a_region_keeps_its_length_whatever_its_view_was_opened_on() {
    let len = 4 * page_size();
    for root in [0, 1, 3 * page_size()] {
        let snapshot = Snapshot::zeroed(root).unwrap();
        let mut view = snapshot.view_with(ViewOptions::new().reserve(2 * len)).unwrap();
        view.grow(len).unwrap();
        let mut region = GuestRegion::new(view, GuestAddress(0x1000)).unwrap();
        region.write_slice(b"kept", MemoryRegionAddress(len as u64 - 4)).unwrap();
        let taken = region.take_snapshot().unwrap();
        let error = region.restore().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert_eq!(region.restore_to(&snapshot).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(region.len(), len as u64);
        assert_eq!(region.last_addr(), address(0x1000, len - 1));
        region.write_slice(b"lost", MemoryRegionAddress(len as u64 - 4)).unwrap();
        region.restore_to(&taken).unwrap();
        assert_eq!(bytes_of(&region)[len - 4..], *b"kept");
        assert_eq!(region.get_slice(MemoryRegionAddress(0), len).unwrap().len(), len);
        assert!(region.get_slice(MemoryRegionAddress(0), len + 1).is_err());
        // The view itself can be restored to that snapshot.
        let mut view = region.into_view();
        view.restore().unwrap();
        assert_eq!(view.len(), root.next_multiple_of(page_size()));
    }
}

#[test]
fn what_a_guest_has_given_up_is_zeroed_or_discarded() {
    let mut guest = Guest::new();
    let written = noise(9 * page_size(), 7);
    let part = page_size() + 1..7 * page_size() - 1;
    let (high, next) = (guest.high_start, guest.next_start);
    for start in [0, high, next] {
        guest.memory().write_slice(&written, GuestAddress(start)).unwrap();
    }
    let contents = guest.contents.clone();
    for (region, content) in guest.regions().into_iter().zip(&contents) {
        let mut expected = content.clone();
        expected[..written.len()].copy_from_slice(&written);
        region.discard(part.clone()).unwrap();
        expected[part.clone()].copy_from_slice(&content[part.clone()]);
        assert_same("discarded", &bytes_of(region), &expected);
        let taken = region.take_snapshot().unwrap();
        region.zero(part.clone()).unwrap();
        let before = expected.clone();
        expected[part.clone()].fill(0);
        assert_same("zeroed", &bytes_of(region), &expected);
        region.discard(..).unwrap();
        assert_same("discarded again", &bytes_of(region), &before);
        assert!(region.changes().unwrap().is_empty());
        assert_same("taken", &taken.view().unwrap(), &before);
        let len = before.len();
        assert_eq!(region.discard(..len + 1).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(region.zero(..len + 1).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn what_threads_wrote_is_captured_once_they_are_done() {
    const THREADS: usize = 4;
    const ROUNDS: usize = 10;
    let mut guest = Guest::new();
    let high = guest.high_start;
    let [low, _, _] = guest.regions();
    low.write_obj(u64::MAX, MemoryRegionAddress(0)).unwrap();
    let mut expected = guest.contents[1].clone();

    for round in 0..ROUNDS {
        let memory = guest.memory();
        let written: Vec<_> =
            (0..THREADS).map(|i| noise(page_size(), (round * THREADS + i) as u64)).collect();
        let threads: Vec<_> = written
            .iter()
            .enumerate()
            .map(|(i, bytes)| {
                let (memory, bytes) = (memory.clone(), bytes.clone());
                thread::spawn(move || {
                    // Neighbouring pieces share a page.
                    let at = (i + round) * page_size() / 2;
                    memory.write_slice(&bytes[..page_size() / 2], address(high, at)).unwrap();
                    memory.write_slice(&bytes[page_size() / 2..], address(0, page_size() + at)).unwrap();
                    memory.store(round as u64, GuestAddress(0), Ordering::Relaxed).unwrap();
                    let slices = memory.get_slices(address(high, at), page_size()).map(Result::unwrap);
                    assert_eq!(slices.map(|slice| slice.len()).sum::<usize>(), page_size());
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        drop(memory);

        for (i, bytes) in written.iter().enumerate() {
            let at = (i + round) * page_size() / 2;
            expected[at..][..page_size() / 2].copy_from_slice(&bytes[..page_size() / 2]);
        }
        let taken = guest.regions().map(|region| region.take_snapshot().unwrap());
        assert_same("written by threads", &taken[1].view().unwrap(), &expected);
        let low = taken[0].view().unwrap();
        assert_eq!(low[..8], (round as u64).to_ne_bytes());
        for (i, bytes) in written.iter().enumerate() {
            let at = page_size() + (i + round) * page_size() / 2;
            assert_same("below", &low[at..][..page_size() / 2], &bytes[page_size() / 2..]);
        }
    }
    for (region, content) in guest.regions().into_iter().zip(&Guest::new().contents) {
        region.restore().unwrap();
        assert_same("restored", &bytes_of(region), content);
    }
}

/// Threads can borrow guest memory whose regions borrow their snapshots. Nothing has to be `'static`.
#[test]
fn regions_may_borrow_their_snapshots() {
    let snapshot = Snapshot::from_slice(&noise(8 * page_size(), 6)).unwrap();
    let region = GuestRegion::new(snapshot.view().unwrap(), GuestAddress(0)).unwrap();
    let memory = GuestRegionCollection::from_regions(vec![region]).unwrap();
    thread::scope(|scope| {
        for page in 0..8_u8 {
            let memory = &memory;
            scope.spawn(move || memory.write_obj(page, address(0, usize::from(page) * page_size())));
        }
    });
    let len = snapshot.len() as u64;
    let (rest, region) = memory.remove_region(GuestAddress(0), len).unwrap();
    drop((rest, memory));
    let view = Arc::into_inner(region).unwrap().into_view();
    (0..8).for_each(|page| assert_eq!(usize::from(view[page * page_size()]), page));
}
