//! The tests of pushing and pulling over the S3 protocol.

#[path = "../../tests/common/mod.rs"]
mod common;

use common::process;
use common::transfer::{self, Open};
use memsnap_store::{Remote, Result};
use memsnap_store_s3::Server;

/// Opens the remote of a process. `address` is the address of the server.
fn open(address: &str) -> Result<Remote> {
    Remote::open_or_create("s3://bucket/repository", &Server::options_of(address))
}

fn over_s3(test: fn(Open<'_>)) {
    let server = Server::start();
    test(&|| open(&server.address()).unwrap());
}

#[test]
fn children_arrive() {
    over_s3(transfer::children_arrive);
}

#[test]
fn equal_blocks_are_sent_once() {
    over_s3(transfer::equal_blocks_are_sent_once);
}

#[test]
fn costs_are_those_of_the_changes() {
    over_s3(transfer::costs_are_those_of_the_changes);
}

#[test]
fn removed_snapshots_are_collected() {
    over_s3(transfer::removed_snapshots_are_collected);
}

#[test]
fn packs_that_are_known_in_part_are_used() {
    over_s3(transfer::packs_that_are_known_in_part_are_used);
}

#[test]
fn manifests_that_stay_keep_their_packs() {
    over_s3(transfer::manifests_that_stay_keep_their_packs);
}

#[test]
#[ignore = "is one of the processes of the next test"]
fn process() {
    process::run(open);
}

#[test]
fn two_machines_push_to_a_bucket_while_another_one_collects_it() {
    let server = Server::start();
    process::machines_share_a_remote("process", &server.address(), open);
}
