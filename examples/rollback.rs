//! Rollback netcode: a game of plain data that goes eight frames back and computes them again.
//!
//! ```text
//! cargo run --release --example rollback
//! ```
//!
//! Two players share a world of 16 MiB: terrain, and units that dig in it. The moves of the remote player arrive eight
//! frames late. Until then, the game guesses that the player repeats the last known move. If the guess was wrong, the
//! game goes back to the state before that frame, and computes the eight frames since then again.
//!
//! The game saves its state before each frame. It runs twice: once with a view and its snapshots, once with copies of
//! the world. After each return, the hash of the world is compared with the hash of a third world, for which all moves
//! are known in time. In the end, the oldest state is checked in the same way.
//!
//! The table shows medians. "Back and again" is the time to return, to compute eight frames, and to save the states
//! between them, without the hash. A game with 60 frames a second has 16.7 ms for a frame. The first five saves and
//! returns are a warm-up and are not counted.

use std::collections::VecDeque;
use std::iter;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytesize::ByteSize;
use comfy_table::{CellAlignment, Table, presets};
use memsnap::Snapshot;
use xxhash_rust::xxh3::xxh3_64;

/// A debug build plays fewer frames, since its hashes are slow.
const FRAMES: usize = if cfg!(debug_assertions) { 150 } else { 600 };
const WARM_UP: usize = 5;
/// The number of frames by which the remote player's moves are late.
const DELAY: usize = 8;

/// The world: the positions of the units, each an offset in the terrain in four bytes, and behind them the terrain.
const UNITS: u32 = 64;
const SIDE: u32 = 4096;
const TERRAIN: u32 = SIDE * SIDE;
const WORLD: usize = UNITS as usize * 4 + TERRAIN as usize;
/// The moves of a player, whose units go to the right, down, to the left, or up.
const MOVES: [u32; 4] = [1, SIDE, TERRAIN - 1, TERRAIN - SIDE];

fn new_world() -> Vec<u8> {
    let positions = (0..UNITS).flat_map(|unit| (unit * 7_919_191 % TERRAIN).to_le_bytes());
    positions.chain(iter::repeat_n(100, TERRAIN as usize)).collect()
}

/// Computes one frame. Each player moves half of the units.
fn step(world: &mut [u8], moves: [u32; 2]) {
    let (units, terrain) = world.split_at_mut(UNITS as usize * 4);
    for (number, unit) in units.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let position = (u32::from_le_bytes(*unit) + moves[number % 2]) % TERRAIN;
        *unit = position.to_le_bytes();
        let place = &mut terrain[position as usize];
        *place = place.wrapping_sub(1);
    }
}

/// Returns the move of a player in a frame. It changes after six frames at the earliest.
fn true_move(player: u64, frame: usize) -> u32 {
    let hash = xxh3_64(&(frame as u64 / 6 * 2 + player).to_le_bytes());
    MOVES[(hash % 4) as usize]
}

/// The world for which all moves are known in time, before a frame.
struct Truth {
    world: Vec<u8>,
    frame: usize,
}

impl Truth {
    /// Plays until a frame that is not in the past, and returns the hash of the world.
    fn hash_before(&mut self, frame: usize) -> u64 {
        for frame in self.frame..frame {
            step(&mut self.world, [true_move(0, frame), true_move(1, frame)]);
        }
        self.frame = frame;
        xxh3_64(&self.world)
    }
}

/// A game that was played, and its times.
struct Game<W, S> {
    world: W,
    /// For each of the last frames, the oldest first: the state before it, and the guess of the remote player's move.
    past: VecDeque<(S, u32)>,
    saves: Vec<Duration>,
    returns: Vec<Duration>,
    back_and_again: Vec<Duration>,
}

/// Plays the game. `save` puts the world into a state, which may hold an old one. `go_back` puts a state into the
/// world.
fn play<W: AsMut<[u8]>, S: Default>(
    world: W,
    save: impl Fn(&W, &mut S) -> Result<()>,
    go_back: impl Fn(&mut W, &S) -> Result<()>,
) -> Result<Game<W, S>> {
    let (saves, returns, back_and_again) = (Vec::new(), Vec::new(), Vec::new());
    let mut game = Game { world, past: VecDeque::new(), saves, returns, back_and_again };
    let mut truth = Truth { world: new_world(), frame: 0 };
    let mut known = MOVES[0];
    for frame in 0..FRAMES {
        let mut state = S::default();
        if let Some(first) = frame.checked_sub(DELAY) {
            known = true_move(1, first);
            if game.past[0].1 != known {
                let start = Instant::now();
                go_back(&mut game.world, &game.past[0].0)?;
                let returned = start.elapsed();
                let hash = xxh3_64(&game.world.as_mut()[..WORLD]);
                ensure!(hash == truth.hash_before(first), "the return to frame {first} made a wrong world");
                let start = Instant::now();
                for (late, (state, guess)) in game.past.iter_mut().enumerate() {
                    if late > 0 {
                        save(&game.world, state)?;
                    }
                    *guess = known;
                    step(game.world.as_mut(), [true_move(0, first + late), known]);
                }
                game.returns.push(returned);
                game.back_and_again.push(returned + start.elapsed());
            }
            state = game.past.pop_front().unwrap_or_default().0;
        }
        let start = Instant::now();
        save(&game.world, &mut state)?;
        game.saves.push(start.elapsed());
        game.past.push_back((state, known));
        step(game.world.as_mut(), [true_move(0, frame), known]);
    }
    // All moves before the oldest state are known, so it must be right.
    go_back(&mut game.world, &game.past[0].0)?;
    let hash = xxh3_64(&game.world.as_mut()[..WORLD]);
    ensure!(hash == truth.hash_before(FRAMES - DELAY), "the oldest state is wrong in the end");
    Ok(game)
}

fn main() -> Result<()> {
    let start = Snapshot::from_slice(&new_world())?;
    let snapshots = play(
        start.clone().into_view()?,
        |view, state: &mut Option<Snapshot>| {
            *state = Some(view.take_snapshot()?);
            Ok(())
        },
        |view, state| Ok(view.restore_to(state.as_ref().context("no state was saved")?)?),
    )?;
    let stats = start.stats();
    let shared =
        stats.base + (stats.store.live + stats.store.recyclable + snapshots.world.stats().private) as u64;
    let copies = play(
        new_world(),
        |world, state: &mut Vec<u8>| {
            state.clone_from(world);
            Ok(())
        },
        |world, state| {
            world.clone_from(state);
            Ok(())
        },
    )?;
    let copied = (WORLD * (1 + copies.past.len())) as u64;

    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(["", "how often", "snapshots", "copies"]);
    for (name, snapshots, copies) in [
        ("save the state", snapshots.saves, copies.saves),
        ("return by eight frames", snapshots.returns, copies.returns),
        ("back and again", snapshots.back_and_again, copies.back_and_again),
    ] {
        let count = (snapshots.len() - WARM_UP).to_string();
        table.add_row([name.to_owned(), count, median(snapshots), median(copies)]);
    }
    let memory = "memory of the world and eight states".to_owned();
    table.add_row([memory, "-".to_owned(), ByteSize(shared).to_string(), ByteSize(copied).to_string()]);
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    println!("{table}");
    Ok(())
}

/// Returns the median of the values after the warm-up.
fn median(mut times: Vec<Duration>) -> String {
    times.drain(..WARM_UP);
    times.sort_unstable();
    format!("{:.1?}", times[times.len() / 2])
}
