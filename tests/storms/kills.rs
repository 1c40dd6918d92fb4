//! `kill -9` at random moments of backups, prunes, repairs and forgets, while another process restores.
//!
//! What is repaired is damaged: a bit has flipped in what the last backup of an image has stored, and maybe
//! in the record of its point. The image still holds it, so that the next backup after a whole repair
//! heals all points.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use blake3::Hash;
use fastrand::Rng;
use rustix::process::Signal;

use crate::shelf::{Image, Shelf};
use crate::{seed, setting};

/// What is killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Victim {
    Backup,
    Forget,
    Prune,
    Repair,
}

/// After so many kills everything is looked at.
const KILLS_PER_LOOK: u64 = 25;
/// Points are forgotten above this number.
const POINTS_MAX: usize = 12;

#[test]
fn whatever_is_killed_whenever_no_committed_point_is_lost() {
    let mut random = Rng::with_seed(seed());
    let kills = setting("VIRTKEEP_KILLS").unwrap_or(25);
    let dir = tempfile::tempdir().unwrap();
    let shelf = Shelf::new(dir.path(), dir.path());
    let mut images = ["one", "two"].map(|name| shelf.image(name, &mut random));
    let points = Mutex::new(BTreeMap::new());
    for image in &images {
        let done = shelf.program.ok(&shelf.backup(image)).line("point");
        keep(&points, &done["point"], image.content());
    }

    let ended = AtomicBool::new(false);
    let restored = AtomicU64::new(0);
    let damage = Damage::default();
    let mut killed = BTreeMap::new();
    thread::scope(|scope| {
        let restorer_random = Rng::with_seed(random.u64(..));
        scope.spawn(|| restore_until(&ended, &shelf, &points, &damage, restorer_random, &restored));
        let _end = OnDrop(&ended);
        let mut took = BTreeMap::new();
        for number in 1..=kills {
            let victim = choose(&mut random, points.lock().unwrap().len());
            let image = random.usize(..images.len());
            let death = kill(
                &shelf,
                victim,
                &mut images[image],
                &points,
                &damage,
                &mut random,
                &mut took,
            );
            *killed.entry(format!("{victim:?}, {death}")).or_insert(0) += 1;
            if number % KILLS_PER_LOOK == 0 || number == kills {
                shelf.assert_sound(&points.lock().unwrap(), &format!("after {number} kills"));
            }
        }
    });
    println!(
        "{kills} kills: {killed:?}; {} restores meanwhile",
        restored.into_inner()
    );

    // What is left over after all that goes, and nothing else.
    shelf.program.ok(&["prune", "--max-unused", "0", "--exact"]);
    shelf.assert_sound(&points.lock().unwrap(), "after the last prune");
}

fn choose(random: &mut Rng, points: usize) -> Victim {
    match random.u8(..100) {
        0..40 => Victim::Backup,
        40..75 => Victim::Prune,
        75..85 => Victim::Repair,
        _ if points > POINTS_MAX => Victim::Forget,
        _ => Victim::Backup,
    }
}

/// Runs a command and kills it at a random moment of the time it is known to take; whether it was
/// killed or had ended already. The points are what they must be then.
fn kill(
    shelf: &Shelf,
    victim: Victim,
    image: &mut Image,
    points: &Mutex<BTreeMap<String, Hash>>,
    damage: &Damage,
    random: &mut Rng,
    took: &mut BTreeMap<u8, Duration>,
) -> &'static str {
    if victim == Victim::Repair {
        damage.spoil(shelf, image, points, random);
    }
    let forgotten = match victim {
        Victim::Forget => {
            let mut points = points.lock().unwrap();
            let victim = random.usize(..points.len());
            let point = points.keys().nth(victim).unwrap().clone();
            points.remove_entry(&point)
        }
        _ => None,
    };
    let words = match victim {
        Victim::Backup => {
            let changes = random.usize(1..300);
            image.change(random, changes);
            shelf.backup(image)
        }
        Victim::Forget => vec!["forget", &forgotten.as_ref().unwrap().0],
        Victim::Prune => vec!["prune", "--max-unused", "0", "--keep-unfinished", "0d"],
        Victim::Repair if random.bool() => vec!["repair", "--yes", "--index"],
        Victim::Repair => vec!["repair", "--yes"],
    };
    let usual = took
        .entry(victim as u8)
        .or_insert(Duration::from_millis(300));
    let moment = usual.mul_f64(random.f64() * 1.1);
    let started = Instant::now();
    let running = shelf.program.start(&words);
    thread::sleep(moment);
    running.signal(Signal::KILL);
    let ran = running.wait();
    let death = match ran.code() {
        Some(0 | 4) => {
            *usual = (*usual + started.elapsed()) / 2;
            "ended"
        }
        None => {
            // Slower than thought, or it would have ended: the moments spread over all of it.
            *usual = usual.mul_f64(1.02);
            "killed"
        }
        Some(_) => panic!("{words:?}: {ran:?}"),
    };

    // A commit or a forgetting under way may have been done or not.
    let listed = shelf.program.points();
    match victim {
        Victim::Backup => {
            let mut points = points.lock().unwrap();
            let new: Vec<&String> = listed
                .iter()
                .filter(|id| !points.contains_key(*id))
                .collect();
            assert!(
                new.len() <= 1 && (death == "killed" || new.len() == 1),
                "{new:?}"
            );
            if let [point] = new[..] {
                points.insert(point.clone(), image.content());
            }
        }
        Victim::Forget => {
            let (point, content) = forgotten.unwrap();
            let stayed = listed.contains(&point);
            assert!(!stayed || death == "killed", "{point} is not forgotten");
            if stayed {
                points.lock().unwrap().insert(point, content);
            }
        }
        Victim::Repair => damage.heal(shelf, image, points),
        Victim::Prune => {}
    }
    death
}

/// Whether anything in the repository is damaged: an odd number while it is.
#[derive(Default)]
struct Damage(AtomicU64);

impl Damage {
    /// Backs up something new, and flips a bit in what was stored of it.
    fn spoil(
        &self,
        shelf: &Shelf,
        image: &mut Image,
        points: &Mutex<BTreeMap<String, Hash>>,
        random: &mut Rng,
    ) {
        let before = data_packs(shelf);
        image.change(random, 100);
        let done = shelf.program.ok(&shelf.backup(image)).line("point");
        self.0.fetch_add(1, Ordering::SeqCst);
        keep(points, &done["point"], image.content());
        // In the content of the first record.
        for pack in data_packs(shelf).difference(&before) {
            flip(pack, 64 + 60 + random.u64(..100));
        }
        if random.bool() {
            let record = shelf.program.repo().join("points");
            flip(&record.join(done["point"].as_str().unwrap()), 40);
        }
    }

    /// Repairs in peace, and backs up what the image still holds.
    fn heal(&self, shelf: &Shelf, image: &Image, points: &Mutex<BTreeMap<String, Hash>>) {
        let ran = shelf.program.run(&["repair", "--yes"]);
        assert!(matches!(ran.code(), Some(0 | 4)), "{ran:?}");
        let done = shelf.program.ok(&shelf.backup(image)).line("point");
        keep(points, &done["point"], image.content());
        self.0.fetch_add(1, Ordering::SeqCst);
        shelf.assert_sound(&points.lock().unwrap(), "after a repair");
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

fn data_packs(shelf: &Shelf) -> BTreeSet<PathBuf> {
    let mut packs = BTreeSet::new();
    for folder in fs::read_dir(shelf.program.repo().join("packs")).unwrap() {
        for pack in fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = pack.unwrap().path();
            let is_pack = path
                .extension()
                .is_some_and(|extension| extension == "pack");
            if is_pack && fs::read(&path).unwrap()[10] == 1 {
                packs.insert(path);
            }
        }
    }
    packs
}

fn flip(path: &Path, offset: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path);
    let (file, mut byte) = (file.unwrap(), [0]);
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

fn restore_until(
    ended: &AtomicBool,
    shelf: &Shelf,
    points: &Mutex<BTreeMap<String, Hash>>,
    damage: &Damage,
    mut random: Rng,
    restored: &AtomicU64,
) {
    while !ended.load(Ordering::SeqCst) {
        let chosen = {
            let points = points.lock().unwrap_or_else(PoisonError::into_inner);
            let number = random.usize(..points.len());
            points
                .iter()
                .nth(number)
                .map(|(id, content)| (id.clone(), *content))
        };
        let (point, content) = chosen.unwrap();
        let before = damage.now();
        let found = shelf.restore(&point);
        let still_there = |point| points.lock().unwrap().contains_key(point);
        match found {
            Ok(found) => assert_eq!(found, content, "{point} restores something else"),
            Err(_) if before % 2 == 1 || damage.now() != before => {}
            Err(ran) => assert!(!still_there(&point), "{point}: {ran:?}"),
        }
        restored.fetch_add(1, Ordering::SeqCst);
    }
}

#[track_caller]
fn keep(points: &Mutex<BTreeMap<String, Hash>>, point: &serde_json::Value, content: Hash) {
    let point = point.as_str().unwrap().to_owned();
    points.lock().unwrap().insert(point, content);
}

/// Tells the others to end, also when a test fails.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
