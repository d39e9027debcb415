//! The tests of remotes on Garage.
//!
//! One of its nodes is killed meanwhile. `ci/garage` starts the nodes and runs this test.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use memsnap_store::{Remote, RemoteOptions, kit};

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|error| panic!("{name}: {error}; ci/garage sets it"))
}

#[test]
#[ignore = "needs Garage: run ci/garage"]
fn garage_passes_the_kit_and_goes_on_when_a_node_is_killed() {
    let url = variable("MEMSNAP_GARAGE_URL");
    let victim = variable("MEMSNAP_GARAGE_KILL");
    let options = RemoteOptions::new().timeout(Duration::from_secs(30));

    let remote = Remote::create(&format!("{url}/kit"), &options).unwrap();
    let conditional = remote.honours_conditions().unwrap();
    println!("conditions: {}", if conditional { "honoured" } else { "ignored" });
    let open = || Remote::open(&format!("{url}/kit"), &options);
    kit::all(&open);
    println!("kit with three nodes: passed, {:?}", remote.traffic());
    kit::movers_at_once_lose_nothing(&remote, &open().unwrap());
    println!("moves of a name at the same time, with three nodes: passed");

    // Writing and reading continues while the node is killed. Each round has to succeed.
    let working = Remote::create(&format!("{url}/working"), &options).unwrap();
    let done = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let (mut rounds, mut longest) = (0, Duration::ZERO);
            while !done.load(Ordering::Relaxed) || rounds < 3 {
                let began = Instant::now();
                kit::objects_are_written_read_and_deleted(&working);
                kit::packs_are_marked(&working);
                longest = longest.max(began.elapsed());
                rounds += 1;
            }
            (rounds, longest)
        });
        std::thread::sleep(Duration::from_secs(3));
        assert!(Command::new("kill").args(["-9", &victim]).status().unwrap().success());
        println!("killed the node with the process {victim}");
        std::thread::sleep(Duration::from_secs(10));
        done.store(true, Ordering::Relaxed);
        worker.join().unwrap()
    });
    println!("rounds of requests around the kill: {}, the longest took {:?}", rounds.0, rounds.1);

    // The objects that were written before exist, and everything works with two nodes.
    let after = open().unwrap();
    assert_eq!(after.names().unwrap(), remote.names().unwrap());
    assert!(!after.names().unwrap().is_empty());
    Remote::create(&format!("{url}/two"), &options).unwrap();
    let open = || Remote::open(&format!("{url}/two"), &options);
    kit::all(&open);
    kit::movers_at_once_lose_nothing(&open().unwrap(), &open().unwrap());
    println!("kit with two nodes: passed");
}
