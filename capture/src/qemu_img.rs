//! What `qemu-img` knows and does about images at rest.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::error::{Error, Result};

const QEMU_IMG: &str = "qemu-img";

/// What an image consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageInfo {
    /// Another file that holds part of its data: what backs it, or its external data file.
    pub(crate) elsewhere: Option<String>,
}

/// Looks at an image of a known format.
///
/// # Errors
/// [`Error::ImageInUse`] when a running machine has it open for writing.
pub(crate) fn info(path: &Path, format: &str) -> Result<ImageInfo> {
    let output = run(
        path,
        &["info", "--output=json", "-f", format],
        Some(path),
        None,
    )?;
    let info = parse(&output)?;
    let data_file = info.pointer("/format-specific/data/data-file");
    let data_file = data_file.and_then(Value::as_str).map(str::to_owned);
    Ok(ImageInfo {
        elsewhere: text(&info, "backing-filename").or(data_file),
    })
}

/// The bitmaps of a qcow2 image and of the images that back it: file and bitmap name.
pub(crate) fn bitmaps(path: &Path) -> Result<Vec<(String, String)>> {
    let output = run(
        path,
        &["info", "--output=json", "--backing-chain", "-f", "qcow2"],
        Some(path),
        None,
    )?;
    let chain = parse(&output)?;
    let mut found = Vec::new();
    for image in chain.as_array().into_iter().flatten() {
        let Some(file) = text(image, "filename") else {
            continue;
        };
        let list = image.pointer("/format-specific/data/bitmaps");
        for bitmap in list.and_then(Value::as_array).into_iter().flatten() {
            if let Some(name) = text(bitmap, "name") {
                found.push((file.clone(), name));
            }
        }
    }
    Ok(found)
}

/// Removes a bitmap from a qcow2 image that nobody uses.
pub(crate) fn remove_bitmap(path: &Path, bitmap: &str) -> Result<()> {
    run(
        path,
        &["bitmap", "--remove", "-f", "qcow2"],
        Some(path),
        Some(bitmap),
    )
    .map(drop)
}

fn run(about: &Path, words: &[&str], file: Option<&Path>, last: Option<&str>) -> Result<Vec<u8>> {
    let failed = |why: String| Error::Tool {
        program: QEMU_IMG,
        why,
    };
    let mut command = Command::new(QEMU_IMG);
    command.args(words).arg("--").env("LC_ALL", "C");
    command.args(file).args(last);
    let output = command.output().map_err(|error| {
        failed(format!(
            "it could not be started ({error}): install the package with the QEMU tools"
        ))
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    // Failed to get "write" lock
    if words.contains("Failed to get") && words.contains("\" lock") {
        return Err(Error::ImageInUse {
            path: about.to_owned(),
        });
    }
    Err(failed(words))
}

fn parse(output: &[u8]) -> Result<Value> {
    serde_json::from_slice(output).map_err(|error| Error::Tool {
        program: QEMU_IMG,
        why: format!("its answer is not understood: {error}"),
    })
}

fn text(value: &Value, key: &str) -> Option<String> {
    value.get(key)?.as_str().map(str::to_owned)
}
