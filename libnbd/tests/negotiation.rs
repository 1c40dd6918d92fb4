//! What a server offers before an export is opened.

mod common;

use std::time::Duration;

use common::{Server, path, pattern, qcow2, run};
use libnbd::{Builder, Endpoint, Error, Export};

#[test]
fn exports_are_listed_with_their_descriptions() {
    let (dir, image) = qcow2("1M");
    let args = [
        "-x",
        "disk Ä/1",
        "-D",
        "the first disk",
        "-f",
        "qcow2",
        path(&image),
    ];
    let server = Server::qemu_nbd(dir, args);
    let mut offer = Builder::new()
        .negotiate(&server.endpoint)
        .expect("connects");
    assert_eq!(
        offer.exports().expect("lists"),
        [Export {
            name: "disk Ä/1".to_owned(),
            description: "the first disk".to_owned(),
        }]
    );
    offer.abort().expect("ends in order");
}

#[test]
fn after_listing_any_export_can_be_opened() {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, length) in [("a", 512), ("b", 1024), ("c", 4096)] {
        std::fs::write(dir.path().join(name), vec![1; length]).expect("creates a file");
    }
    let server = Server::nbdkit(["file", &format!("dir={}", path(dir.path()))]);
    let builder = Builder::new().meta_context("base:allocation");
    let mut offer = builder.negotiate(&server.endpoint).expect("connects");
    let mut names: Vec<_> = offer
        .exports()
        .expect("lists")
        .into_iter()
        .map(|e| e.name)
        .collect();
    names.sort();
    assert_eq!(names, ["a", "b", "c"]);

    assert_eq!(offer.info("b").expect("exists").size, 1024);
    assert!(offer.info("nope").is_err());
    assert_eq!(
        offer.meta_contexts("a").expect("lists"),
        ["base:allocation"]
    );
    let mut nbd = offer.open("c").expect("opens");
    assert_eq!(nbd.size(), 4096);
    assert!(
        nbd.has_context("base:allocation"),
        "listing has not changed the settings"
    );
    assert_eq!(nbd.read(0, 4096).expect("reads").bytes, [1; 4096]);
    nbd.shutdown(None).expect("ends in order");

    let offer = builder.negotiate(&server.endpoint).expect("connects");
    assert!(offer.open("nope").is_err());
}

#[test]
fn dirty_bitmaps_are_among_the_contexts_of_an_export() {
    let (dir, image) = qcow2("1M");
    run("qemu-img", ["bitmap", "--add", path(&image), "changes"]);
    let server = Server::qemu_nbd(dir, ["-r", "-f", "qcow2", "-B", "changes", path(&image)]);
    let mut offer = Builder::new()
        .negotiate(&server.endpoint)
        .expect("connects");
    let contexts = offer.meta_contexts("").expect("lists");
    for name in ["base:allocation", "qemu:dirty-bitmap:changes"] {
        assert!(
            contexts.iter().any(|context| context == name),
            "{contexts:?}"
        );
    }
}

#[test]
fn a_command_can_be_asked_what_it_offers() {
    let argv = ["nbdkit", "-s", "--exit-with-parent", "pattern", "1M"];
    let mut offer = Builder::new()
        .negotiate(&Endpoint::command(argv))
        .expect("connects");
    assert_eq!(offer.exports().expect("lists").len(), 1);
    let mut nbd = offer.open("").expect("opens the default export");
    assert_eq!(nbd.read(8, 8).expect("reads").bytes, pattern(8, 8));
}

#[test]
fn a_server_that_is_full_does_not_hang_a_negotiation() {
    let (dir, image) = qcow2("1M");
    let server = Server::qemu_nbd(dir, ["-e", "1", "-f", "qcow2", path(&image)]);
    let _only = server.connect();
    let error = Builder::new()
        .connect_timeout(Some(Duration::from_millis(300)))
        .negotiate(&server.endpoint)
        .expect_err("the server is full");
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
}
