//! What may happen in a history. All of it is drawn from the seed before anything happens; what
//! cannot be done when its time comes is passed over.

use std::fmt;
use std::ops::RangeInclusive;

use fastrand::Rng;
use virtkeep_tests::{DiskSpec, MIB};

/// How a history begins.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) disks: Vec<DiskSpec>,
    /// For `virtkeep init`.
    pub(crate) chunk_size: &'static str,
    pub(crate) codec: &'static str,
}

/// One thing that happens to the domain.
#[derive(Debug)]
pub(crate) enum Event {
    Io(Io),
    /// The guest's processor starts anew.
    Reset,
    Grow {
        disk: usize,
        bytes: u64,
    },
    /// Back to the size it had: what was behind the cut reads as zeroes, and no bitmap knows.
    ShrinkAndGrow {
        disk: usize,
        bytes: u64,
    },
    /// An overlay on each disk.
    Snapshot,
    /// The top overlay of each disk goes into what is below.
    Commit,
    SaveAndRestore,
    PowerCycle,
    KillQemu,
    Backup(How),
}

/// A request of the guest to a disk.
#[derive(Debug)]
pub(crate) struct Io {
    pub(crate) disk: usize,
    pub(crate) place: Place,
    pub(crate) what: What,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum What {
    /// The same byte all over.
    Pattern(u8),
    /// Bytes like no others.
    Random(u64),
    Zero {
        unmap: bool,
    },
    Discard,
}

/// A range of a disk whose size is not known yet.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// In eighths of the disk: guests come back to the same places, and only what was written
    /// before can be lost by zeroing it.
    eighth: u64,
    /// Behind that.
    behind: u64,
    align: u64,
    len: u64,
}

/// How a backup goes.
#[derive(Debug)]
pub(crate) enum How {
    /// Undisturbed.
    Calm,
    /// All disks read in full.
    Full,
    /// While the guest writes: the requests that come after the checkpoint are in no point of it.
    UnderWrites(Vec<Io>),
    /// Of a domain that is shut off.
    Offline,
    /// Ended after so many milliseconds.
    Killed {
        ms: u64,
    },
    Interrupted {
        ms: u64,
    },
    /// The domain is shut off after so many milliseconds, or started.
    PoweredOff {
        ms: u64,
    },
    PoweredOn {
        ms: u64,
    },
    /// There is no place for what it needs.
    Refused(Refused),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Refused {
    Socket,
    Scratch,
}

impl Place {
    /// The range on a disk of this size: start and length, not empty.
    pub(crate) fn on(self, disk_bytes: u64) -> (u64, u64) {
        let start = disk_bytes / 8 * self.eighth + self.behind;
        let start = start % disk_bytes / self.align * self.align;
        (start, self.len.min(disk_bytes - start))
    }

    fn any(rng: &mut Rng, bits: RangeInclusive<u32>) -> Self {
        let align = *rng.choice(&[1, 512, 4096, 65536, 65536, MIB * 2]).unwrap();
        // As many short ones as long ones.
        let bits = rng.u32(bits);
        let len = rng.u64(1..=1 << bits);
        let whole_units = rng.bool();
        Self {
            eighth: rng.u64(..8),
            behind: rng.u64(..1 << 18),
            align,
            len: if whole_units {
                len.next_multiple_of(align)
            } else {
                len
            },
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            eighth,
            behind,
            align,
            len,
        } = self;
        write!(f, "{eighth}/8 + {behind} aligned to {align}, {len} bytes")
    }
}

impl Io {
    fn any(rng: &mut Rng) -> Self {
        let what = match rng.u32(..10) {
            0..3 => What::Pattern(rng.u8(1..)),
            3..6 => What::Random(rng.u64(..)),
            6..8 => What::Zero { unmap: rng.bool() },
            _ => What::Discard,
        };
        // What is zeroed must hide something that was written before.
        let bits = match what {
            What::Pattern(_) | What::Random(_) => 4..=22,
            What::Zero { .. } | What::Discard => 13..=22,
        };
        Self {
            disk: rng.usize(..3),
            place: Place::any(rng, bits),
            what,
        }
    }

    fn several(rng: &mut Rng, count: std::ops::Range<usize>) -> impl Iterator<Item = Self> {
        let count = rng.usize(count);
        std::iter::repeat_with(|| Self::any(rng)).take(count)
    }
}

impl Start {
    pub(crate) fn any(rng: &mut Rng) -> Self {
        let odd_size = |rng: &mut Rng| match rng.bool() {
            true => rng.u64(8..40) * MIB,
            false => rng.u64(16 << 10..80 << 10) * 512,
        };
        let cluster_bytes = *rng.choice(&[4 << 10, 64 << 10, 2 << 20]).unwrap();
        let mut disks = vec![
            DiskSpec::new("a.qcow2", odd_size(rng)),
            DiskSpec {
                cluster_bytes,
                ..DiskSpec::new("b.qcow2", odd_size(rng))
            },
        ];
        if rng.u32(..3) == 0 {
            disks.push(DiskSpec::new("c.raw", odd_size(rng)));
        }
        Self {
            disks,
            chunk_size: rng.choice(["64KiB", "64KiB", "16KiB", "256KiB"]).unwrap(),
            codec: rng.choice(["lz4", "zstd", "none"]).unwrap(),
        }
    }
}

/// The events of a history, in order.
pub(crate) fn events(rng: &mut Rng) -> Vec<Event> {
    let mut events: Vec<Event> = Io::several(rng, 4..10).map(Event::Io).collect();
    events.push(Event::Backup(How::Calm));
    for _ in 0..rng.u32(5..8) {
        // Now and then nothing at all happens between two backups.
        if rng.u32(..8) > 0 {
            events.extend(Io::several(rng, 1..6).map(Event::Io));
            if rng.u32(..3) > 0 {
                events.push(trouble(rng));
                events.extend(Io::several(rng, 0..3).map(Event::Io));
            }
        }
        events.push(Event::Backup(how(rng)));
    }
    events.extend(Io::several(rng, 1..4).map(Event::Io));
    events.push(Event::Backup(How::Calm));
    events
}

fn trouble(rng: &mut Rng) -> Event {
    let disk = rng.usize(..3);
    let bytes = rng.u64(1..16 << 10) * 512;
    match rng.u32(..10) {
        0 => Event::Reset,
        1 => Event::Grow { disk, bytes },
        2..4 => Event::ShrinkAndGrow { disk, bytes },
        4..6 => Event::Snapshot,
        6 => Event::Commit,
        7 => Event::SaveAndRestore,
        8 => Event::PowerCycle,
        _ => Event::KillQemu,
    }
}

fn how(rng: &mut Rng) -> How {
    let ms = rng.u64(..300);
    match rng.u32(..20) {
        0..6 => How::Calm,
        6 => How::Full,
        7..11 => How::UnderWrites(Io::several(rng, 3..10).collect()),
        11..13 => How::Offline,
        13..15 => How::Killed { ms },
        15..17 => How::Interrupted { ms },
        17 => How::PoweredOff { ms },
        18 => How::PoweredOn { ms },
        _ => How::Refused(*rng.choice(&[Refused::Socket, Refused::Scratch]).unwrap()),
    }
}
