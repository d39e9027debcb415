//! Saving a world by cloning its components, with a map for each kind, as `bevy_ggrs` does.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use anyhow::{Context, Result};
use hecs::{Component, Entity, World};
use rustc_hash::FxHasher;

use super::{Health, Inventory, Movers, Name, Number, Plan, Position, Rotation, Velocity, build, hash, step};
use crate::rollback;

type Column<C> = HashMap<Entity, C, BuildHasherDefault<FxHasher>>;

/// All components of a world.
pub struct Components {
    numbers: Column<Number>,
    positions: Column<Position>,
    velocities: Column<Velocity>,
    rotations: Column<Rotation>,
    healths: Column<Health>,
    plans: Column<Plan>,
    inventories: Column<Inventory>,
    names: Column<Name>,
}

/// A world that is saved by cloning its components.
pub struct ClonedComponents {
    world: World,
    movers: Movers,
}

impl ClonedComponents {
    /// Makes the world.
    #[must_use]
    pub fn new(movers: Movers) -> Self {
        Self { world: build(), movers }
    }
}

fn column<C: Component + Clone>(world: &mut World) -> Column<C> {
    world.query_mut::<(Entity, &C)>().into_iter().map(|(entity, it)| (entity, it.clone())).collect()
}

fn put_back<C: Component + Clone>(world: &mut World, column: &Column<C>) {
    for (entity, component) in world.query_mut::<(Entity, &mut C)>() {
        if let Some(saved) = column.get(&entity) {
            component.clone_from(saved);
        }
    }
}

/// Makes an entity that has died since the save.
fn revive(world: &mut World, entity: Entity, saved: &Components) -> Option<()> {
    let components = (
        *saved.positions.get(&entity)?,
        *saved.velocities.get(&entity)?,
        *saved.rotations.get(&entity)?,
        *saved.healths.get(&entity)?,
        *saved.plans.get(&entity)?,
        saved.names.get(&entity)?.clone(),
        *saved.numbers.get(&entity)?,
    );
    world.spawn_at(entity, components);
    if let Some(inventory) = saved.inventories.get(&entity) {
        world.insert_one(entity, inventory.clone()).ok()?;
    }
    Some(())
}

impl rollback::World for ClonedComponents {
    type Saved = Components;

    const NAME: &'static str = "cloning the components";

    fn step(&mut self, frame: u32) {
        step(&mut self.world, frame, self.movers);
    }

    fn save(&mut self) -> Result<Components> {
        let world = &mut self.world;
        Ok(Components {
            numbers: column(world),
            positions: column(world),
            velocities: column(world),
            rotations: column(world),
            healths: column(world),
            plans: column(world),
            inventories: column(world),
            names: column(world),
        })
    }

    fn load(&mut self, saved: &Components) -> Result<()> {
        let world = &mut self.world;
        let entities = world.query_mut::<Entity>().into_iter();
        let new: Vec<_> = entities.filter(|entity| !saved.numbers.contains_key(entity)).collect();
        for entity in new {
            world.despawn(entity)?;
        }
        for entity in saved.numbers.keys() {
            if !world.contains(*entity) {
                revive(world, *entity, saved).context("a saved entity lacks a component")?;
            }
        }
        put_back(world, &saved.positions);
        put_back(world, &saved.velocities);
        put_back(world, &saved.rotations);
        put_back(world, &saved.healths);
        put_back(world, &saved.plans);
        put_back(world, &saved.inventories);
        put_back(world, &saved.names);
        Ok(())
    }

    fn hash(&mut self) -> u64 {
        hash(&self.world)
    }
}
