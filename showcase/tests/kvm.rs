//! Guest memory that is a view: written pages count as changed, are captured, and are restored.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::io::{self, ErrorKind, Write};
use std::process::Command;
use std::thread;

use memsnap::{Tracking, ViewOptions, page_size};
use memsnap_showcase::kvm::{self, Checkpoint, MEMORY, Machine, Memory, Model, WORK_PAGES};
use memsnap_store::Repository;

/// Prints that `test` cannot run here, even if the output of tests is captured.
fn skip(test: &str, reason: &str) {
    let _ = io::stderr().write_all(format!("\nskipped: {test}: {reason}\n").as_bytes());
}

/// Boots a machine that has written `pages` pages, and makes its model.
///
/// Returns `None` and prints the reason if no machine can run here.
fn booted<A: Memory>(test: &str, options: &ViewOptions<A>, pages: usize) -> Option<(Machine<A>, Model)> {
    if let Some(reason) = kvm::unavailable() {
        skip(test, &reason);
        return None;
    }
    let (mut machine, mut model) = (Machine::boot(options).unwrap(), Model::default());
    batch(&mut machine, &mut model, pages);
    Some((machine, model))
}

/// Runs the guest and the model for `steps` steps, and compares their reports.
fn batch<A: Memory>(machine: &mut Machine<A>, model: &mut Model, steps: usize) {
    machine.set_steps(steps).unwrap();
    assert_eq!(machine.run().unwrap(), model.run(steps), "after {steps} steps");
}

/// Returns options for each tracking method, and for a view that keeps no private page through a restore.
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

/// Returns options for views to which the machine reports the pages in KVM's dirty log.
///
/// Both check in all builds that every written page was reported. The second keeps no private page through a restore.
fn logged() -> [ViewOptions<memsnap::Logged>; 2] {
    [
        ViewOptions::logged().checked(true).clone(),
        ViewOptions::logged().checked(true).keep_resident(0).clone(),
    ]
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
    goes_back_ten_thousand_times(test, &ViewOptions::new());
    // With checks, each restore would compare all pages that the checkpoint has captured.
    goes_back_ten_thousand_times(test, ViewOptions::logged().checked(false));
}

fn goes_back_ten_thousand_times<A: Memory>(test: &str, options: &ViewOptions<A>) {
    let Some((mut machine, model)) = booted(test, options, WORK_PAGES) else { return };
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

/// Guests write through page tables of their own. The process may have no entries for these pages, and changes to its own
/// page tables do not affect those of the guest by themselves.
#[test]
fn every_way_of_tracking_sees_what_the_guest_writes() {
    let test = "every_way_of_tracking_sees_what_the_guest_writes";
    every_way(test).iter().for_each(|options| sees_what_the_guest_writes(test, options));
    logged().iter().for_each(|options| sees_what_the_guest_writes(test, options));
}

fn sees_what_the_guest_writes<A: Memory>(test: &str, options: &ViewOptions<A>) {
    let Some((mut machine, model)) = booted(test, options, 2000) else { return };
    let before = machine.checkpoint().unwrap();
    for steps in [1, 40, 700, 2500] {
        let mut after = model.clone();
        batch(&mut machine, &mut after, steps);
        let written = after.pages_since(&model);
        let changed = machine.changes().unwrap();
        let changed: Vec<_> = changed.into_iter().flat_map(|range| range.step_by(page_size())).collect();
        assert!(written.iter().all(|page| changed.contains(page)), "{options:?}: {steps} steps");
        // The processor marks entries of the guest's page tables as used, which changes these three pages.
        let tables = 3;
        assert!(changed.len() <= written.len() + tables, "{options:?}: {} changed", changed.len());
        let taken = machine.checkpoint().unwrap();
        let view = taken.memory().view().unwrap();
        assert!(after.matches(&view), "{options:?}: a snapshot after {steps}");
        machine.restore(&before).unwrap();
        assert!(model.matches(machine.memory()), "{options:?}: a restore after {steps}");
        let again = machine.checkpoint().unwrap();
        assert_eq!(before.memory().diff(again.memory()).unwrap().ranges(), [], "{options:?}");
    }
}

/// Jumps between checkpoints, forwards and back, and takes new ones on the way.
#[test]
fn any_checkpoint_can_be_gone_back_to() {
    let test = "any_checkpoint_can_be_gone_back_to";
    every_way(test).iter().for_each(|options| jumps_between_checkpoints(test, options));
    logged().iter().for_each(|options| jumps_between_checkpoints(test, options));
}

fn jumps_between_checkpoints<A: Memory>(test: &str, options: &ViewOptions<A>) {
    let Some((mut machine, mut model)) = booted(test, options, 2000) else { return };
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

/// KVM's dirty log does not contain the pages that the host writes. The machine has to report them itself.
#[test]
fn what_the_host_writes_is_captured_and_goes_back() {
    let test = "what_the_host_writes_is_captured_and_goes_back";
    every_way(test).iter().for_each(|options| host_writes_go_back(test, options));
    logged().iter().for_each(|options| host_writes_go_back(test, options));
}

fn host_writes_go_back<A: Memory>(test: &str, options: &ViewOptions<A>) {
    let Some((mut machine, model)) = booted(test, options, 100) else { return };
    let before = machine.checkpoint().unwrap();
    // These bytes are in two pages that the guest does not use.
    let (start, bytes) = (0x20_0000 - 3, b"device");
    let range = start..start + bytes.len();
    batch(&mut machine, &mut model.clone(), 10);
    machine.write(start, bytes).unwrap();
    let after = machine.checkpoint().unwrap();
    assert_eq!(after.memory().view().unwrap()[range.clone()], *bytes, "{options:?}");
    machine.restore(&before).unwrap();
    assert_eq!(machine.memory()[range.clone()], [0; 6], "{options:?}");
    machine.restore(&after).unwrap();
    assert_eq!(machine.memory()[range], *bytes, "{options:?}");
    assert!(machine.write(MEMORY - 1, b"no").is_err());
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

#[test]
fn a_saved_machine_continues_in_another_process() {
    let test = "a_saved_machine_continues_in_another_process";
    let options = ViewOptions::new();
    let Some((mut machine, mut model)) = booted(test, &options, WORK_PAGES) else { return };
    let folder = tempfile::tempdir().unwrap();
    let repository = Repository::create(folder.path()).unwrap();
    let saved = machine.checkpoint().unwrap().save(&repository, "machine", WORK_PAGES, None).unwrap();
    batch(&mut machine, &mut model, 300);
    let child = machine.checkpoint().unwrap();
    let child = child.save(&repository, "machine", WORK_PAGES + 300, Some(&saved)).unwrap();
    assert!(repository.manifest(&child).unwrap().stored < repository.manifest(&saved).unwrap().stored / 10);
    drop((machine, repository));

    for round in 1..=3 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvm"));
        let output = command.arg("--folder").arg(folder.path()).args(["--steps", "700"]).output().unwrap();
        let (said, error) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "round {round}: {said}{error}");
        let expected = model.run(700);
        let sums = format!("its sums are {:x} and {:x};", expected.sum, expected.mix);
        assert!(said.contains(&sums), "round {round}: {said}instead of: {sums}");
    }

    // The machine comes back into this process, and continues here.
    let repository = Repository::open(folder.path()).unwrap();
    let saved = repository.load("machine").run().unwrap();
    let (checkpoint, steps) = Checkpoint::of_saved(&repository, &saved).unwrap();
    assert_eq!(steps, model.steps());
    let mut machine = Machine::from_checkpoint(&checkpoint, &options).unwrap();
    assert!(model.matches(machine.memory()), "the loaded memory");
    batch(&mut machine, &mut model, 50);

    let plain = repository.save(checkpoint.memory()).run().unwrap();
    let error = Checkpoint::of_saved(&repository, &plain).err().unwrap();
    assert!(format!("{error:#}").contains("has no processor.json"), "{error:#}");
}
