//! What is going on when power fails.

use virtkeep_repo::{Cancel, OpenOptions, Repository, Result};

use crate::model::Survival;
use crate::power::Plan;
use crate::world::{Machine, Quiet, World};

/// Something that happens to a repository.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// What came before, with power. It may leave a world as a kill left it.
    pub(crate) before: fn(&mut Machine) -> World,
    /// What power fails in.
    pub(crate) work: fn(&World, &mut Machine) -> Result<()>,
}

impl Scenario {
    /// How many operations it takes, more or less: threads do not meet the same way each time.
    pub(crate) fn operations(&self, world: &World, machine: &Machine) -> u64 {
        let counted = world.copy(1);
        counted.disk.follow(Plan::AllWell, || {});
        (self.work)(&counted, &mut machine.clone()).unwrap();
        counted.disk.operations()
    }
}

pub(crate) const FIRST_BACKUP: Scenario = Scenario {
    name: "first backup",
    before: |_| World::new(1),
    work: |world, machine| machine.back_up(&world.open()?),
};

pub(crate) const INCREMENTAL: Scenario = Scenario {
    name: "incremental backup",
    before: |machine| {
        let world = World::new(2);
        let repo = world.open().unwrap();
        machine.back_up(&repo).unwrap();
        machine.works();
        machine.back_up_changes(&repo).unwrap();
        machine.works();
        world
    },
    work: |world, machine| machine.back_up_changes(&world.open()?),
};

pub(crate) const AFTER_A_KILL: Scenario = Scenario {
    name: "backup after a killed one",
    before: |machine| {
        let world = World::new(3);
        machine.back_up(&world.open().unwrap()).unwrap();
        machine.works();
        // Killed when it has stored most, and before the index knows of it.
        let mut killed = machine.clone();
        let trial = world.copy(3);
        trial.disk.follow(Plan::AllWell, || {});
        killed.back_up_changes(&trial.open().unwrap()).unwrap();
        let at = trial.disk.operations() * 2 / 5;
        world
            .disk
            .follow(Plan::PowerLoss { at }, world.last_words());
        let mut killed = machine.clone();
        killed.back_up_changes(&world.open().unwrap()).unwrap_err();
        world.after_power_loss(Survival::Everything, 3)
    },
    work: |world, machine| machine.back_up_changes(&world.open()?),
};

pub(crate) const REBUILD: Scenario = Scenario {
    name: "rebuilding the index",
    before: |machine| {
        let world = World::new(4);
        let repo = world.open().unwrap();
        machine.back_up(&repo).unwrap();
        machine.works();
        machine.back_up_changes(&repo).unwrap();
        world
    },
    work: |world, _| rebuild(world),
};

pub(crate) const PIN: Scenario = Scenario {
    name: "pinning and unpinning",
    before: |machine| {
        let world = World::new(5);
        machine.back_up(&world.open().unwrap()).unwrap();
        world
    },
    work: |world, machine| {
        let repo = world.open()?;
        let point = machine.last().unwrap();
        let first = machine.pin(&repo, point)?;
        machine.pin(&repo, point)?;
        machine.unpin(&repo, &first)
    },
};

pub(crate) const FORGET: Scenario = Scenario {
    name: "forgetting",
    before: three_points,
    work: |world, machine| {
        let points = machine.points();
        machine.forget(&world.open()?, &points[..2])
    },
};

pub(crate) const UNDO_FORGET: Scenario = Scenario {
    name: "taking back that a point was forgotten",
    before: |machine| {
        let world = three_points(machine);
        let point = machine.points()[1];
        machine.forget(&world.open().unwrap(), &[point]).unwrap();
        world
    },
    work: |world, machine| {
        let point = machine.points()[1];
        machine.undo_forget(&world.open()?, point)
    },
};

/// Some of what no point needs is in packs of its own, some beside what is needed.
pub(crate) const PRUNE: Scenario = Scenario {
    name: "pruning",
    before: |machine| {
        let world = three_points(machine);
        let repo = world.open().unwrap();
        machine.forget(&repo, &machine.points()[..2]).unwrap();
        machine.works();
        machine.back_up_changes(&repo).unwrap();
        world
    },
    work: |world, machine| machine.prune(&world.open()?).map(drop),
};

fn three_points(machine: &mut Machine) -> World {
    let world = World::new(6);
    let repo = world.open().unwrap();
    machine.back_up(&repo).unwrap();
    for _ in 0..2 {
        machine.works();
        machine.back_up_changes(&repo).unwrap();
    }
    world
}

/// Builds the index anew, as `virtkeep repair` does.
pub(crate) fn rebuild(world: &World) -> Result<()> {
    let options = OpenOptions::default();
    let (parts, env) = (world.parts(), world.env());
    let report = Repository::rebuild_index_on(parts, &options, env, &Quiet, &Cancel::new())?;
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    Ok(())
}
