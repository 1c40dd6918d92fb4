//! Pins: durable files in `pins/` that keep points alive across crashes and reboots.
//!
//! A lease ends with its process; a VM that runs from a point does not, and neither does a user's wish
//! to keep one. Each pin is a file of its own, written once and removed by whoever set it.
//!
//! A pin is durable before its holder looks whether the points are still there; `forget` tells why that
//! order keeps a pinned point from being lost.
//!
//! Of a pin that is damaged nobody knows what it keeps: as long as it lies there, nothing is forgotten or
//! pruned, and whoever knows better removes it by its name.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::words;
use crate::file_system::{FileSystem, LocalFileSystem, OpenFile};
use crate::index::Fault;
use crate::{Env, Error, PointId, Repository, Result, UnixMillis};

/// What a pin is called while it is written.
const TEMPORARY_SUFFIX: &str = ".new";

/// The largest pin that is read, in bytes.
const PIN_BYTES_MAX: u64 = 1 << 20;

/// A pin as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The points that must stay.
    pub points: Vec<PointId>,
    /// Who keeps them.
    #[serde(default)]
    pub kind: PinKind,
    /// Why, for people: `domain web1 runs from it`.
    pub reason: String,
    /// When it was set.
    pub created: UnixMillis,
    /// What whoever set it needs in order to go on after a crash. The engine does not look inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<serde_json::Value>,
}

/// The pins there are.
#[derive(Debug, Default)]
pub struct Pins {
    /// Those that can be read, with their names.
    pub sound: Vec<(String, Pin)>,
    /// Those that cannot.
    pub damaged: Vec<DamagedPin>,
}

/// A pin that cannot be read, so that nobody knows which points it keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedPin {
    /// What it is removed by.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: String,
}

/// Who keeps pinned points.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PinKind {
    /// A user, until he thinks better of it.
    #[default]
    User,
    /// Something that runs from them and removes the pin itself.
    InUse,
}

impl Repository {
    /// Pins points: none of them can be forgotten until the pin is removed. Durable when this returns.
    /// The name is needed to remove it. [`Error::NoSuchPoint`] when one is not there, forgotten ones
    /// included; then there is no pin.
    pub fn pin(&self, points: &[PointId], kind: PinKind, reason: &str) -> Result<String> {
        self.pin_with(points, kind, reason, None)
    }

    /// The same with details for whoever goes on after a crash: at most about a megabyte.
    pub fn pin_with(
        &self,
        points: &[PointId],
        kind: PinKind,
        reason: &str,
        details: Option<serde_json::Value>,
    ) -> Result<String> {
        self.check_writable()?;
        let name = self.pins.create(points, kind, reason, details)?;
        let there = self.store().index.read(|_| {
            let there = points
                .iter()
                .try_for_each(|point| self.check_exists(*point));
            there.map_err(Fault::from)
        });
        match there {
            Ok(()) => Ok(name),
            Err(error) => {
                self.pins.remove(&name)?;
                Err(error)
            }
        }
    }

    /// Removes a pin, durably, also a damaged one. One that is not there is gone already.
    pub fn remove_pin(&self, name: &str) -> Result<()> {
        self.check_writable()?;
        self.pins.remove(name)
    }

    /// [`Error::Pinned`] when the point is pinned.
    pub(crate) fn check_unpinned(&self, point: PointId) -> Result<()> {
        let pins = self.pins.list()?;
        match pins
            .into_iter()
            .find(|(_, pin)| pin.points.contains(&point))
        {
            Some((_, Pin { reason, .. })) => Err(Error::Pinned { point, reason }),
            None => Ok(()),
        }
    }
}

/// The pins of one repository.
#[derive(Clone)]
pub struct PinStore {
    files: Arc<dyn FileSystem>,
    dir: PathBuf,
    env: Env,
}

impl PinStore {
    /// The pins in `dir`.
    pub fn new(dir: &Path, env: Env) -> Self {
        Self::on(Arc::new(LocalFileSystem), dir, env)
    }

    /// The same on a given file system.
    pub fn on(files: Arc<dyn FileSystem>, dir: &Path, env: Env) -> Self {
        Self {
            files,
            dir: dir.to_owned(),
            env,
        }
    }

    /// Sets a pin; durable when this returns. The name is needed to remove it. The caller looks
    /// afterwards whether the points are still there.
    pub fn create(
        &self,
        points: &[PointId],
        kind: PinKind,
        reason: &str,
        details: Option<serde_json::Value>,
    ) -> Result<String> {
        let pin = Pin {
            points: points.to_vec(),
            kind,
            reason: reason.to_owned(),
            created: self.env.clock.now(),
            details,
        };
        let name = data_encoding::HEXLOWER.encode(&self.env.random_bytes::<16>());
        let path = self.dir.join(&name);
        let temporary = self.dir.join(format!("{name}{TEMPORARY_SUFFIX}"));
        let write = || -> io::Result<()> {
            let mut json = serde_json::to_vec(&pin)?;
            json.push(b'\n');
            let mut file = self.create_locked(&temporary)?;
            file.append(&json)?;
            file.sync()?;
            self.files.rename_new(&temporary, &path)
        };
        if let Err(error) = write() {
            // Should it fail, what is left is no pin.
            let _ = self.files.remove(&temporary);
            return Err(Error::io("write the pin", &path)(error));
        }
        if let Err(error) = self.sync() {
            // Nobody is told its name.
            let _ = self.files.remove(&path);
            return Err(error);
        }
        Ok(name)
    }

    /// Creates a temporary file that nobody takes for debris as long as it is open.
    fn create_locked(&self, temporary: &Path) -> io::Result<Box<dyn OpenFile>> {
        loop {
            let file = match self.files.create_new(temporary) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    self.remove_if_abandoned(temporary)?;
                    continue;
                }
                created => created?,
            };
            // Whoever clears debris away may have come before the lock.
            if file.try_lock()? && file.is_linked()? {
                return Ok(file);
            }
        }
    }

    /// Removes what killed commands left of pins that never came to be.
    pub fn remove_debris(&self) -> Result<()> {
        let paths = match self.files.entries(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            paths => paths.map_err(Error::io("list", &self.dir))?,
        };
        for path in paths {
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.and_then(|name| name.strip_suffix(TEMPORARY_SUFFIX));
            // A directory is nobody's pin, and no reason to fail.
            if name.and_then(valid_name).is_none() || self.files.is_directory(&path) {
                continue;
            }
            self.remove_if_abandoned(&path)
                .map_err(Error::io("remove", &path))?;
        }
        Ok(())
    }

    /// Removes a temporary file that nobody holds locked.
    fn remove_if_abandoned(&self, path: &Path) -> io::Result<()> {
        let remove = || match self.files.open(path)?.try_lock()? {
            true => self.files.remove(path),
            false => Ok(()),
        };
        match remove() {
            // Renamed into its place meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Every pin with its name. A damaged one is an error: to overlook it might cost a point.
    pub fn list(&self) -> Result<Vec<(String, Pin)>> {
        let mut found = self.scan()?;
        match found.damaged.pop() {
            Some(DamagedPin { name, path, why }) => Err(Error::DamagedPin { name, path, why }),
            None => Ok(found.sound),
        }
    }

    /// Every pin with its name, and the damaged ones.
    pub fn scan(&self) -> Result<Pins> {
        let mut found = Pins::default();
        let paths = match self.files.entries(&self.dir) {
            // A copy of the repository may lack what was empty.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            paths => paths.map_err(Error::io("list", &self.dir))?,
        };
        for path in paths {
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(name) = name.and_then(valid_name) else {
                continue;
            };
            let why = match self.read(&path) {
                Ok(json) => match serde_json::from_slice(&json) {
                    Ok(pin) => {
                        found.sound.push((name, pin));
                        continue;
                    }
                    Err(_) if json.is_empty() => "it is empty".to_owned(),
                    Err(error) => error.to_string(),
                },
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    return Err(Error::io("read the pin", &path)(error));
                }
                Err(error) => words(&error),
            };
            found.damaged.push(DamagedPin { name, path, why });
        }
        found.sound.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(found)
    }

    /// Removes a pin, durably. One that is not there is gone already.
    pub fn remove(&self, name: &str) -> Result<()> {
        let Some(name) = valid_name(name) else {
            return Ok(());
        };
        let path = self.dir.join(name);
        match self.files.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove the pin", &path)(error))
            }
            _ => self.sync(),
        }
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.files.open(path)?;
        let mut json = vec![0; file.size()?.min(PIN_BYTES_MAX) as usize];
        file.read_exact_at(&mut json, 0)?;
        Ok(json)
    }

    fn sync(&self) -> Result<()> {
        self.files
            .sync_directory(&self.dir)
            .map_err(Error::io("sync", &self.dir))
    }
}

/// Names are 32 hexadecimal digits; whatever else lies there is no pin.
fn valid_name(name: &str) -> Option<String> {
    let hex = name.len() == 32 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    hex.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_pin_stays_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let pins = PinStore::new(dir.path(), Env::system());
        let point = PointId::from_bytes([1; 10]);
        let name = pins
            .create(&[point], PinKind::InUse, "domain web1 runs from it", None)
            .unwrap();

        let again = PinStore::new(dir.path(), Env::system());
        let all = again.list().unwrap();
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].0, name);
        assert_eq!(all[0].1.points, [point]);
        assert_eq!(all[0].1.reason, "domain web1 runs from it");

        again.remove(&name).unwrap();
        again.remove(&name).unwrap();
        assert_eq!(pins.list().unwrap(), []);
    }

    #[test]
    fn a_pin_that_cannot_be_read_is_an_error_and_debris_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let pins = PinStore::new(dir.path(), Env::system());
        fs::write(dir.path().join(format!("{}.new", "a".repeat(32))), "{").unwrap();
        assert_eq!(pins.list().unwrap(), []);
        let (broken, name) = (dir.path().join("b".repeat(32)), "b".repeat(32));
        fs::write(&broken, "{").unwrap();
        let kept = pins.create(&[], PinKind::User, "audit", None).unwrap();
        let error = pins.list().unwrap_err();
        assert!(
            error.to_string().contains(&format!("unpin {name}")),
            "{error}"
        );
        let found = pins.scan().unwrap();
        assert_eq!(found.damaged[0].path, broken);
        assert_eq!(found.sound[0].0, kept);
        pins.remove(&name).unwrap();
        assert_eq!(pins.list().unwrap().len(), 1);
    }

    #[test]
    fn what_a_killed_command_left_of_a_pin_is_removed_and_what_is_being_written_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let pins = PinStore::new(dir.path(), Env::system());
        let [left, written, strange] =
            ["a", "b", "c"].map(|name| dir.path().join(name.repeat(32) + ".new"));
        fs::write(&left, "{").unwrap();
        fs::create_dir(&strange).unwrap();
        let _writer = pins.create_locked(&written).unwrap();
        let pin = pins.create(&[], PinKind::User, "test", None).unwrap();
        pins.remove_debris().unwrap();
        assert!(!left.exists());
        assert!(written.exists());
        assert_eq!(pins.list().unwrap()[0].0, pin);
    }

    #[test]
    fn the_name_of_a_pin_is_no_path() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("pins")).unwrap();
        fs::write(dir.path().join("precious"), "").unwrap();
        let pins = PinStore::new(&dir.path().join("pins"), Env::system());
        pins.remove("../precious").unwrap();
        assert!(dir.path().join("precious").exists());
    }
}
