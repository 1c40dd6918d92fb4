//! Measurements of virtkeep; each example is one, and says how to run it.

use virtkeep_repo::{
    ByteLen, CaptureMode, Consistency, Disk, Domain, DomainUuid, PointDraft, SourceKind,
    StoredDisk, UnixMillis,
};

/// A repeatable sequence of numbers that look random (xorshift).
pub struct Pseudo(pub u64);

impl Pseudo {
    /// The next number. (Not an iterator: it never ends and nobody chains it.)
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// A point with this one disk.
pub fn draft(size: ByteLen, stored: StoredDisk) -> PointDraft {
    PointDraft {
        domain: Domain {
            uuid: DomainUuid::from_bytes([1; 16]),
            name: "bench".to_owned(),
        },
        source: SourceKind::Image,
        host: "bench".to_owned(),
        time: UnixMillis(0),
        consistency: Consistency::Clean,
        checkpoint: None,
        disks: vec![Disk {
            target: "vda".to_owned(),
            size,
            root: stored.root,
            mode: CaptureMode::Full,
            reason: "bench".to_owned(),
            checkpoint: None,
            parent: None,
            format: "raw".to_owned(),
            location: "bench".to_owned(),
            backing: Vec::new(),
            stats: stored.stats,
        }],
        files: Vec::new(),
        tags: Vec::new(),
    }
}
