//! A game world of hecs that goes eight frames back and computes them again.

use anyhow::Result;
use memsnap_heap_bench::game::{ClonedComponents, InRealm, Movers};
use memsnap_heap_bench::rollback::{Game, World};

use super::Size;
use crate::results::{Results, Unit};

pub(crate) const NAMES: [(&str, Movers); 3] = [
    ("hecs, the first tenth moves", Movers::FirstTenth),
    ("hecs, a random tenth moves", Movers::RandomTenth),
    ("hecs, all move", Movers::All),
];
/// The time of a frame and its save.
pub(crate) const FRAME: &str = "frame + save";
/// The time of the save.
pub(crate) const SAVE: &str = "save";
/// The time to load a state.
pub(crate) const LOAD: &str = "load, 8 frames back";
/// The time to load a state, compute the frames again, and save each.
pub(crate) const RETURN: &str = "8 frames back and again";
/// The share of returns after which the state was the same, bit by bit.
pub(crate) const EXACT: &str = "exact returns / all";
/// How many times a world goes back in a turn. The first one is not counted.
const TURN: usize = 10;

pub(crate) fn run(size: &Size, results: &mut Results) -> Result<()> {
    for (name, movers) in NAMES {
        // The bar is about the first.
        let returns = if movers == Movers::FirstTenth { size.returns } else { size.returns / 10 };
        let mut subject = Game::new(InRealm::new(movers)?)?;
        let mut clones = Game::new(ClonedComponents::new(movers))?;
        let cloned_returns = (returns / 5).max(TURN);
        play(&mut subject, &mut clones, [returns, cloned_returns])?;
        add(name, &subject, results);
        add(name, &clones, results);
    }
    Ok(())
}

/// Lets two games take turns until each has gone back so many times.
pub(crate) fn play<A: World, B: World>(a: &mut Game<A>, b: &mut Game<B>, returns: [usize; 2]) -> Result<()> {
    let mut played = [0; 2];
    while played != returns {
        let turns = [0, 1].map(|game: usize| TURN.min(returns[game] - played[game]));
        (0..turns[0]).try_for_each(|number| a.play(number > 0))?;
        (0..turns[1]).try_for_each(|number| b.play(number > 0))?;
        played = [played[0] + turns[0], played[1] + turns[1]];
    }
    Ok(())
}

/// Adds the measurements of a game.
pub(crate) fn add<W: World>(workload: &'static str, game: &Game<W>, results: &mut Results) {
    let times = [(FRAME, &game.frames), (SAVE, &game.saves), (LOAD, &game.loads), (RETURN, &game.returns)];
    for (metric, times) in times {
        times.seconds().for_each(|time| results.add([workload, W::NAME, metric], Unit::Seconds, time));
    }
    results.add([workload, W::NAME, EXACT], Unit::Number, game.exact as f64 / game.played as f64);
}
