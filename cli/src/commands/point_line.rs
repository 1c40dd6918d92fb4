//! A point as programs see it: one shape, whichever command prints it.

use serde::Serialize;
use virtkeep_repo::{
    CaptureMode, Consistency, Disk, DiskStats, FileRole, Pin, PinKind, Point, SourceKind,
};

use super::tested::BootTest;
use crate::when::rfc3339;

/// A `"type":"point"` line.
#[derive(Serialize)]
pub(super) struct PointLine<'a> {
    r#type: &'static str,
    point: String,
    domain: &'a str,
    uuid: String,
    time: String,
    committed: String,
    host: &'a str,
    source: SourceKind,
    consistency: Consistency,
    checkpoint: &'a Option<String>,
    tags: &'a [String],
    disks: Vec<DiskLine<'a>>,
    files: Vec<FileLine<'a>>,
}

/// What the repository says of a point besides its record.
#[derive(Serialize)]
pub(super) struct KeptPointLine<'a> {
    #[serde(flatten)]
    point: PointLine<'a>,
    forgotten: bool,
    pins: Vec<PinLine<'a>>,
    boot_tests: &'a [BootTest],
}

#[derive(Serialize)]
struct DiskLine<'a> {
    target: &'a str,
    size_bytes: u64,
    mode: CaptureMode,
    reason: &'a str,
    format: &'a str,
    location: &'a str,
    root: String,
    parent: Option<String>,
    checkpoint: &'a Option<String>,
    #[serde(flatten)]
    stats: DiskStats,
}

#[derive(Serialize)]
struct FileLine<'a> {
    role: FileRole,
    name: &'a str,
    size_bytes: u64,
}

#[derive(Serialize)]
struct PinLine<'a> {
    reason: &'a str,
    in_use: bool,
    time: String,
}

impl<'a> PointLine<'a> {
    /// All that the record of a point says.
    pub(super) fn new(point: &'a Point) -> Self {
        Self {
            r#type: "point",
            point: point.id.to_string(),
            domain: &point.domain.name,
            uuid: point.domain.uuid.to_string(),
            time: rfc3339(point.time),
            committed: rfc3339(point.committed),
            host: &point.host,
            source: point.source,
            consistency: point.consistency,
            checkpoint: &point.checkpoint,
            tags: &point.tags,
            disks: point.disks.iter().map(disk).collect(),
            files: point
                .files
                .iter()
                .map(|file| FileLine {
                    role: file.role,
                    name: &file.name,
                    size_bytes: file.size.0,
                })
                .collect(),
        }
    }

    /// The same with what the repository adds.
    pub(super) fn kept(
        point: &'a Point,
        forgotten: bool,
        pins: &'a [Pin],
        boot_tests: &'a [BootTest],
    ) -> KeptPointLine<'a> {
        KeptPointLine {
            point: Self::new(point),
            forgotten,
            pins: pins
                .iter()
                .map(|pin| PinLine {
                    reason: &pin.reason,
                    in_use: pin.kind == PinKind::InUse,
                    time: rfc3339(pin.created),
                })
                .collect(),
            boot_tests,
        }
    }
}

fn disk(disk: &Disk) -> DiskLine<'_> {
    DiskLine {
        target: &disk.target,
        size_bytes: disk.size.0,
        mode: disk.mode,
        reason: &disk.reason,
        format: &disk.format,
        location: &disk.location,
        root: disk.root.to_string(),
        parent: disk.parent.map(|id| id.to_string()),
        checkpoint: &disk.checkpoint,
        stats: disk.stats,
    }
}
