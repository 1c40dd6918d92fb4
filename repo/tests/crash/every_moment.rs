//! Power fails at every moment of a scenario. Then: the repository opens, also where nothing may be
//! written; check finds no damage; every committed point is there byte by byte; and the next backups
//! work.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use virtkeep_repo::{Error, RawId, Result};

use crate::effort::Effort;
use crate::model::Survival;
use crate::power::Plan;
use crate::scenarios::{
    AFTER_A_KILL, FIRST_BACKUP, FORGET, INCREMENTAL, PIN, PRUNE, REBUILD, REPAIR, REPAIR_ANEW,
    Scenario, UNDO_FORGET, index_of,
};
use crate::world::{Machine, ROOT, World};

/// What becomes of that which was not synced; tried in turn.
const FATES: [Survival; 6] = [
    Survival::ByChance,
    Survival::Names,
    Survival::UpToAMoment,
    Survival::Nothing,
    Survival::Everything,
    Survival::Content,
];

/// Moments tried by default, for each scenario.
const MOMENTS: u64 = 9;

fn survives(scenario: &Scenario) {
    let mut machine = Machine::new(1);
    let world = (scenario.before)(&mut machine);
    let all = scenario.operations(&world, &machine);
    let effort = Effort::chosen(MOMENTS);
    let moments = effort.of(all);
    let mut fates = 0;
    for at in &moments {
        let mut machine = machine.clone();
        let run = world.copy(*at);
        let plan = Plan::PowerLoss { at: *at };
        run.disk.follow(plan, run.last_words());
        // It may have done all it promised by then, as far as the caller can tell.
        (scenario.work)(&run, &mut machine).ok();
        for number in 0..effort.seeds {
            let survival = FATES[((at + number) % 6) as usize];
            let seed = at * 1000 + number;
            let examined = catch_unwind(AssertUnwindSafe(|| {
                examine(
                    run.after_power_loss(survival, seed),
                    &machine,
                    scenario,
                    seed,
                );
            }));
            if let Err(panic) = examined {
                let (name, trace) = (scenario.name, run.disk.trace());
                eprintln!("{name}: {survival:?} survived a loss of power after\n{trace}");
                resume_unwind(panic);
            }
            fates += 1;
        }
        let examined = catch_unwind(AssertUnwindSafe(|| {
            examine_killed(&run, &machine, scenario, *at);
        }));
        if let Err(panic) = examined {
            let (name, trace) = (scenario.name, run.disk.trace());
            eprintln!("{name}: killed after\n{trace}");
            resume_unwind(panic);
        }
    }
    let (name, tried) = (scenario.name, moments.len());
    println!("{name}: power failed at {tried} of {all} moments, with {fates} fates");
}

/// What must hold after a loss of power.
fn examine(mut world: World, machine: &Machine, scenario: &Scenario, seed: u64) {
    let machine = &mut machine.clone();
    let repo = world.open_read_only().unwrap();
    if scenario.mend.is_none() {
        machine.inspect(&repo);
    }
    if seed % 2 == 1 {
        // It fails again, while the next backup sets things right.
        let plan = Plan::PowerLoss { at: seed % 97 };
        world.disk.follow(plan, world.last_words());
        let again = match scenario.mend {
            Some(mend) => mend(&world, machine),
            None => world.open().and_then(|repo| {
                machine.back_up(&repo)?;
                machine.prune(&repo).map(drop)
            }),
        };
        again.ok();
        world = world.after_power_loss(Survival::ByChance, seed);
    }

    if let Some(mend) = scenario.mend {
        mend(&world, machine).unwrap();
    }
    let repo = world.open().unwrap();
    machine.find_all_well(&repo);
    machine.works();
    machine.back_up(&repo).unwrap();
    machine.works();
    machine.back_up_changes(&repo).unwrap();
    machine.find_all_well(&repo);
    machine.remember_all(&repo);
    machine.find_all_well(&repo);
    machine.prune_all(&repo);
    machine.find_all_well(&repo);
}

/// What must hold when the processes were killed, others went on from there, and then power failed:
/// nobody may rely on what others have done and not synced.
fn examine_killed(run: &World, machine: &Machine, scenario: &Scenario, seed: u64) {
    let back_up: fn(&World, &mut Machine) -> Result<()> =
        |world, machine| machine.back_up(&world.open()?);
    // Nothing can be pruned while a record is lost.
    let others = [scenario.work, back_up, scenario.mend.unwrap_or(PRUNE.work)];
    for work in Effort::chosen(MOMENTS).some_of(&others, seed) {
        let (world, machine) = (run.after_kill(), &mut machine.clone());
        work(&world, machine).unwrap();
        for survival in [Survival::Nothing, Survival::ByChance] {
            let after = world.after_power_loss(survival, seed);
            if let Some(mend) = scenario.mend {
                mend(&after, &mut machine.clone()).unwrap();
            } else {
                machine.find_all_well(&after.open().unwrap());
            }
        }
    }
}

#[test]
fn power_fails_in_the_first_backup() {
    survives(&FIRST_BACKUP);
}

#[test]
fn power_fails_in_an_incremental_backup() {
    survives(&INCREMENTAL);
}

#[test]
fn power_fails_in_a_backup_that_takes_over_what_a_killed_one_left() {
    survives(&AFTER_A_KILL);
}

#[test]
fn power_fails_while_the_index_is_built_anew() {
    survives(&REBUILD);
}

#[test]
fn power_fails_while_points_are_pinned() {
    survives(&PIN);
}

#[test]
fn power_fails_while_points_are_forgotten() {
    survives(&FORGET);
}

#[test]
fn power_fails_while_forgetting_is_taken_back() {
    survives(&UNDO_FORGET);
}

#[test]
fn power_fails_in_a_prune() {
    survives(&PRUNE);
}

#[test]
fn power_fails_while_a_damaged_repository_is_mended() {
    survives(&REPAIR);
}

#[test]
fn power_fails_while_a_damaged_repository_is_mended_and_its_index_built_anew() {
    survives(&REPAIR_ANEW);
}

#[test]
fn what_the_index_was_told_outlives_a_loss_of_power() {
    let world = World::new(1);
    let id = RawId::from_bytes([7; 32]);
    index_of(&world).write(|edit| edit.want(&[id])).unwrap();
    let after = world.after_power_loss(Survival::Nothing, 1);
    assert!(index_of(&after).wanted(10).unwrap().contains(&id));
}

#[test]
fn an_index_that_was_built_anew_outlives_a_loss_of_power() {
    let mut machine = Machine::new(1);
    let world = (REBUILD.before)(&mut machine);
    let index = Path::new(ROOT).join("index.redb");
    for offset in 0..512 {
        world.disk.spoil(&index, offset);
    }
    assert!(world.open().is_err());
    (REBUILD.work)(&world, &mut machine).unwrap();
    let after = world.after_power_loss(Survival::Nothing, 1);
    machine.find_all_well(&after.open().unwrap());
}

/// A repository that is not there yet can be made; one that is there is whole.
#[test]
fn power_fails_while_a_repository_is_made() {
    let counted = World::empty(1);
    counted.disk.follow(Plan::AllWell, || {});
    counted.init().unwrap();
    let moments = 0..counted.disk.operations();
    for at in moments.clone() {
        let run = World::empty(at);
        run.disk.follow(Plan::PowerLoss { at }, run.last_words());
        run.init().map(drop).unwrap_err();
        for (number, survival) in (0..).zip(FATES) {
            let after = run.after_power_loss(survival, at * 1000 + number);
            match after.open() {
                Err(Error::NotARepository { .. }) => drop(after.init().unwrap()),
                opened => drop(opened.unwrap()),
            }
            let mut machine = Machine::new(at);
            let repo = after.open().unwrap();
            machine.back_up(&repo).unwrap();
            machine.find_all_well(&repo);
        }
    }
    println!(
        "making a repository: power failed at all {} moments",
        moments.end
    );
}
