//! Many processes at once, each doing whatever it likes, against a model of bytes; one of them serves
//! every point over NBD all the time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use blake3::Hash;
use fastrand::Rng;
use rustix::process::Signal;
use virtkeep_tests::{Running, text, wait_until};

use crate::shelf::{Image, Shelf, hash_of_output};
use crate::{seed, setting};

/// So many clients.
const CLIENTS: usize = 4;
/// No point is forgotten below this number.
const POINTS_MIN: usize = 4;
/// Exit code of a command that must not run beside another.
const BUSY: i32 = 11;

/// What must be there. A point is taken out before it is forgotten, and put in after its backup.
#[derive(Default)]
struct Model {
    points: BTreeMap<String, Hash>,
    forgotten: BTreeMap<String, Hash>,
    /// The image that each point is of.
    images: BTreeMap<String, String>,
}

#[test]
fn commands_that_run_at_once_lose_nothing_and_leave_nothing() {
    let mut random = Rng::with_seed(seed());
    let dir = tempfile::tempdir().unwrap();
    let shelf = Shelf::new(dir.path(), dir.path());
    let model = Mutex::new(Model::default());
    let server = Server::start(&shelf, dir.path().join("serve.sock"));
    let seconds = setting("VIRTKEEP_RACE_SECONDS").unwrap_or(10);
    let end = Instant::now() + Duration::from_secs(seconds);
    let did = Mutex::new(BTreeMap::new());
    let images: Vec<Image> = thread::scope(|scope| {
        let client = |number| {
            let mut random = Rng::with_seed(random.u64(..));
            let mut image = shelf.image(&format!("image{number}"), &mut random);
            let (shelf, server, model, did) = (&shelf, &server, &model, &did);
            scope.spawn(move || {
                while Instant::now() < end {
                    let done = act(shelf, server, model, &mut image, &mut random);
                    *did.lock().unwrap().entry(done).or_insert(0) += 1;
                }
                image
            })
        };
        let clients: Vec<_> = (0..CLIENTS).map(client).collect();
        let ended = clients.into_iter().map(|client| client.join());
        ended.map(|image| image.expect("a client failed")).collect()
    });
    let model = model.into_inner().unwrap();
    println!(
        "{} points at the end, after {:?}",
        model.points.len(),
        did.into_inner().unwrap()
    );
    drop(images);
    server.stop();
    shelf.assert_sound(&model.points, "after the race");

    shelf.program.ok(&["prune", "--max-unused", "0", "--exact"]);
    shelf.assert_sound(&model.points, "after the last prune");
    assert_holds_only(&shelf, &model);
}

/// One command, and its outcome compared with the model.
fn act(
    shelf: &Shelf,
    server: &Server,
    model: &Mutex<Model>,
    image: &mut Image,
    random: &mut Rng,
) -> &'static str {
    match random.u8(..100) {
        0..35 => {
            let changes = random.usize(1..400);
            image.change(random, changes);
            let done = shelf.program.ok(&shelf.backup(image)).line("point");
            let point = done["point"].as_str().unwrap().to_owned();
            let mut model = model.lock().unwrap();
            model.images.insert(point.clone(), image.name.clone());
            model.points.insert(point, image.content());
            "backup"
        }
        35..50 => restore(shelf, model, random),
        50..65 => copy_from_server(server, model, random),
        65..77 => forget(shelf, model, random),
        77..80 => undo(shelf, model, random),
        80..92 => {
            let words = [
                &["prune"][..],
                &["prune", "--max-unused", "0", "--keep-unfinished", "0d"],
                &["prune", "--dry-run"],
            ];
            may_be_busy(shelf, words[random.usize(..words.len())])
        }
        92..97 => {
            let words = [&["check"][..], &["check", "--read-data"]];
            let ran = shelf.program.run(words[random.usize(..words.len())]);
            assert_eq!(ran.code(), Some(0), "{ran:?}");
            "check"
        }
        _ => may_be_busy(shelf, &["repair", "--yes"]),
    }
}

fn restore(shelf: &Shelf, model: &Mutex<Model>, random: &mut Rng) -> &'static str {
    let Some((point, content)) = choose(&model.lock().unwrap().points, random) else {
        return "nothing";
    };
    match shelf.restore(&point) {
        Ok(found) => assert_eq!(found, content, "{point} restores something else"),
        Err(ran) => {
            let still_there = model.lock().unwrap().points.contains_key(&point);
            assert!(!still_there, "{point}: {ran:?}");
            return "restore of a point forgotten meanwhile";
        }
    }
    "restore"
}

fn copy_from_server(server: &Server, model: &Mutex<Model>, random: &mut Rng) -> &'static str {
    let chosen = {
        let model = model.lock().unwrap();
        choose(&model.points, random).map(|(point, content)| {
            let image = model.images[&point].clone();
            (point, content, image)
        })
    };
    let Some((point, content, image)) = chosen else {
        return "nothing";
    };
    match server.read(&image, &point) {
        Ok(found) => assert_eq!(found, content, "{point} is served as something else"),
        Err(ran) => {
            let still_there = model.lock().unwrap().points.contains_key(&point);
            assert!(!still_there, "{point}: {ran}");
            return "export of a point forgotten meanwhile";
        }
    }
    "copy from the server"
}

fn forget(shelf: &Shelf, model: &Mutex<Model>, random: &mut Rng) -> &'static str {
    let (point, content) = {
        let mut model = model.lock().unwrap();
        if model.points.len() < POINTS_MIN {
            return "nothing";
        }
        let chosen = choose(&model.points, random).unwrap();
        model.points.remove(&chosen.0);
        chosen
    };
    shelf.program.ok(&["forget", &point]);
    model.lock().unwrap().forgotten.insert(point, content);
    "forget"
}

fn undo(shelf: &Shelf, model: &Mutex<Model>, random: &mut Rng) -> &'static str {
    let (point, content) = {
        let mut model = model.lock().unwrap();
        let Some(chosen) = choose(&model.forgotten, random) else {
            return "nothing";
        };
        model.forgotten.remove(&chosen.0);
        chosen
    };
    let ran = shelf.program.run(&["forget", "--undo", &point]);
    match ran.code() {
        Some(0) => {
            model.lock().unwrap().points.insert(point, content);
            "undo"
        }
        Some(1) => "undo refused, prune was there first",
        _ => panic!("{ran:?}"),
    }
}

fn choose(points: &BTreeMap<String, Hash>, random: &mut Rng) -> Option<(String, Hash)> {
    let chosen = (!points.is_empty()).then(|| random.usize(..points.len()))?;
    let chosen = points.iter().nth(chosen)?;
    Some((chosen.0.clone(), *chosen.1))
}

/// Runs a command that only one may run at a time.
fn may_be_busy(shelf: &Shelf, words: &[&'static str]) -> &'static str {
    let ran = shelf.program.run(words);
    match ran.code() {
        Some(0) => words[0],
        Some(BUSY) => "busy",
        _ => panic!("{words:?}: {ran:?}"),
    }
}

/// `virtkeep serve`, for all points.
struct Server {
    running: Option<Running>,
    socket: PathBuf,
}

impl Server {
    fn start(shelf: &Shelf, socket: PathBuf) -> Self {
        let listen = format!("unix:{}", text(&socket));
        let running = Some(shelf.program.start(&["serve", "--listen", &listen]));
        wait_until("the server listens", || socket.exists());
        Self { running, socket }
    }

    /// What a client reads of a point.
    fn read(&self, image: &str, point: &str) -> Result<Hash, String> {
        let socket = text(&self.socket);
        let uri = format!("nbd+unix:///{image}/disk@{point}?socket={socket}");
        let mut nbdcopy = Command::new("nbdcopy");
        hash_of_output(nbdcopy.args([&uri, "-"])).map_err(|ran| format!("{ran:?}"))
    }

    /// It ends in order when it is asked to.
    #[track_caller]
    fn stop(mut self) {
        let running = self.running.take().unwrap();
        running.signal(Signal::TERM);
        let ran = running.wait();
        assert_eq!(ran.code(), Some(0), "{ran:?}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.signal(Signal::KILL);
            running.wait();
        }
    }
}

/// Fails unless the repository holds just what its points need: as many records as are stored when the
/// same contents go into an empty one.
#[track_caller]
fn assert_holds_only(shelf: &Shelf, model: &Model) {
    let dir = tempfile::tempdir().unwrap();
    let fresh = Shelf::new(dir.path(), dir.path());
    for (number, point) in model.points.keys().enumerate() {
        let disk = dir.path().join("restored.img");
        let mut command = shelf
            .program
            .command(&["restore", point, "--disk", "disk", "--to", "-"]);
        command.stdout(std::fs::File::create(&disk).unwrap());
        assert!(command.status().unwrap().success());
        let name = format!("copy{number}");
        let image = disk.to_str().unwrap();
        fresh
            .program
            .ok(&["backup", "--image", image, "--name", &name]);
    }
    fresh.program.ok(&["prune", "--max-unused", "0", "--exact"]);
    let (held, needed) = (shelf.stats(), fresh.stats());
    println!("held: {held}\nneeded: {needed}");
    assert_eq!(held["chunks"], needed["chunks"]);
}
