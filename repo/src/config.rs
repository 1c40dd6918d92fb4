//! `config.toml`: what a repository is, fixed when it is made.
//!
//! Invariants: nothing of the file is believed before its format version and its features are
//! known; what this program does not know it refuses by name instead of guessing. Unknown keys are
//! ignored, and named to the user, who may have mistyped one: whoever adds one that matters adds a
//! feature with it.

use std::path::Path;

use toml::{Table, Value};

use crate::codec::Codec;
use crate::format::FORMAT_VERSION;
use crate::format::geometry::{ChunkSize, FanOut};
use crate::keys::{IdKey, Keys};
use crate::{Error, RepoId, Result};

/// The file is not longer, in bytes.
pub const CONFIG_BYTES_MAX: u64 = 64 << 10;

/// Features that change what old programs would misread. None yet.
const INCOMPATIBLE_FEATURES_KNOWN: [&str; 0] = [];
/// Features that old programs can read past, but would break by writing. None yet.
const READ_ONLY_COMPATIBLE_FEATURES_KNOWN: [&str; 0] = [];

/// The only hash of format version 1.
const HASH: &str = "blake3";

/// The settings that may be edited, and what they may be.
const KEYS_TO_EDIT: [(&str, &str); 2] = [
    ("codec", r#""lz4", "zstd:N" with N from 1 to 22, or "none""#),
    ("append_only", "true or false"),
];
/// All settings there are.
const KEYS: [&str; 13] = [
    "codec",
    "append_only",
    "append-only",
    "format_version",
    "repository_id",
    "hash",
    "id_key",
    "chunk_size",
    "fan_out",
    "incompatible_features",
    "read_only_compatible_features",
    "index_owner",
    "crypto",
];

/// The way out where a value is lost.
const COPY_BACK: &str = "Put a copy of the file back";

/// What `config.toml` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The repository's random name.
    pub id: RepoId,
    /// What all keys are derived from.
    pub id_key: IdKey,
    /// Bytes per chunk.
    pub chunk_size: ChunkSize,
    /// Children per manifest node.
    pub fan_out: FanOut,
    /// How new records are compressed.
    pub codec: Codec,
    /// Fencing epoch: rises when another host takes the repository over. A writer that finds a
    /// number other than the one it opened with has lost the repository.
    pub index_owner: u64,
    /// Nothing may be forgotten, pruned or repaired.
    pub append_only: bool,
    /// Features that forbid writing, because this program does not know them.
    unknown_features: Vec<String>,
}

impl Config {
    /// The settings of a new repository.
    pub fn new(
        id: RepoId,
        id_key: IdKey,
        chunk_size: ChunkSize,
        fan_out: FanOut,
        codec: Codec,
    ) -> Self {
        Self {
            id,
            id_key,
            chunk_size,
            fan_out,
            codec,
            index_owner: 1,
            append_only: false,
            unknown_features: Vec::new(),
        }
    }

    /// The keys that follow from the id key.
    pub fn keys(&self) -> Keys {
        Keys::new(&self.id_key, self.chunk_size)
    }

    /// Refuses to write where that would break a feature this program does not know.
    pub fn check_writable(&self) -> Result<()> {
        match self.unknown_features.first() {
            None => Ok(()),
            Some(feature) => Err(Error::UnknownFeature {
                feature: feature.clone(),
            }),
        }
    }

    /// Reads the text of `config.toml`; `file` is for messages.
    pub fn parse(text: &str, file: &Path) -> Result<Self> {
        let keys = Settings { text, file };
        if text.trim().is_empty() {
            return Err(keys.wrong(None, format!("it is empty. {COPY_BACK}")));
        }
        let table: Table = text
            .parse()
            .map_err(|error: toml::de::Error| keys.unreadable(&error))?;

        let version = keys.number(&table, "format_version")?;
        if version == 0 {
            return Err(keys.fixed("format_version", "is 0"));
        }
        if version != u64::from(FORMAT_VERSION) {
            return Err(Error::NewerFormat {
                found: u32::try_from(version).unwrap_or(u32::MAX),
                known: FORMAT_VERSION,
            });
        }
        let incompatible = keys.names(&table, "incompatible_features")?;
        if let Some(feature) = unknown(incompatible, &INCOMPATIBLE_FEATURES_KNOWN).next() {
            return Err(Error::UnknownFeature { feature });
        }
        let crypto = table.get("crypto").and_then(Value::as_table);
        if crypto.is_some_and(|crypto| !crypto.is_empty()) {
            return Err(Error::UnknownFeature {
                feature: "crypto".into(),
            });
        }
        let hash = keys.text(&table, "hash")?;
        if hash != HASH {
            return Err(Error::UnknownFeature {
                feature: format!("hash {hash}"),
            });
        }
        let compatible = keys.names(&table, "read_only_compatible_features")?;
        let id_key = data_encoding::HEXLOWER
            .decode(keys.text(&table, "id_key")?.as_bytes())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| keys.fixed("id_key", "is not 64 hexadecimal digits"))?;

        Ok(Self {
            id: keys.parsed(&table, "repository_id")?,
            id_key: IdKey::from_bytes(id_key),
            chunk_size: ChunkSize::new(keys.number(&table, "chunk_size")?).ok_or_else(|| {
                keys.fixed("chunk_size", "is not a power of two from 4 KiB to 4 MiB")
            })?,
            fan_out: FanOut::new(keys.number(&table, "fan_out")?)
                .ok_or_else(|| keys.fixed("fan_out", "is neither 64 nor 256"))?,
            codec: keys.parsed(&table, "codec")?,
            index_owner: keys.number(&table, "index_owner")?,
            append_only: keys.append_only(&table)?,
            unknown_features: unknown(compatible, &READ_ONLY_COMPATIBLE_FEATURES_KNOWN).collect(),
        })
    }

    /// The text of `config.toml`.
    pub fn print(&self) -> String {
        let id_key = data_encoding::HEXLOWER.encode(self.id_key.as_bytes());
        format!(
            r#"# A virtkeep repository. Only the settings in the first part may be edited.
# Keep a copy of this file elsewhere: without it, nothing in the repository can be verified.

# How new data is compressed: "lz4", "zstd:N" with N from 1 to 22, or "none".
# May be changed at any time; what is already stored stays as it is and stays readable.
codec = "{codec}"

# true: nothing in here may be forgotten, pruned or repaired, until whoever may edit this file
# says false again. A guard against mistakes, not against somebody who may edit this file.
append_only = {append_only}

# ---- Do not edit anything below: a changed value makes the repository unreadable. ----

format_version = {FORMAT_VERSION}
repository_id = "{id}"
hash = "{HASH}"
id_key = "{id_key}"
chunk_size = {chunk_size}
fan_out = {fan_out}
incompatible_features = []
read_only_compatible_features = [{features}]
index_owner = {index_owner}

# Reserved for encryption.
[crypto]
"#,
            codec = self.codec,
            id = self.id,
            chunk_size = self.chunk_size.as_u32(),
            fan_out = self.fan_out.as_u16(),
            features = self
                .unknown_features
                .iter()
                .map(|feature| Value::from(feature.as_str()).to_string())
                .collect::<Vec<_>>()
                .join(", "),
            index_owner = self.index_owner,
            append_only = self.append_only,
        )
    }
}

fn unknown<'a>(
    named: Vec<String>,
    known: &'a [&'static str],
) -> impl Iterator<Item = String> + use<'a> {
    named
        .into_iter()
        .filter(move |feature| !known.contains(&feature.as_str()))
}

/// The settings that this program does not know, each with its line, from 1.
pub fn unknown_keys(text: &str) -> Vec<(String, usize)> {
    let Ok(table) = text.parse::<Table>() else {
        return Vec::new();
    };
    let unknown = table.keys().filter(|key| !KEYS.contains(&key.as_str()));
    let place = |key: &String| (key.clone(), line_of(text, key).unwrap_or(1));
    unknown.map(place).collect()
}

/// The line in which a key is set.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let sets = |line: &str| {
        let name = line.split(['=', ']']).next().unwrap_or(line);
        name.trim_matches(|c: char| c.is_whitespace() || "[\"'".contains(c)) == key
    };
    text.lines().position(sets).map(|at| at + 1)
}

/// Reads settings, and words what is wrong with them.
struct Settings<'a> {
    text: &'a str,
    file: &'a Path,
}

impl Settings<'_> {
    fn wrong(&self, line: Option<usize>, why: String) -> Error {
        Error::Settings {
            path: self.file.into(),
            line,
            why,
        }
    }

    /// The file is no TOML.
    fn unreadable(&self, error: &toml::de::Error) -> Error {
        let before = error.span().and_then(|span| self.text.get(..span.start));
        let line = before.map(|before| before.matches('\n').count() + 1);
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        self.wrong(
            line,
            format!("{message}. Correct the line, or put a copy of the file back"),
        )
    }

    /// Something is wrong with a setting.
    fn of(&self, key: &str, what: &str) -> Error {
        match KEYS_TO_EDIT.iter().find(|(name, _)| *name == key) {
            Some((_, values)) => {
                let line = line_of(self.text, key);
                self.wrong(line, format!("{key} {what}. It may be {values}"))
            }
            None => self.fixed(key, what),
        }
    }

    /// Something is wrong with a setting that nobody may choose.
    fn fixed(&self, key: &str, what: &str) -> Error {
        let line = line_of(self.text, key);
        self.wrong(
            line,
            format!("{key} {what}. What it was cannot be guessed. {COPY_BACK}"),
        )
    }

    fn get<'t, T>(
        &self,
        table: &'t Table,
        key: &str,
        read: impl FnOnce(&'t Value) -> Option<T>,
    ) -> Result<T> {
        let value = table.get(key).ok_or_else(|| self.of(key, "is missing"))?;
        read(value).ok_or_else(|| self.of(key, &format!("cannot be {value}")))
    }

    fn number(&self, table: &Table, key: &str) -> Result<u64> {
        self.get(table, key, |value| u64::try_from(value.as_integer()?).ok())
    }

    fn flag(&self, table: &Table, key: &str) -> Result<bool> {
        self.get(table, key, Value::as_bool)
    }

    /// Also understood as it is spelled on the command line: an unknown key would be ignored, and the
    /// repository would not be guarded. Either one guards it.
    fn append_only(&self, table: &Table) -> Result<bool> {
        let mut guarded = None;
        for key in ["append_only", "append-only"] {
            if table.contains_key(key) {
                guarded = Some(guarded == Some(true) || self.flag(table, key)?);
            }
        }
        match guarded {
            Some(guarded) => Ok(guarded),
            None => self.flag(table, "append_only"),
        }
    }

    fn text<'t>(&self, table: &'t Table, key: &str) -> Result<&'t str> {
        self.get(table, key, Value::as_str)
    }

    fn parsed<T: std::str::FromStr>(&self, table: &Table, key: &str) -> Result<T> {
        self.get(table, key, |value| value.as_str()?.parse().ok())
    }

    fn names(&self, table: &Table, key: &str) -> Result<Vec<String>> {
        self.get(table, key, |value| {
            let names = value.as_array()?.iter();
            names.map(|name| name.as_str().map(str::to_owned)).collect()
        })
    }
}
