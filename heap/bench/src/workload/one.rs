//! A small map that is marked after each change.

use anyhow::Result;
use memsnap_heap_bench::map::{Im, Imbl, InHeap, Player, Rpds, Timed};

use super::Size;
use super::map::{BOTH, CHANGES, MARK};
use crate::results::{Results, Unit};

pub(crate) const NAME: &str = "one change";

/// The steps of a turn, of which the first [`WARM`] are not counted.
const STEPS: usize = 250;
const WARM: usize = 50;
/// The marks that each way keeps. Later marks use the memory of dropped ones.
const KEPT: usize = 100;

pub(crate) fn run(size: &Size, results: &mut Results) -> Result<()> {
    let entries = size.few_entries;
    let mut players = [
        Player::new(Timed::<InHeap>::new(entries, KEPT)?, entries),
        Player::new(Timed::<Im>::new(entries, KEPT)?, entries),
        Player::new(Timed::<Imbl>::new(entries, KEPT)?, entries),
        Player::new(Timed::<Rpds>::new(entries, KEPT)?, entries),
    ];
    for _ in 0..size.turns {
        for Player { contender, script } in &mut players {
            for step in 0..STEPS {
                let [changed, marked] = contender.step(&script.changes(1))?;
                if step >= WARM {
                    for (metric, time) in [(CHANGES, changed), (MARK, marked), (BOTH, changed + marked)] {
                        results.add([NAME, contender.name(), metric], Unit::Seconds, time.as_secs_f64());
                    }
                }
            }
        }
    }
    Ok(())
}
