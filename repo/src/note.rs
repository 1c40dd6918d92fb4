//! Notes: what was learned about a point after it was made, one small file each.
//!
//! The record of a point never changes. What is found out later lies beside it, in
//! `points/<point>.notes/`, and goes with it. Nothing depends on notes: one that cannot be read is left
//! out.

use serde::{Deserialize, Serialize};

use crate::lease::host_name;
use crate::storage::{Folder, ObjectName};
use crate::{Error, NoteId, PointId, Repository, Result, UnixMillis};

/// The largest note that is read, in bytes.
const NOTE_BYTES_MAX: u64 = 64 << 10;

/// A remark about a point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Note {
    /// When it was made.
    pub created: UnixMillis,
    /// Name of the host on which it was made.
    #[serde(default)]
    pub host: String,
    /// What it says.
    #[serde(flatten)]
    pub remark: Remark,
}

/// What a note says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Remark {
    /// The point was started, and watched for a sign of life.
    BootTest {
        /// Whether one was seen.
        passed: bool,
        /// What was seen, or missed, for people.
        seen: String,
        /// How long it took, in seconds.
        seconds: f64,
    },
    /// Something that a later version knows of.
    #[serde(other)]
    Unknown,
}

impl Repository {
    /// Adds a note to a point; durable when this returns. [`Error::NoSuchPoint`] when it is not there.
    pub fn add_note(&self, point: PointId, remark: Remark) -> Result<NoteId> {
        self.check_writable()?;
        self.check_exists(point)?;
        let note = Note {
            created: self.store().env.clock.now(),
            host: host_name(),
            remark,
        };
        let mut json = serde_json::to_vec(&note).map_err(|error| Error::Corrupt {
            what: "a new note".to_owned(),
            expected: "JSON".to_owned(),
            found: error.to_string(),
        })?;
        json.push(b'\n');
        let id = NoteId::from_bytes(self.store().env.random_bytes());
        let name = ObjectName::Note { point, note: id };
        self.store().storage.put(&name, &json)?;
        Ok(id)
    }

    /// The notes about a point that can be read, the oldest first.
    pub fn notes(&self, point: PointId) -> Result<Vec<Note>> {
        let storage = &self.store().storage;
        let names = storage.list(Folder::Notes(point))?;
        let read = |name: &ObjectName| {
            let json = storage.read_whole(name, NOTE_BYTES_MAX).ok()?;
            serde_json::from_slice(&json).ok()
        };
        let mut notes: Vec<Note> = names.iter().filter_map(read).collect();
        notes.sort_by_key(|note| note.created);
        Ok(notes)
    }
}
