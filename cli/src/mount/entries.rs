//! The files in the directory of a point: disks, what was kept with them, partitions.

use virtkeep_repo::Point;

use super::inodes::File;
use super::partitions::Partition;
use crate::restore::file_names::{safe, stored_file, unique};

/// A file in the directory of a point.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) file: File,
    /// Bytes.
    pub(super) len: u64,
}

/// The files in the directory of a point, each under a name of its own.
#[derive(Default)]
pub(super) struct Entries {
    entries: Vec<Entry>,
    taken: Vec<String>,
}

impl Entries {
    /// The disks, and what was kept with them: all that the record of a point tells.
    pub(super) fn of(point: &Point) -> Self {
        let mut found = Self::default();
        for disk in &point.disks {
            let name = format!("{}.raw", safe(&disk.target));
            found.add(name, File::Disk(disk.target.clone()), disk.size.0);
        }
        for (place, stored) in point.files.iter().enumerate() {
            if let Some(name) = stored_file(stored) {
                found.add(name, File::Stored(place), stored.size.0);
            }
        }
        found
    }

    /// The partitions of the disk of this target as well.
    pub(super) fn add_partitions(&mut self, target: &str, partitions: &[Partition]) {
        for Partition { number, start, len } in partitions {
            let name = format!("{}.p{number}.raw", safe(target));
            let (target, start, len) = (target.to_owned(), *start, *len);
            self.add(name, File::Partition { target, start, len }, len);
        }
    }

    pub(super) fn all(&self) -> &[Entry] {
        &self.entries
    }

    pub(super) fn named(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    fn add(&mut self, name: String, file: File, len: u64) {
        let name = unique(name, &mut self.taken);
        self.entries.push(Entry { name, file, len });
    }
}
