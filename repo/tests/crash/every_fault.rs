//! Every operation of a scenario fails: no space is left, or the media fail, once or from then on.
//! Then: what was begun is done or fails with the reason; nothing committed is lost, others go on
//! reading; and when all is well again, so is the repository.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use virtkeep_repo::storage::{ObjectName, Storage};
use virtkeep_repo::{Error, PointId, Result};

use crate::effort::Effort;
use crate::model::Survival;
use crate::power::{Plan, Trouble};
use crate::scenarios::{
    AFTER_A_KILL, FIRST_BACKUP, FORGET, INCREMENTAL, PIN, PRUNE, REBUILD, REPAIR, REPAIR_ANEW,
    Scenario, UNDO_FORGET,
};
use crate::world::{KIB, Machine, World};

/// Moments tried by default, for each scenario and kind of trouble.
const MOMENTS: u64 = 4;

/// Trouble, and for how many operations.
const TROUBLES: [(Trouble, u64); 4] = [
    (Trouble::NoSpace, 1),
    (Trouble::Media, 1),
    (Trouble::NoSpace, u64::MAX),
    (Trouble::Media, u64::MAX),
];

fn bears(scenario: &Scenario) {
    let mut machine = Machine::new(1);
    let world = (scenario.before)(&mut machine);
    let all = scenario.operations(&world, &machine);
    let moments = Effort::chosen(MOMENTS).of(all);
    for at in &moments {
        for (trouble, count) in TROUBLES {
            let mut machine = machine.clone();
            let run = world.copy(*at);
            let plan = Plan::Fault {
                at: *at,
                count,
                trouble,
            };
            run.disk.follow(plan, || {});
            let examined = catch_unwind(AssertUnwindSafe(|| {
                let done = (scenario.work)(&run, &mut machine);
                examine(&run, &machine, scenario, done, trouble);
            }));
            if let Err(panic) = examined {
                let (name, trace) = (scenario.name, run.disk.trace());
                eprintln!("{name}: {plan:?} after\n{trace}");
                resume_unwind(panic);
            }
        }
    }
    let (name, tried) = (scenario.name, moments.len());
    println!("{name}: {tried} of {all} operations failed in 4 ways");
}

/// What must hold after trouble that may still go on.
fn examine(
    world: &World,
    machine: &Machine,
    scenario: &Scenario,
    done: Result<()>,
    trouble: Trouble,
) {
    let machine = &mut machine.clone();
    match done {
        Ok(()) => {}
        Err(error @ Error::Io { .. }) => {
            assert_eq!(error.is_no_space(), trouble == Trouble::NoSpace, "{error}");
        }
        Err(error) => panic!("an error that does not tell the reason: {error:?}"),
    }
    let (read_only, repo) = (world.open_read_only().unwrap(), world.open().unwrap());
    if scenario.mend.is_none() {
        machine.inspect(&read_only);
        machine.inspect(&repo);
    }
    drop(repo);

    world.disk.mend();
    if let Some(mend) = scenario.mend {
        mend(world, machine).unwrap();
    }
    let repo = world.open().unwrap();
    machine.find_all_well(&repo);
    machine.back_up(&repo).unwrap();
    machine.find_all_well(&repo);
    drop(repo);

    // What a failed sync left unwritten is lost when power fails, and nothing may rely on it.
    let after = world.after_power_loss(Survival::Nothing, 1);
    let repo = after.open().unwrap();
    machine.find_all_well(&repo);
    machine.back_up(&repo).unwrap();
    machine.find_all_well(&repo);
}

#[test]
fn every_operation_of_the_first_backup_fails() {
    bears(&FIRST_BACKUP);
}

#[test]
fn every_operation_of_an_incremental_backup_fails() {
    bears(&INCREMENTAL);
}

#[test]
fn every_operation_of_a_backup_fails_that_takes_over_what_a_killed_one_left() {
    bears(&AFTER_A_KILL);
}

#[test]
fn every_operation_fails_that_builds_the_index_anew() {
    bears(&REBUILD);
}

#[test]
fn every_operation_fails_that_forgets_points() {
    bears(&FORGET);
}

#[test]
fn every_operation_fails_that_takes_forgetting_back() {
    bears(&UNDO_FORGET);
}

#[test]
fn every_operation_of_a_prune_fails() {
    bears(&PRUNE);
}

#[test]
fn every_operation_of_a_repair_fails() {
    bears(&REPAIR);
}

#[test]
fn every_operation_of_a_repair_fails_that_builds_the_index_anew() {
    bears(&REPAIR_ANEW);
}

#[test]
fn a_pin_that_cannot_be_made_durable_is_no_pin() {
    let mut machine = Machine::new(1);
    let world = (PIN.before)(&mut machine);
    for at in 0.. {
        let run = world.copy(at);
        let repo = run.open().unwrap();
        let (count, trouble) = (1, Trouble::Media);
        run.disk.follow(Plan::Fault { at, count, trouble }, || {});
        let pinned = machine.clone().pin(&repo, machine.last().unwrap());
        run.disk.mend();
        let pins = repo.pins().list().unwrap();
        assert_eq!(
            pins.len(),
            usize::from(pinned.is_ok()),
            "{}",
            run.disk.trace()
        );
        if pinned.is_ok() {
            assert!(at > 4);
            break;
        }
    }
}

#[test]
fn an_object_of_which_a_write_has_failed_is_written_no_further() {
    let world = World::new(1);
    let name = ObjectName::Point(PointId::from_bytes([1; 10]));
    let mut writer = world.storage().create(&name).unwrap();
    let (at, count, trouble) = (0, 1, Trouble::Media);
    world.disk.follow(Plan::Fault { at, count, trouble }, || {});
    assert!(matches!(writer.append(b"one"), Err(Error::Io { .. })));
    assert!(matches!(writer.append(b"two"), Err(Error::Poisoned)));
    assert!(matches!(writer.finish(), Err(Error::Poisoned)));
    assert_eq!(world.storage().len(&name).unwrap(), None);
}

#[test]
fn prune_gives_space_back_on_a_full_disk() {
    let mut machine = Machine::new(1);
    let world = (PRUNE.before)(&mut machine);
    world.disk.leave_room(300 * KIB);
    let repo = world.open().unwrap();
    let full = loop {
        machine.works();
        if let Err(error) = machine.back_up_changes(&repo) {
            break error;
        }
    };
    assert!(full.is_no_space(), "{full}");
    machine.find_all_well(&repo);
    // The reserve that prune gives up is not on the simulated disk.
    world.disk.leave_room(256 * KIB);
    assert!(machine.prune_all(&repo).bytes_removed > 0);
    machine.find_all_well(&repo);
    machine.back_up(&repo).unwrap();
    machine.find_all_well(&repo);
}

#[test]
fn every_operation_fails_that_pins_points() {
    bears(&PIN);
}
