//! Guest memory that is a view: what the guest writes counts as changed, is captured, and goes back.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::io::{self, ErrorKind, Write};
use std::thread;

use memsnap::{Tracking, ViewOptions, page_size};
use memsnap_showcase::kvm::{self, Checkpoint, Machine, Model, WORK_PAGES};

/// Says that `test` cannot run here, also where the output of tests is captured.
fn skip(test: &str, reason: &str) {
    let _ = io::stderr().write_all(format!("\nskipped: {test}: {reason}\n").as_bytes());
}

/// A machine that has written `pages` pages, and its model; none, and why, where there are no machines.
fn booted(test: &str, options: &ViewOptions, pages: usize) -> Option<(Machine, Model)> {
    if let Some(reason) = kvm::unavailable() {
        skip(test, &reason);
        return None;
    }
    let (mut machine, mut model) = (Machine::boot(options).unwrap(), Model::default());
    batch(&mut machine, &mut model, pages);
    Some((machine, model))
}

/// Lets guest and model go `steps`, and compares what they report.
fn batch(machine: &mut Machine, model: &mut Model, steps: usize) {
    machine.set_steps(steps).unwrap();
    assert_eq!(machine.run().unwrap(), model.run(steps), "after {steps} steps");
}

/// Options for each way of finding written pages, and for one that keeps nothing through a restore.
fn every_way(test: &str) -> Vec<ViewOptions> {
    let mut all = vec![ViewOptions::new().keep_resident(0).clone()];
    for tracking in [Tracking::Auto, Tracking::Armed, Tracking::Scan, Tracking::Pagemap, Tracking::Compare] {
        let options = ViewOptions::new().tracking(tracking).clone();
        match memsnap::Snapshot::zeroed(1).unwrap().into_view_with(&options) {
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                skip(&format!("{test}, {tracking:?}"), &error.to_string());
            }
            view => {
                view.unwrap();
                all.push(options);
            }
        }
    }
    all
}

#[test]
fn the_guest_computes_what_the_model_says() {
    let test = "the_guest_computes_what_the_model_says";
    let Some((mut machine, mut model)) = booted(test, &ViewOptions::new(), WORK_PAGES) else { return };
    for steps in [1, 2, 1000, WORK_PAGES] {
        batch(&mut machine, &mut model, steps);
        assert!(model.matches(machine.memory()), "guest memory after {steps} steps");
    }
}

#[test]
fn ten_thousand_restores_give_the_same_result() {
    let test = "ten_thousand_restores_give_the_same_result";
    let Some((mut machine, model)) = booted(test, &ViewOptions::new(), WORK_PAGES) else { return };
    machine.set_steps(64).unwrap();
    let checkpoint = machine.checkpoint().unwrap();
    let expected = model.clone().run(64);
    for round in 0..10_000 {
        assert_eq!(machine.run().unwrap(), expected, "round {round}");
        if round % 10 == 0 {
            machine.run().unwrap();
        }
        machine.restore(&checkpoint).unwrap();
        if round % 1000 == 0 {
            assert!(model.matches(machine.memory()), "guest memory after round {round}");
        }
    }
}

/// Guests write through page tables of their own, of which the process has no entries until the kernel looks, and
/// that outlive whatever the process does to its own.
#[test]
fn every_way_of_tracking_sees_what_the_guest_writes() {
    let test = "every_way_of_tracking_sees_what_the_guest_writes";
    for options in every_way(test) {
        let Some((mut machine, model)) = booted(test, &options, 2000) else { return };
        let before = machine.checkpoint().unwrap();
        for steps in [1, 40, 700, 2500] {
            let mut after = model.clone();
            batch(&mut machine, &mut after, steps);
            let written = after.pages_since(&model);
            let changed = machine.memory().changes().unwrap().ranges();
            let changed: Vec<_> =
                changed.iter().flat_map(|range| range.clone().step_by(page_size())).collect();
            assert!(written.iter().all(|page| changed.contains(page)), "{options:?}: {steps} steps");
            // The processor marks the entries of page tables as used.
            let tables = 3;
            assert!(changed.len() <= written.len() + tables, "{options:?}: {} changed", changed.len());
            let taken = machine.checkpoint().unwrap();
            assert!(after.matches(&taken.memory().view().unwrap()), "{options:?}: a snapshot after {steps}");
            machine.restore(&before).unwrap();
            assert!(model.matches(machine.memory()), "{options:?}: a restore after {steps}");
            let again = machine.checkpoint().unwrap();
            assert_eq!(before.memory().diff(again.memory()).unwrap().ranges(), [], "{options:?}");
        }
    }
}

/// Jumps between checkpoints, forwards and back, and takes new ones on the way.
#[test]
fn any_checkpoint_can_be_gone_back_to() {
    let test = "any_checkpoint_can_be_gone_back_to";
    for options in every_way(test) {
        let Some((mut machine, mut model)) = booted(test, &options, 2000) else { return };
        let mut kept: Vec<(Checkpoint, Model)> = vec![(machine.checkpoint().unwrap(), model.clone())];
        for round in 0..30_usize {
            batch(&mut machine, &mut model, 1 + round * 37 % 300);
            if round % 3 == 0 {
                kept.push((machine.checkpoint().unwrap(), model.clone()));
            }
            if round % 2 == 0 {
                let (checkpoint, then) = &kept[round * 7 % kept.len()];
                machine.restore(checkpoint).unwrap();
                model = then.clone();
            }
        }
        assert!(model.matches(machine.memory()), "{options:?}");
        for (checkpoint, then) in &kept {
            assert!(then.matches(&checkpoint.memory().view().unwrap()), "{options:?}: a checkpoint changed");
        }
    }
}

#[test]
fn machines_that_start_from_one_checkpoint_do_not_see_each_other() {
    let test = "machines_that_start_from_one_checkpoint_do_not_see_each_other";
    let Some((machine, model)) = booted(test, &ViewOptions::new(), WORK_PAGES) else { return };
    let checkpoint = machine.checkpoint().unwrap();
    drop(machine);
    thread::scope(|scope| {
        for number in 1..=8 {
            let (checkpoint, mut model) = (&checkpoint, model.clone());
            scope.spawn(move || {
                let mut machine = Machine::from_checkpoint(checkpoint, &ViewOptions::new()).unwrap();
                for _ in 0..5 {
                    batch(&mut machine, &mut model, 100 * number);
                }
                assert!(model.matches(machine.memory()), "machine {number}");
            });
        }
    });
    assert!(model.matches(&checkpoint.memory().view().unwrap()), "the checkpoint changed");
}
