//! Feature `serde`: statistics can be converted to JSON and back, and the names of their fields do not
//! change.

use memsnap::{
    Snapshot, SnapshotStats, Tracking, ViewCosts, ViewOptions, ViewStats, WhyNotFaster, page_size,
};
use serde_json::{Value, from_value, json, to_value};

#[test]
fn stats_of_snapshots_and_views_come_back_the_same() {
    let mut root = Snapshot::from_slice(&vec![1; 100 * page_size()]).unwrap();
    let mut view = root.view_with(ViewOptions::new().reserve(1 << 30)).unwrap();
    view[10 * page_size()..90 * page_size()].fill(2);
    let taken = view.take_snapshot().unwrap();
    taken.view().unwrap();
    for snapshot in [&taken, &Snapshot::zeroed(0).unwrap(), &root] {
        let stats = snapshot.stats();
        assert_eq!(from_value::<SnapshotStats>(to_value(stats).unwrap()).unwrap(), stats);
    }
    for tracking in [Tracking::Auto, Tracking::Compare, Tracking::Pagemap] {
        if view.set_tracking(tracking).is_ok() {
            let stats = view.stats();
            assert_eq!(from_value::<ViewStats>(to_value(stats).unwrap()).unwrap(), stats);
        }
    }
    drop(view);
    let stats = root.view_mut().unwrap().stats();
    assert_eq!(from_value::<ViewStats>(to_value(stats).unwrap()).unwrap(), stats);
}

#[test]
fn names_in_json_are_those_of_the_fields() {
    let snapshot = Snapshot::from_slice(&vec![1; 3 * page_size()]).unwrap();
    let mut view = snapshot.view_with(ViewOptions::new().tracking(Tracking::Compare)).unwrap();
    view[0] = 2;
    let taken = view.take_snapshot().unwrap();
    let stats = to_value(taken.stats()).unwrap();
    assert_eq!(stats["mapped"], 3 * page_size());
    assert_eq!(stats["captured"], page_size());
    assert_eq!(stats["store"]["live"], page_size());
    assert_eq!(keys(&stats), ["base", "captured", "flat", "images", "mapped", "store"]);
    let stats = to_value(view.stats()).unwrap();
    assert_eq!(stats["tracker"], "compare");
    assert_eq!(stats["why_not_faster"], "chosen");
    let names = [
        "captured",
        "costs",
        "huge",
        "images",
        "mapped",
        "mappings",
        "private",
        "reserved",
        "tracker",
        "why_not_faster",
    ];
    assert_eq!(keys(&stats), names);
    let costs = [
        "compare_page",
        "discard_run",
        "first_write",
        "move_to_huge_page",
        "protect",
        "spent_in_vain",
        "spent_on_walks",
    ];
    assert_eq!(keys(&stats["costs"]), costs);
    // This is how statistics were saved before they had costs.
    let mut earlier = stats.clone();
    earlier.as_object_mut().unwrap().remove("costs");
    assert_eq!(from_value::<ViewStats>(earlier).unwrap().costs, ViewCosts::default());
    // This is how statistics were saved before views moved bytes to huge pages.
    let mut earlier = stats.clone();
    earlier.as_object_mut().unwrap().remove("huge");
    earlier["costs"]
        .as_object_mut()
        .unwrap()
        .retain(|name, _| !["move_to_huge_page", "spent_on_walks"].contains(&&**name));
    assert_eq!(from_value::<ViewStats>(earlier).unwrap(), view.stats());
}

fn keys(object: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn reasons_come_back_the_same() {
    let reasons = [
        (WhyNotFaster::NotWorthIt, json!("not_worth_it")),
        (WhyNotFaster::Chosen, json!("chosen")),
        (WhyNotFaster::InPlace, json!("in_place")),
        (WhyNotFaster::PinnedMemory, json!("pinned_memory")),
        (
            WhyNotFaster::Refused { tracking: Tracking::Armed, os_error: 1 },
            json!({ "refused": { "tracking": "armed", "os_error": 1 } }),
        ),
    ];
    for (reason, text) in reasons {
        assert_eq!(to_value(reason).unwrap(), text);
        assert_eq!(from_value::<WhyNotFaster>(text).unwrap(), reason);
    }
}
