//! Measures a push of a child to a bucket on loopback that has the parent.

use anyhow::Result;
use memsnap_store::{Remote, Repository};
use memsnap_store_s3::Server;

use super::{Bench, timed};
use crate::changes::{self, Changes, Contents};
use crate::place::remove;
use crate::results::{Results, Unit};

/// The name in the record.
pub(crate) const NAME: &str = "push";
/// The contents of the changed pages, and their names in the record.
pub(crate) const ALL: [(&str, Contents); 2] = [
    ("a child of 256 random pages", Contents::Random),
    ("a child of 256 memory-like pages", Contents::Memory),
];
/// The bytes that were sent and received, divided by the compressed changes.
pub(crate) const BYTES: &str = "bytes / compressed changes";
/// The number of requests of a push.
pub(crate) const REQUESTS: &str = "requests";

pub(crate) fn run(bench: &Bench, results: &mut Results) -> Result<()> {
    let place = bench.disk();
    let path = bench.repository(place)?;
    let repository = Repository::create(&path)?;
    let base = repository.save(&bench.snapshot).name("base").run()?;
    let server = Server::start();
    let remote = Remote::create(&server.url(), &server.options())?;
    bench.tell(&format!("{NAME}: the image"));
    let before = remote.traffic();
    let (_, time) = timed(|| repository.push(&remote, base.id()).run())?;
    let traffic = remote.traffic();
    let key = [NAME, place.name, "the image"];
    results.time(key, time);
    results.bytes([key[0], key[1], key[2], "sent"], traffic.sent - before.sent);
    results.bytes([key[0], key[1], key[2], "received"], traffic.received - before.received);
    let requests = traffic.requests - before.requests;
    results.add([key[0], key[1], key[2], REQUESTS], Unit::Number, requests as f64);

    let mut view = base.snapshot().view()?;
    for (seed, (way, contents)) in (8..).zip(ALL) {
        let mut changes = Changes::new(seed);
        for round in 0..=bench.rounds {
            bench.tell(&format!("{NAME}, {way}: round {round} of {}", bench.rounds));
            let change = changes.next(&bench.image, contents);
            changes::apply(&change, &mut view);
            let child = repository.save(&view.take_snapshot()?).parent(&base).run()?;
            view.restore()?;
            let before = remote.traffic();
            let (_, time) = timed(|| repository.push(&remote, child.id()).run())?;
            let traffic = remote.traffic();
            // The first round is not counted.
            if round > 0 {
                let (sent, received) = (traffic.sent - before.sent, traffic.received - before.received);
                let key = |metric| [NAME, place.name, way, metric];
                results.time([NAME, place.name, way], time);
                results.bytes(key("sent"), sent);
                results.bytes(key("received"), received);
                let ratio = (sent + received) as f64 / changes::compressed(&change)? as f64;
                results.add(key(BYTES), Unit::Number, ratio);
                results.add(key(REQUESTS), Unit::Number, (traffic.requests - before.requests) as f64);
            }
        }
    }
    drop(repository);
    remove(&path)
}
