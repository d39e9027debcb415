//! Views at an address that the program chooses.

mod common;

use std::io::ErrorKind;

use common::{assert_same, message, pattern, serial};
use memsnap::{HugePages, Snapshot, View, ViewOptions, page_size};

/// Returns an address with at least `len` free bytes behind it and a megabyte before it, at least for a moment.
fn free_address(len: usize) -> usize {
    let (before, len) = (1 << 20, len.max(1 << 20));
    let probe = Snapshot::zeroed(1).unwrap().into_view_with(ViewOptions::new().guard(before, len)).unwrap();
    probe.as_ptr().addr()
}

/// Opens a view with `options` at a free address. Other code of the process may take the address in between.
fn open(snapshot: &Snapshot, options: &mut ViewOptions, len: usize) -> View<Snapshot> {
    for _ in 0..10 {
        let address = free_address(len);
        if let Ok(view) = snapshot.clone().into_view_with(options.at(address)) {
            assert_eq!(view.as_ptr().addr(), address);
            return view;
        }
    }
    panic!("ten free addresses were all taken by other code")
}

#[test]
fn a_view_at_a_chosen_address_is_like_any_other() {
    let _serial = serial();
    let bytes = [pattern(5, 3), vec![9; 100]].concat();
    let snapshot = Snapshot::from_slice(&bytes).unwrap();
    let mut guarded = ViewOptions::new();
    guarded.guard(3 * page_size(), 2 * page_size()).reserve(40 * page_size());
    let mut huge = ViewOptions::new();
    huge.huge_pages(HugePages::Advise);
    for options in [&mut ViewOptions::new(), &mut guarded, &mut huge] {
        let mut view = open(&snapshot, options, 64 * page_size());
        let address = view.as_ptr();
        assert_same("opened", view.content(), &bytes);
        view.fill(7);
        let sevens = view.take_snapshot().unwrap();
        view.restore().unwrap();
        assert_same("restored", view.content(), &bytes);
        view.restore_to(&sevens).unwrap();
        assert!(view.iter().all(|&byte| byte == 7));
        if view.grow(20 * page_size()).is_ok() {
            assert!(view[6 * page_size()..].iter().all(|&byte| byte == 0));
        }
        assert_eq!(view.as_ptr(), address);
    }
    let mut view = open(&Snapshot::zeroed(0).unwrap(), ViewOptions::new().reserve(1 << 16), 1 << 16);
    view.grow(1 << 16).unwrap();
    assert!(view.iter().all(|&byte| byte == 0));
}

#[test]
fn mutable_views_have_an_address_too() {
    let _serial = serial();
    let mut snapshot = Snapshot::zeroed(10 * page_size()).unwrap();
    let mut options = ViewOptions::new();
    let view = (0..10).find_map(|_| {
        let address = free_address(10 * page_size());
        let mut view = snapshot.try_clone().unwrap();
        let mut opened = view.view_mut_with(options.at(address)).ok()?;
        assert_eq!(opened.as_ptr().addr(), address);
        opened[page_size()] = 5;
        opened.commit().unwrap();
        Some(view)
    });
    snapshot = view.expect("ten free addresses were all taken by other code");
    assert_eq!(snapshot.view().unwrap()[page_size()], 5);
}

#[test]
fn an_address_in_use_is_refused_and_keeps_its_bytes() {
    let _serial = serial();
    let snapshot = Snapshot::from_slice(&pattern(8, 1)).unwrap();
    let view = snapshot.view_with(ViewOptions::new().guard(1 << 20, 1 << 20)).unwrap();
    let start = view.as_ptr().addr();
    // On the view, across its ends, in its guards, and with guards or reserved addresses that reach into it.
    let mut cases = vec![ViewOptions::new(); 7];
    cases[0].at(start);
    cases[1].at(start - 4 * page_size());
    cases[2].at(start + 4 * page_size());
    cases[3].at(start + 100 * page_size());
    cases[4].at(start - (1 << 19));
    cases[5].at(start + (2 << 20)).guard(2 << 20, 0);
    cases[6].at(start - (2 << 20)).reserve(2 << 20);
    for (case, options) in cases.iter().enumerate() {
        let error = snapshot.view_with(options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse, "case {case}: {error}");
        assert!(message(&error).contains("ViewOptions::at"), "case {case}: {error}");
    }
    assert_same("still there", view.content(), &pattern(8, 1));
    // After it was dropped, the address is free again.
    drop(view);
    let again = snapshot.view_with(&cases[0]);
    assert!(again.is_ok_and(|view| view.as_ptr().addr() == start));
}

#[test]
fn impossible_addresses_are_refused() {
    let _serial = serial();
    let snapshot = Snapshot::zeroed(page_size()).unwrap();
    for address in [1, page_size() + 1, usize::MAX] {
        let error = snapshot.view_with(ViewOptions::new().at(address)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    // The last page, and guards that begin before address 0.
    assert!(snapshot.view_with(ViewOptions::new().at(usize::MAX - page_size() + 1)).is_err());
    assert!(snapshot.view_with(ViewOptions::new().at(1 << 20).guard(1 << 21, 0)).is_err());
    // 0 lets the system pick.
    assert!(snapshot.view_with(ViewOptions::new().at(0)).is_ok());
}
