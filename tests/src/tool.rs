//! Running the tools around: virsh, qemu-img, and the scripts of `tests/stack`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Long enough for anything that happens at all on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs a tool, which must succeed; its standard output.
#[track_caller]
pub fn run(program: impl AsRef<std::ffi::OsStr>, words: &[&str]) -> String {
    let program = program.as_ref();
    let output = Command::new(program)
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    assert!(
        output.status.success(),
        "{} {words:?}: {}{}",
        program.display(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A script of `tests/stack`.
pub fn stack(script: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("stack")
        .join(script)
}

/// Waits for something that must happen; how long it takes is no part of any test.
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The lines that are not empty.
pub fn lines(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| line.trim().to_owned()).collect()
}

/// A path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
