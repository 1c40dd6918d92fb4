//! Names of domains that were made to cause trouble.

use virtkeep_tests::{DiskSpec, Images, MIB, Machine, Program, text};

/// The worst that libvirt accepts: it refuses `.` and `..`, slashes and ends of lines.
const HOSTILE: [&str; 13] = [
    "...",
    "-",
    "-rf",
    "--all",
    " ",
    "web 1 ",
    "tab\there",
    "@",
    "a@latest",
    "$(reboot)`reboot`",
    "<b>&amp;'\"\\",
    "%2e%2e%0a*",
    "Zürich\u{202e}\u{1f4be}",
];

#[test]
fn hostile_names_are_backed_up_listed_and_restored_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::init(&dir.path().join("repo"), &[]);
    let images = Images::new(dir.path().join("images"));
    let long = "n".repeat(200);
    for (number, name) in HOSTILE.iter().copied().chain([&*long]).enumerate() {
        let home = dir.path().join(number.to_string());
        std::fs::create_dir(&home).unwrap();
        let disk = DiskSpec::new("disk.qcow2", MIB);
        let machine = Machine::define(&home, name, &[disk]);
        machine.start_paused();
        machine.write_random(0, number as u64, 0, 100_000);

        let backup = program.ok(&["--json", "backup", "--", name]);
        let point = backup.line("point");
        assert_eq!(point["domain"], name);
        let listed = program.ok(&["--json", "list", "--", name]).line("point");
        assert_eq!(listed["point"], point["point"]);
        let table = program.ok(&["list"]);
        assert!(!table.stdout.contains('\u{202e}'), "{table:?}");

        let to = home.join("restored");
        let latest = format!("{name}@latest");
        program.ok(&[
            "restore",
            "--to",
            text(&to),
            "--format",
            "raw",
            "--",
            &latest,
        ]);
        images.compare(&images.keep(&machine), &to, "raw", name);
        program.ok(&["release", "--", name]);
        assert!(machine.checkpoints().is_empty());
    }
}

#[test]
fn a_domain_that_is_called_as_another_ones_uuid_is_not_taken_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::init(&dir.path().join("repo"), &[]);
    let victim = Machine::define(dir.path(), "victim", &[DiskSpec::new("a.qcow2", MIB)]);
    let _usurper = Machine::define(dir.path(), &victim.uuid, &[DiskSpec::new("b.qcow2", MIB)]);
    let ran = program.run(&["backup", &victim.uuid]);
    ran.refused(1, &victim.uuid);
    assert!(program.points().is_empty(), "{ran:?}");
}
