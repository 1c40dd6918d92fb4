//! What is going on when power fails.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use virtkeep_repo::config::Config;
use virtkeep_repo::format::pack::read_table;
use virtkeep_repo::index::{FileGate, Identity, Index};
use virtkeep_repo::storage::{Folder, ObjectName, Storage};
use virtkeep_repo::{Cancel, NoProgress, OpenOptions, RawId, RebuildReport, Repository, Result};

use crate::disk::draft;
use crate::model::Survival;
use crate::power::Plan;
use crate::world::{Machine, Quiet, ROOT, World};

/// Something that happens to a repository.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// What came before, with power. It may leave a world as a kill left it.
    pub(crate) before: fn(&mut Machine) -> World,
    /// What power fails in.
    pub(crate) work: fn(&World, &mut Machine) -> Result<()>,
    /// Of a repository that is damaged: what makes it whole again, from whatever moment on.
    pub(crate) mend: Option<fn(&World, &mut Machine) -> Result<()>>,
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
    mend: None,
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
    mend: None,
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
    mend: None,
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
    mend: None,
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
    mend: None,
};

pub(crate) const FORGET: Scenario = Scenario {
    name: "forgetting",
    before: three_points,
    work: |world, machine| {
        let points = machine.points();
        machine.forget(&world.open()?, &points[..2])
    },
    mend: None,
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
    mend: None,
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
    mend: None,
};

/// Records of chunks, of a root and of points are damaged, and one of a point is lost.
pub(crate) const REPAIR: Scenario = Scenario {
    name: "repairing",
    before: damaged,
    work: |world, machine| machine.repair(&world.open()?).map(drop),
    mend: Some(mend),
};

/// The same; the index goes first.
pub(crate) const REPAIR_ANEW: Scenario = Scenario {
    name: "repairing with an index built anew",
    before: damaged,
    work: |world, machine| {
        build_index(world)?;
        machine.repair(&world.open()?).map(drop)
    },
    mend: Some(mend),
};

/// Repair makes good what it can; the next backup stores the rest again.
fn mend(world: &World, machine: &mut Machine) -> Result<()> {
    let repo = world.open()?;
    machine.repair(&repo)?;
    machine.back_up(&repo)?;
    assert!(machine.repair(&world.open()?)?.is_whole());
    Ok(())
}

/// Three points. Something is stored twice, and its copy that counts is damaged; so is a chunk of the
/// newest point, and its root; the record of a point, and that of another is lost.
fn damaged(machine: &mut Machine) -> World {
    let world = World::new(8);
    let repo = world.open().unwrap();
    machine.back_up(&repo).unwrap();
    machine.works();
    machine.back_up_changes(&repo).unwrap();
    machine.works();
    // Another backup stores the same at once, and nobody needs it afterwards.
    let options = OpenOptions::default();
    let large_packs = Repository::open_on(world.parts(), &options, world.env()).unwrap();
    let beside = large_packs.begin_backup(&[], "test").unwrap();
    let mut disk = machine.disks[0].clone();
    let source = disk.whole();
    let stored = beside.store_disk(&source, None, &NoProgress, &Cancel::new());
    machine.back_up_changes(&repo).unwrap();
    let point = beside.commit(draft(&source, stored.unwrap())).unwrap().id;
    repo.forget(&[point]).unwrap();

    let storage = world.storage();
    storage.delete(&ObjectName::Forgotten(point)).unwrap();
    let text = storage.read_whole(&ObjectName::Config, 1 << 16).unwrap();
    let text = String::from_utf8(text).unwrap();
    let keys = Config::parse(&text, Path::new(ROOT)).unwrap().keys();
    let mut copies: BTreeMap<RawId, usize> = BTreeMap::new();
    for name in storage.list(Folder::Packs).unwrap() {
        let ObjectName::Pack(pack) = name else {
            continue;
        };
        for entry in read_table(&storage, pack, &keys).unwrap().entries {
            *copies.entry(entry.id).or_default() += 1;
        }
    }
    let disk = &machine.disks[0].bytes;
    let chunks = disk
        .chunks(4096)
        .filter(|chunk| chunk.iter().any(|byte| *byte != 0));
    let mut ids = chunks.map(|chunk| RawId::from_bytes(*keys.chunk_id(chunk).as_bytes()));
    let single = ids.clone().find(|id| copies[id] == 1).unwrap();
    let double = ids.find(|id| copies[id] == 2).unwrap();
    let newest = machine.last().unwrap();
    let root = repo.point(newest).unwrap().disks[0].root;
    let root = RawId::from_bytes(*root.as_bytes());
    for id in [single, double, root] {
        let at = index_of(&world).locate(&[id]).unwrap()[0].unwrap();
        let path = storage.path_of(&ObjectName::Pack(at.pack));
        world.disk.spoil(&path, at.offset as usize + 70);
    }
    let points = machine.points();
    world
        .disk
        .spoil(&storage.path_of(&ObjectName::Point(points[1])), 50);
    storage.delete(&ObjectName::Point(points[0])).unwrap();
    world
}

/// The index, as nobody but a test sees it.
pub(crate) fn index_of(world: &World) -> Index {
    let parts = world.parts();
    let lock = FileGate::new(&parts.directory.join("locks"), "test");
    let identity = Identity {
        repo: world.open_read_only().unwrap().id(),
        owner: 1,
    };
    Index::at(parts.index, Arc::new(lock), identity)
}

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
    let report = build_index(world)?;
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    Ok(())
}

fn build_index(world: &World) -> Result<RebuildReport> {
    let options = OpenOptions::default();
    let (parts, env) = (world.parts(), world.env());
    Repository::rebuild_index_on(parts, &options, env, &Quiet, &Cancel::new())
}
