//! Where scratch files and the socket of a backup job go.
//!
//! Scratch: beside the disk's image where there is room, else in [`SCRATCH_DEFAULT`] where there
//! is room, else nowhere. Room is judged by [`ScratchReserve`]; a small file system never has it.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::names::Names;
use crate::options::ScratchReserve;
use crate::plan::ScratchPlan;

/// Where scratch files go that have no room beside their image: libvirt's own place for images.
pub(crate) const SCRATCH_DEFAULT: &str = "/var/lib/libvirt/images";

/// The longest path of a unix socket, in bytes.
const SOCKET_PATH_MAX: usize = 107;

/// Free and total bytes of the file system that holds `dir`.
///
/// # Errors
/// When that is no directory, or cannot be looked at.
pub fn space(dir: &Path) -> std::io::Result<(u64, u64)> {
    // The dot makes an error of a file that is no directory.
    let stat = rustix::fs::statvfs(dir.join("."))?;
    Ok((
        stat.f_bavail.saturating_mul(stat.f_frsize),
        stat.f_blocks.saturating_mul(stat.f_frsize),
    ))
}

/// Chooses the directory for the scratch file of a disk whose image is in `beside` (if it is a
/// file at all); `named` by the user wins.
pub(crate) fn scratch(
    beside: Option<&Path>,
    named: Option<&Path>,
    reserve: ScratchReserve,
) -> Result<ScratchPlan> {
    let candidates: Vec<&Path> = match named {
        Some(dir) => vec![dir],
        None => beside
            .into_iter()
            .chain([Path::new(SCRATCH_DEFAULT)])
            .collect(),
    };
    let mut best: Option<ScratchPlan> = None;
    let mut refused = None;
    for dir in candidates {
        // libvirt knows nothing of our working directory.
        let dir = std::path::absolute(dir).map_err(Error::file("find", dir))?;
        let (free, size) = match space(&dir) {
            Ok(space) => space,
            Err(error) => {
                refused = Some(Error::file("put scratch files into", dir)(error));
                continue;
            }
        };
        let place = ScratchPlan {
            dir,
            free,
            reserve: reserve.of(size),
        };
        if place.has_room() {
            return Ok(place);
        }
        if best.as_ref().is_none_or(|best| best.free < place.free) {
            best = Some(place);
        }
    }
    match (best, refused) {
        (None, Some(refused)) => Err(refused),
        (Some(best), _) => Err(best.no_room()),
        (None, None) => unreachable!("there always is a candidate"),
    }
}

impl ScratchPlan {
    /// Whether more is free than has to stay free.
    fn has_room(&self) -> bool {
        self.free > self.reserve
    }

    /// The same place as it is now; none when it cannot be looked at.
    pub(crate) fn now(&self) -> Option<Self> {
        let (free, _) = space(&self.dir).ok()?;
        Some(Self {
            free,
            ..self.clone()
        })
    }

    /// An error once less is free than has to stay free.
    pub(crate) fn check(&self) -> Result<()> {
        match self.now() {
            Some(now) if !now.has_room() => Err(now.no_room()),
            _ => Ok(()),
        }
    }

    fn no_room(self) -> Error {
        Error::ScratchSpace {
            dir: self.dir,
            free: self.free,
            reserve: self.reserve,
        }
    }
}

/// A directory for the socket, and whether it belongs to the domain alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SocketDir {
    pub(crate) dir: PathBuf,
    pub(crate) private: bool,
}

/// Directories fit for the socket, the best first. QEMU makes the socket, so its user must be
/// able to write there: the domain's private directory is QEMU's own, mandatory access control
/// allows it, and it vanishes with the domain.
pub(crate) fn socket_dirs(
    uri: &str,
    domain_id: Option<u32>,
    named: Option<&Path>,
) -> Vec<SocketDir> {
    let shared = |dir: PathBuf| SocketDir {
        dir,
        private: false,
    };
    if let Some(dir) = named {
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        return vec![shared(dir)];
    }
    let lib = if uri.ends_with("/session") {
        session_lib()
    } else {
        Some(PathBuf::from("/var/lib/libvirt/qemu"))
    };
    let Some(lib) = lib else {
        return vec![shared(std::env::temp_dir())];
    };
    let private = domain_id
        .and_then(|id| private_dir(&lib, id))
        .map(|dir| SocketDir { dir, private: true });
    private.into_iter().chain([shared(lib)]).collect()
}

/// Where the session daemon of this user keeps its domains' directories.
fn session_lib() -> Option<PathBuf> {
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let config =
        config.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")))?;
    Some(config.join("libvirt/qemu/lib"))
}

/// The one directory called `domain-<id>-<short name>`.
fn private_dir(lib: &Path, id: u32) -> Option<PathBuf> {
    let prefix = format!("domain-{id}-");
    let mut found = std::fs::read_dir(lib)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
        });
    match (found.next(), found.next()) {
        (Some(path), None) => Some(path),
        _ => None,
    }
}

/// The path of the socket in the first directory that exists and in which it is short enough.
pub(crate) fn socket_path(dirs: &[SocketDir], name: impl Fn(bool) -> String) -> Result<PathBuf> {
    let mut why = String::from("there is no directory for it");
    for SocketDir { dir, private } in dirs {
        let path = dir.join(name(*private));
        if path.as_os_str().len() > SOCKET_PATH_MAX {
            why = format!("{} is longer than {SOCKET_PATH_MAX} bytes", path.display());
        } else if !dir.is_dir() {
            why = format!("{} is no directory", dir.display());
        } else {
            return Ok(path);
        }
    }
    Err(Error::SocketPlace { why })
}

/// Removes the files of dead backups of this domain into this repository. Only to be called with
/// the domain locked and no job of ours on it. Returns what was removed.
pub(crate) fn remove_stale_files(
    dirs: &[&Path],
    private: Option<&Path>,
    names: &Names,
) -> Vec<PathBuf> {
    let mut removed = Vec::new();
    for path in stale_files(dirs, private, names) {
        if std::fs::remove_file(&path).is_ok() {
            removed.push(path);
        }
    }
    removed
}

/// The files that [`remove_stale_files`] would remove. In the domain's `private` directory the
/// names do not say whose they are.
pub(crate) fn stale_files(dirs: &[&Path], private: Option<&Path>, names: &Names) -> Vec<PathBuf> {
    let mut dirs: Vec<&Path> = dirs.to_vec();
    dirs.sort();
    dirs.dedup();
    let files = |dir: &Path, is_ours: &dyn Fn(&str) -> bool| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).into_iter().flatten();
        entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                path.file_name()
                    .is_some_and(|name| is_ours(&name.to_string_lossy()))
            })
            .collect()
    };
    let private = private
        .into_iter()
        .flat_map(|dir| files(dir, &|name| names.is_our_job_file(name)));
    dirs.into_iter()
        .flat_map(|dir| files(dir, &|name| names.is_our_file(name)))
        .chain(private)
        .collect()
}

#[cfg(test)]
mod tests {
    use virtkeep_repo::{DomainUuid, PointId};

    use super::*;

    #[test]
    fn a_place_without_room_is_an_error_that_says_how_much_must_stay_free() {
        let dir = Path::new("/tmp");
        let reserve = ScratchReserve {
            percent: 0,
            bytes: u64::MAX,
            bytes_max: 0,
        };
        let error = scratch(None, Some(dir), reserve).unwrap_err();
        assert_eq!(error.code(), "scratch-space");
        let text = error.to_string();
        assert!(text.contains("iB free, 17179869184.0 GiB must"), "{text}");
        let none = ScratchReserve {
            percent: 0,
            bytes: 0,
            bytes_max: 0,
        };
        assert_eq!(scratch(Some(dir), None, none).unwrap().dir, dir);
    }

    #[test]
    fn a_place_that_is_no_directory_is_told_from_one_without_room() {
        let none = ScratchReserve {
            percent: 0,
            bytes: 0,
            bytes_max: 0,
        };
        for (place, why) in [
            ("/proc/version", "Not a directory"),
            ("/proc/nothing", "No such file or directory"),
        ] {
            let error = scratch(None, Some(Path::new(place)), none).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(place) && text.contains(why), "{text}");
        }
    }

    #[test]
    fn the_reserve_is_a_share_within_bounds() {
        let reserve = ScratchReserve::default();
        assert_eq!(reserve.of(500 << 30), (500u64 << 30) / 100 * 5);
        assert_eq!(reserve.of(10 << 30), 2 << 30);
        assert_eq!(reserve.of(100 << 40), 50 << 30);
    }

    #[test]
    fn a_socket_path_that_is_too_long_falls_back_to_the_next_directory() {
        let long = SocketDir {
            dir: PathBuf::from(format!("/tmp/{}", "x".repeat(100))),
            private: true,
        };
        let short = SocketDir {
            dir: PathBuf::from("/tmp"),
            private: false,
        };
        let name = |private: bool| if private { "p" } else { "shared" }.to_owned();
        let path = socket_path(&[long.clone(), short], name).unwrap();
        assert_eq!(path, Path::new("/tmp/shared"));
        assert!(socket_path(&[long], name).is_err());
    }

    #[test]
    fn stale_sockets_are_found_in_the_private_directory_though_they_name_no_domain() {
        let ours = Names::of("aabbccdd00112233", DomainUuid::from_bytes([1; 16]));
        let theirs = Names::of("aabbccdd00112233", DomainUuid::from_bytes([2; 16]));
        let point = PointId::from_bytes([7; 10]);
        let dir = tempfile::tempdir().unwrap();
        let (private, shared) = (dir.path().join("private"), dir.path().join("shared"));
        for dir in [&private, &shared] {
            std::fs::create_dir(dir).unwrap();
            std::fs::write(dir.join("disk.qcow2"), "").unwrap();
            std::fs::write(dir.join(theirs.socket(point, true)), "").unwrap();
        }
        std::fs::write(shared.join(ours.scratch(point, "vda")), "").unwrap();
        std::fs::write(shared.join(theirs.scratch(point, "vda")), "").unwrap();
        let mut found = stale_files(&[&shared, &private], Some(&private), &ours);
        found.sort();
        let socket = private.join(theirs.socket(point, true));
        assert_eq!(found, [socket, shared.join(ours.scratch(point, "vda"))]);
    }
}
