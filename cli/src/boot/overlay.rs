//! The images of a recovery: qcow2 overlays over exports of its point.
//!
//! QEMU's tools work on them while no guest does; QEMU's own lock keeps both apart.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde_json::json;
use virtkeep_repo::{Cancel, Progress};

use crate::serve::address::unix_uri;

/// The tool, with nothing to read.
fn qemu_img(command: &str) -> Command {
    let mut tool = Command::new("qemu-img");
    tool.arg(command).stdin(Stdio::null());
    tool
}

fn run(tool: &mut Command, what: &str, path: &Path) -> Result<Vec<u8>> {
    let done = tool
        .output()
        .context("cannot run qemu-img: install qemu-utils")?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        bail!("cannot {what} {}: {}", path.display(), said.trim());
    }
    Ok(done.stdout)
}

/// Makes an empty overlay, durably but for its name. Nobody needs to serve yet.
pub(crate) fn create(path: &Path, size_bytes: u64, socket: &Path, export: &str) -> Result<()> {
    // So that no file of somebody else is overwritten.
    File::create_new(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut tool = qemu_img("create");
    tool.args(["-q", "-u", "-f", "qcow2", "-F", "raw", "-b"])
        .arg(unix_uri(socket, export))
        .arg(path)
        .arg(size_bytes.to_string());
    run(&mut tool, "create", path)?;
    sync(path)
}

/// Makes an image durable that nobody writes to, or whose writer has written out what it held.
pub(crate) fn sync(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .with_context(|| format!("cannot sync {}", path.display()))
}

/// Makes sure that an image has no internal snapshots: those would not get the data that is moved in, and
/// read as zeroes what they lack.
pub(crate) fn check_snapshots(path: &Path) -> Result<()> {
    #[derive(Deserialize)]
    struct Info {
        #[serde(default)]
        snapshots: Vec<serde::de::IgnoredAny>,
    }
    let mut tool = qemu_img("info");
    tool.args(["-U", "--output=json", "-f", "qcow2"]).arg(path);
    let json = run(&mut tool, "look at", path)?;
    let info: Info = serde_json::from_slice(&json)
        .with_context(|| format!("cannot read what qemu-img says of {}", path.display()))?;
    ensure!(
        info.snapshots.is_empty(),
        "{} has snapshots inside, which would lose the data that is not moved in yet: delete them with \
         `virsh snapshot-delete`, then run `virtkeep boot --finish`",
        path.display()
    );
    Ok(())
}

/// Whether an image that was pulled into holds every byte of its disk, as it is on the disk now, whatever
/// its header says. QEMU may have it open, so it is right only if nothing of weight is in its memory.
pub(crate) fn is_complete(path: &Path) -> Result<bool> {
    #[derive(Deserialize)]
    struct Extent {
        present: bool,
    }
    let place = json!({
        "driver": "qcow2",
        // What is not in it counts as missing, wherever it would be read from.
        "backing": null,
        "file": {"driver": "file", "filename": path.to_str()},
    });
    let mut tool = qemu_img("map");
    tool.args(["-U", "--output=json"])
        .arg(format!("json:{place}"));
    tool.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = tool
        .spawn()
        .context("cannot run qemu-img: install qemu-utils")?;
    let stdout = child.stdout.take().context("no pipe from qemu-img")?;
    // An extent per line, of which there may be millions.
    let (mut extents, mut complete) = (0, true);
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cannot read from qemu-img")?;
        let line = line.trim_matches(['[', ']', ',', ' ']);
        if line.is_empty() {
            continue;
        }
        let extent: Extent = serde_json::from_str(line)
            .with_context(|| format!("qemu-img says {line:?} of {}", path.display()))?;
        extents += 1;
        complete &= extent.present;
    }
    let done = child
        .wait_with_output()
        .context("cannot wait for qemu-img")?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(
        done.status.success(),
        "cannot look at {}: {}",
        path.display(),
        said.trim()
    );
    Ok(complete && extents > 0)
}

/// Makes sure that no guest has an image open, which need not be there.
pub(crate) fn check_unused(path: &Path) -> Result<()> {
    if path.exists() {
        virtkeep_capture::check_unused(path)?;
    }
    Ok(())
}

/// Moves the data into an image of a domain that is shut off. Killed in between, it can be done again.
///
/// The image may have lost its backing image already: QEMU takes that out of the header before it has
/// written the tables for what it moved in, so after a crash the header alone proves nothing. It is
/// therefore put back first, which is always right: whatever the guest or the pull has stored since
/// hides it.
pub(crate) fn fill(
    path: &Path,
    socket: &Path,
    export: &str,
    progress: &dyn Progress,
    size_bytes: u64,
    cancel: &Cancel,
) -> Result<()> {
    let mut attach = qemu_img("rebase");
    attach
        .args(["-q", "-u", "-f", "qcow2", "-F", "raw", "-b"])
        .arg(unix_uri(socket, export))
        .arg(path);
    run(&mut attach, "give its backing image back to", path)?;
    let mut tool = qemu_img("rebase");
    tool.args(["-p", "-f", "qcow2", "-b", ""])
        .arg(path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = tool
        .spawn()
        .context("cannot run qemu-img: install qemu-utils")?;
    let mut stdout = child.stdout.take().context("no pipe from qemu-img")?;
    let mut passed = 0;
    let mut text = Vec::new();
    let mut buffer = [0; 256];
    while let Ok(count @ 1..) = stdout.read(&mut buffer) {
        if cancel.check().is_err() {
            let _ = child.kill();
            let _ = child.wait();
            cancel.check()?;
        }
        text.extend_from_slice(&buffer[..count]);
        if let Some(share) = last_share(&text) {
            let now = (size_bytes as f64 * share) as u64;
            progress.passed(now.saturating_sub(passed));
            passed = passed.max(now);
            text.clear();
        }
    }
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = stderr.read_to_string(&mut said);
    }
    let status = child.wait().context("cannot wait for qemu-img")?;
    ensure!(
        status.success(),
        "cannot move the data into {}: {}",
        path.display(),
        said.trim()
    );
    sync(path)
}

/// The last `(12.34/100%)` in what `qemu-img -p` printed, as a share of one.
fn last_share(text: &[u8]) -> Option<f64> {
    let text = String::from_utf8_lossy(text);
    let (before, _) = text.rsplit_once("/100%)")?;
    let (_, number) = before.rsplit_once('(')?;
    let percent: f64 = number.trim().parse().ok()?;
    Some((percent / 100.0).clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_from_what_the_tool_prints() {
        assert_eq!(
            last_share(b"    (0.00/100%)\r    (50.00/100%)\r  (7"),
            Some(0.5)
        );
        assert_eq!(last_share(b"    (12"), None);
    }
}
