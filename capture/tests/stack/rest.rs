//! Domains that are shut off, images at rest, and NBD exports.

use std::process::{Command, Stdio};
use std::time::Duration;

use virtkeep_capture::{Error, ImageSource, Options, backup_image, backup_nbd};
use virtkeep_repo::{Cancel, CaptureMode, Consistency, Point, SourceKind};

use crate::world::{Log, WhileReading, World, options, read_image, run, text};

fn image(world: &World, number: usize, name: &str) -> Result<Point, Error> {
    let image = ImageSource {
        path: world.image(number).to_owned(),
        format: None,
    };
    backup_image(
        &image,
        name,
        &world.repo,
        &options(),
        &Log::default(),
        &Cancel::new(),
    )
}

#[test]
fn a_domain_that_is_shut_off_is_read_at_rest_and_its_checkpoint_stays_good() {
    let world = World::started(&["a.qcow2", "b.raw"]);
    world.io(0, "write -P 0x5a 0 8M");
    world.io(1, "write -P 0x5a 1M 8M");
    let first = world.backup();
    world.io(0, "write -P 0x5b 1M 64k");
    world.virsh(&["destroy", &world.name]);
    let rest = world.backup();
    assert_eq!(
        (rest.source, rest.consistency),
        (SourceKind::Offline, Consistency::Clean)
    );
    assert_eq!(rest.checkpoint, None);
    world.assert_restores(&rest, &world.references());

    world.start();
    world.io(0, "write -z 2M 1M");
    let next = world.backup();
    assert_eq!(
        next.disks[0].mode,
        CaptureMode::Incremental,
        "{}",
        next.disks[0].reason
    );
    assert_eq!(next.disks[0].parent, Some(first.id));
    world.assert_restores(&next, &world.references());
}

#[test]
fn what_was_read_at_rest_is_discarded_when_the_domain_starts_meanwhile() {
    let world = World::new(&["a.qcow2"]);
    run(
        "qemu-io",
        &["-c", "write -P 0x5a 0 64M", text(world.image(0))],
    );
    let start = WhileReading::new(|| world.start());
    let error = world
        .try_backup(&options(), &start, &Cancel::new())
        .unwrap_err();
    assert_eq!(error.code(), "domain-started", "{error}");
    assert!(world.repo.points().unwrap().is_empty());
}

#[test]
fn raw_and_qcow2_images_at_rest_become_points_and_a_second_read_stores_nothing() {
    let world = World::new(&["a.qcow2", "b.raw"]);
    for (number, name, format) in [(0, "q", "qcow2"), (1, "r", "raw")] {
        let path = world.image(number);
        run(
            "qemu-io",
            &["-f", format, "-c", "write -P 0x5a 1M 3M", text(path)],
        );
        let point = image(&world, number, name).unwrap();
        assert_eq!(point.domain.uuid, world.repo.uuid_for_name(name));
        world.assert_restores(&point, &[read_image(path, format)]);
        assert!(
            point.disks[0].stats.read_bytes < 8 << 20,
            "holes are not read"
        );
        let again = image(&world, number, name).unwrap();
        assert_eq!(again.disks[0].stats.new_chunks, 0);
        assert_eq!(again.disks[0].root, point.disks[0].root);
    }
}

#[test]
fn an_image_of_a_running_machine_is_refused() {
    let world = World::started(&["a.qcow2", "b.raw"]);
    for number in [0, 1] {
        let error = image(&world, number, "x").unwrap_err();
        assert_eq!(error.code(), "image-in-use", "{error}");
    }
}

#[test]
fn any_nbd_export_becomes_a_point_and_one_that_falls_silent_is_given_up() {
    let world = World::new(&["a.qcow2"]);
    run(
        "qemu-io",
        &["-c", "write -P 0x5a 1M 32M", text(world.image(0))],
    );
    let socket = world.dir.path().join("nbd.sock");
    let mut server = Command::new("qemu-nbd")
        .args([
            "-r",
            "-t",
            "-e",
            "8",
            "-f",
            "qcow2",
            "-k",
            text(&socket),
            text(world.image(0)),
        ])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    while !socket.exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let uri = format!("nbd+unix:///?socket={}", text(&socket));
    let backup = |observer: &dyn virtkeep_capture::Observer| {
        let options = Options {
            stall_limit: Duration::from_secs(1),
            ..options()
        };
        backup_nbd(
            &uri,
            "export",
            &world.repo,
            &options,
            observer,
            &Cancel::new(),
        )
    };
    let point = backup(&Log::default()).unwrap();
    world.assert_restores(&point, &world.references());

    let pid = server.id().to_string();
    let silence = WhileReading::new(|| drop(run("kill", &["-STOP", &pid])));
    let error = backup(&silence).unwrap_err();
    server.kill().unwrap();
    server.wait().unwrap();
    assert_eq!(error.code(), "nbd-stalled", "{error}");
    assert_eq!(world.repo.points().unwrap().len(), 1);
}

#[test]
fn a_server_that_takes_one_connection_and_short_requests_is_read_all_the_same() {
    let world = World::new(&["a.raw"]);
    let image = world.image(0);
    // Extents that are longer and shorter than the server's limit, data at both ends.
    for write in ["0 3M", "5M 4k", "6100k 70k", "63M 1M"] {
        let command = format!("write -P 0x5a {write}");
        run("qemu-io", &["-f", "raw", "-c", &command, text(image)]);
    }
    for mode in ["disable", "emulate"] {
        let socket = world.dir.path().join(format!("{mode}.sock"));
        let mut server = Command::new("nbdkit")
            .args(["-f", "-U", text(&socket)])
            .args(["--filter=multi-conn", "--filter=blocksize-policy"])
            .args(["file", text(image), &format!("multi-conn-mode={mode}")])
            .args(["blocksize-error-policy=error", "blocksize-minimum=512"])
            .args(["blocksize-preferred=4k", "blocksize-maximum=96k"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        while !socket.exists() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let point = backup_nbd(
            &format!("nbd+unix:///?socket={}", text(&socket)),
            mode,
            &world.repo,
            &options(),
            &Log::default(),
            &Cancel::new(),
        );
        server.kill().unwrap();
        server.wait().unwrap();
        let point = point.unwrap();
        world.assert_restores(&point, &[read_image(image, "raw")]);
        assert!(point.disks[0].stats.read_bytes < 8 << 20);
    }
}

#[test]
fn an_image_at_rest_that_another_machine_writes_to_is_refused() {
    let running = World::started(&["a.qcow2"]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/stack/domain-xml");
    let name = format!("{}-twin", running.name);
    let xml = running.dir.path().join("twin.xml");
    std::fs::write(&xml, run(script, &[&name, text(running.image(0))])).unwrap();
    running.virsh(&["define", text(&xml)]);
    let twin = running.host.domain(&name).unwrap();
    let result = virtkeep_capture::backup(
        &running.host,
        &twin,
        &running.repo,
        &options(),
        &Log::default(),
        &Cancel::new(),
    );
    running.virsh(&["undefine", &name]);
    let error = result.unwrap_err();
    assert_eq!(error.code(), "image-in-use", "{error}");
}

#[test]
fn what_looks_like_an_image_on_another_file_is_only_read_when_the_format_is_given() {
    let world = World::new(&["a.raw"]);
    let path = world.dir.path().join("overlay.qcow2");
    run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "raw",
            "-b",
            text(world.image(0)),
            text(&path),
        ],
    );
    let backup = |format: Option<&str>| {
        let image = ImageSource {
            path: path.clone(),
            format: format.map(str::to_owned),
        };
        let (log, cancel) = (Log::default(), Cancel::new());
        backup_image(&image, "x", &world.repo, &options(), &log, &cancel)
    };
    let error = backup(None).unwrap_err();
    assert_eq!(error.code(), "unfit-disk", "{error}");
    assert!(error.to_string().contains("a.raw"), "{error}");
    backup(Some("qcow2")).unwrap();
}

#[test]
fn what_was_read_at_rest_is_discarded_when_anybody_writes_to_the_image_meanwhile() {
    let world = World::new(&["a.qcow2"]);
    let path = world.image(0);
    let write = |what: &str| drop(run("qemu-io", &["-c", what, text(path)]));
    write("write -P 0x5a 0 64M");
    let meddle = || WhileReading::new(|| write("write -P 0x5b 32M 64k"));
    let error = world
        .try_backup(&options(), &meddle(), &Cancel::new())
        .unwrap_err();
    assert_eq!(error.code(), "domain-started", "{error}");

    let raw = world.dir.path().join("b.raw");
    std::fs::write(&raw, vec![7; 64 << 20]).unwrap();
    let file = std::fs::File::options().write(true).open(&raw).unwrap();
    let meddle = WhileReading::new(|| {
        std::os::unix::fs::FileExt::write_all_at(&file, &[8; 512], 0).unwrap();
    });
    let image = ImageSource {
        path: raw,
        format: None,
    };
    let cancel = Cancel::new();
    let error = backup_image(&image, "x", &world.repo, &options(), &meddle, &cancel).unwrap_err();
    assert_eq!(error.code(), "image-changed", "{error}");
    assert!(world.repo.points().unwrap().is_empty());
}
