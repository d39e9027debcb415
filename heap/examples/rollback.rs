//! Rollback netcode with worlds that know nothing of it: unmodified hecs, and unmodified rapier2d.
//!
//! ```text
//! cargo run --release -p memsnap-heap --example rollback -- [--quick]
//! ```
//!
//! The first world has 20,000 entities with eight kinds of components, some of which own memory. The second one has 5,000
//! bodies, of which 100 never come to rest. Each is in a realm, and each also runs beside it in the way that is usual:
//! hecs with clones of its components, rapier2d with serde and bincode.
//!
//! After each frame, the game goes eight frames back, computes them again, and saves each. Then all bits of the state have
//! to be as before. hecs does so 1,000 times. The ways take turns, and the first return of a turn is not counted.
//!
//! In the end, nothing outside of the realms may refer to their memory. (This is checked on Linux.)

use std::io::{IsTerminal, stderr};

use anyhow::{Result, ensure};
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use memsnap_heap::{Realm, Router};
use memsnap_heap_bench::game::{self, ClonedComponents, Movers};
use memsnap_heap_bench::measure::seconds;
use memsnap_heap_bench::physics::{self, Serialized};
use memsnap_heap_bench::rollback::{BACK, Game, World};

/// While a closure of a realm runs, its allocations are in the realm.
#[global_allocator]
static ALLOCATOR: Router = Router::system();

/// Worlds of hecs and rapier2d that go eight frames back and again.
#[derive(Parser)]
struct Options {
    /// Go back 50 times instead of 1,000
    #[arg(long)]
    quick: bool,
}

/// How many times a world goes back in a turn.
const TURN: usize = 10;
/// The other ways are slower, so they go back only in each such turn.
const OTHERS: usize = 5;

fn main() -> Result<()> {
    let returns = if Options::parse().quick { 50 } else { 1_000 };
    let progress = progress(2 * returns);

    let mut hecs = Game::new(game::InRealm::new(Movers::FirstTenth)?)?;
    let mut clones = Game::new(ClonedComponents::new(Movers::FirstTenth))?;
    play(&mut hecs, &mut clones, returns, &progress)?;

    let mut physics = Game::new(physics::InRealm::new()?)?;
    let mut serialized = Game::new(Serialized::new())?;
    play(&mut physics, &mut serialized, returns, &progress)?;
    let awake = physics.world().awake();
    progress.finish_and_clear();

    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    let back = format!("{BACK} frames back and again");
    table.set_header(["world", "saved by", "frame + save", "save", "load", &back, "exact"]);
    let entities = format!("{} entities", game::ENTITIES);
    let bodies = format!("{} bodies, {awake} awake", physics::BODIES);
    table.add_row(row(&entities, &hecs));
    table.add_row(row(&entities, &clones));
    table.add_row(row(&bodies, &physics));
    table.add_row(row(&bodies, &serialized));
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");

    ensure!(hecs.exact == returns, "hecs was the same in {} of {returns} returns", hecs.exact);
    ensure!(physics.exact == returns, "rapier2d was the same in {} of {returns} returns", physics.exact);
    check("hecs", hecs.world().realm())?;
    check("rapier2d", physics.world().realm())?;
    println!("both worlds were the same, bit by bit, after each of {returns} returns");
    Ok(())
}

fn progress(len: usize) -> ProgressBar {
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} returns");
    ProgressBar::new(len as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Lets a world in a realm go back so many times, and lets another way take turns with it.
fn play<A: World, B: World>(
    ours: &mut Game<A>,
    other: &mut Game<B>,
    returns: usize,
    progress: &ProgressBar,
) -> Result<()> {
    for turn in 0..returns / TURN {
        (0..TURN).try_for_each(|number| ours.play(number > 0))?;
        if turn % OTHERS == 0 {
            (0..TURN).try_for_each(|number| other.play(number > 0))?;
        }
        progress.inc(TURN as u64);
    }
    Ok(())
}

fn row<W: World>(world: &str, game: &Game<W>) -> [String; 7] {
    let time = |times: &memsnap_heap_bench::measure::Times| times.median().map_or("-".to_owned(), seconds);
    [
        world.to_owned(),
        W::NAME.to_owned(),
        time(&game.frames),
        time(&game.saves),
        time(&game.loads),
        time(&game.returns),
        format!("{} of {}", game.exact, game.played),
    ]
}

/// Checks that nothing outside of the realm refers to its memory, and that the allocator is as it should be.
fn check<T>(name: &str, realm: &Realm<T>) -> Result<()> {
    if cfg!(target_os = "linux") {
        let escapes = realm.escapes()?;
        ensure!(escapes.is_empty(), "statics or thread-locals refer to memory of {name}: {escapes:?}");
    }
    ensure!(realm.freed_outside() == 0, "{} blocks of {name} were freed outside", realm.freed_outside());
    let usage = realm.check().map_err(anyhow::Error::msg)?;
    println!(
        "{name}: {} blocks with {} KiB in a realm of {} KiB",
        usage.blocks,
        usage.used >> 10,
        usage.len >> 10
    );
    Ok(())
}
