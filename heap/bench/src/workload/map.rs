//! A map of a million entries that is marked after every 1,000 changes.

use anyhow::{Result, ensure};
#[cfg(unix)]
use memsnap_heap_bench::map::Forked;
use memsnap_heap_bench::map::{Cloned, Im, Imbl, InHeap, Map, Player, Rpds, Script, Timed};
use memsnap_heap_bench::measure::resident;

use super::Size;
use crate::results::{Results, Unit};

pub(crate) const NAME: &str = "map";
/// The time of the changes.
pub(crate) const CHANGES: &str = "changes";
/// The time of the mark.
pub(crate) const MARK: &str = "mark";
/// The time of the changes and the mark.
pub(crate) const BOTH: &str = "changes + mark";
/// The time to go back over as many changes.
pub(crate) const BACK: &str = "back";
/// The time to look up an entry.
pub(crate) const READ: &str = "reading an entry";
/// The growth of the process by a mark and the changes before it.
pub(crate) const MEMORY: &str = "memory of a mark";

/// The steps of a turn, of which the first [`WARM`] are not counted.
const STEPS: usize = 6;
const WARM: usize = 2;
/// The marks that each way keeps: as many as are needed to measure their memory. Later marks use the memory of dropped ones.
const KEPT: usize = 9;
/// The marks by which their memory is measured.
const MARKS: u32 = 8;
/// The keys that are looked up in a turn.
const KEYS: usize = 50_000;

pub(crate) fn run(size: &Size, results: &mut Results) -> Result<()> {
    let entries = size.entries;
    let changes = size.changes;
    let mut players = vec![
        // `fork` comes first, while this process is small.
        #[cfg(unix)]
        Player::new(Forked::new(entries)?, entries),
        player::<InHeap>(entries, changes, results)?,
        player::<Cloned>(entries, changes, results)?,
        player::<Im>(entries, changes, results)?,
        player::<Imbl>(entries, changes, results)?,
        player::<Rpds>(entries, changes, results)?,
    ];
    for turn in 0..size.turns {
        for player in &mut players {
            take_turn(player, turn, changes, results)?;
        }
    }
    let hashes: Vec<_> = players.iter().filter_map(|player| player.contender.hash()).collect();
    ensure!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "the maps differ in the end");
    Ok(())
}

/// Makes a map, and measures the memory of its first marks.
fn player<M: Map + 'static>(entries: u64, changes: usize, results: &mut Results) -> Result<Player> {
    let mut player = Player::new(Timed::<M>::new(entries, KEPT)?, entries);
    let before = resident();
    for _ in 0..MARKS {
        player.contender.step(&player.script.changes(changes))?;
    }
    if let (Some(before), Some(after)) = (before, resident()) {
        results.bytes([NAME, M::NAME, MEMORY], (after - before).max(0.0) / f64::from(MARKS));
    }
    Ok(player)
}

fn take_turn(player: &mut Player, turn: usize, changes: usize, results: &mut Results) -> Result<()> {
    let Player { contender, script } = player;
    let name = contender.name();
    for step in 0..STEPS {
        let [changed, marked] = contender.step(&script.changes(changes))?;
        if step >= WARM {
            for (metric, time) in [(CHANGES, changed), (MARK, marked), (BOTH, changed + marked)] {
                results.add([NAME, name, metric], Unit::Seconds, time.as_secs_f64());
            }
        }
    }
    let mut undone = script.clone();
    for step in 0..2 {
        if let Some(back) = contender.undo(&undone.changes(changes))?
            && step > 0
        {
            results.add([NAME, name, BACK], Unit::Seconds, back.as_secs_f64());
        }
    }
    let keys = Script::new(100 + turn as u64, script.entries()).keys(KEYS);
    contender.read(&keys);
    if let Some(time) = contender.read(&keys) {
        results.add([NAME, name, READ], Unit::Seconds, time.as_secs_f64() / keys.len() as f64);
    }
    Ok(())
}
