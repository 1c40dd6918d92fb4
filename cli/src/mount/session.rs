//! The mount itself: making it, noticing that it is gone, taking it away.
//!
//! The kernel ends the connection when the last trace of a mount is gone, and a trace nobody here can
//! see is enough: mount namespaces copy all mounts when they are made, those of containers and of
//! QEMU among them. So a mount is gone when this namespace has it no more, and with it ends whatever is
//! not open.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use crossbeam_channel::Sender;
use fuser::{Config, MountOption, SessionACL};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};
use rustix::mount::UnmountFlags;

use super::filesystem::PointFiles;
use crate::exit::usage;

/// Requests that are answered at the same time.
const THREADS_MAX: usize = 8;

/// The mounts of this process's namespace. The kernel tells pollers of changes.
const MOUNTS: &str = "/proc/self/mountinfo";

/// Why to end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Somebody asked this program.
    Signal,
    /// Somebody unmounted the directory.
    Unmounted,
    /// The kernel asks nothing any more.
    Ended,
}

/// Something mounted, which is unmounted when this is dropped.
pub(crate) struct Mount {
    directory: PathBuf,
    device: Device,
}

/// The number of a mounted file system, as `MAJOR:MINOR`.
#[derive(Clone, PartialEq, Eq)]
struct Device(String);

impl Mount {
    /// Mounts `files` on `directory` and answers the kernel, until the mount is gone.
    pub(crate) fn new(
        files: PointFiles,
        directory: &Path,
        name: &str,
        allow_other: bool,
        events: Sender<Event>,
    ) -> Result<Self> {
        const DEVICE: &str = "/dev/fuse";
        if !Path::new(DEVICE).exists() {
            bail!(
                "there is no {DEVICE}: load the kernel module with `modprobe fuse`, or use `virtkeep serve`, which needs none"
            );
        }
        let config = config(name, allow_other);
        // What fusermount3 says ends with a line break.
        let trimmed =
            |error: io::Error| io::Error::new(error.kind(), error.to_string().trim().to_owned());
        let session = fuser::Session::new(files, directory, &config)
            .and_then(fuser::Session::spawn)
            .map_err(trimmed)
            .with_context(|| {
                let hint = match (rustix::process::geteuid().is_root(), allow_other) {
                    (true, _) => "",
                    (false, false) => " (users other than root need fusermount3, from the package fuse3)",
                    (false, true) => {
                        " (users other than root need fusermount3, and user_allow_other in /etc/fuse.conf)"
                    }
                };
                format!("cannot mount on {}{hint}", directory.display())
            })?;
        let mount = Self {
            directory: directory.to_owned(),
            device: device_at(directory)?.0,
        };
        // When dropped it would unmount whatever is on the directory then.
        std::mem::forget(session);
        let device = mount.device.clone();
        std::thread::spawn(move || {
            // Where mounts cannot be looked at, the end of the connection has to do.
            if until_gone(&device).is_ok() {
                let _ = events.send(Event::Unmounted);
            }
        });
        Ok(mount)
    }

    /// Whether it is still mounted, wherever.
    pub(crate) fn is_there(&self) -> bool {
        std::fs::read_to_string(MOUNTS).is_ok_and(|mounts| self.device.is_in(&mounts))
    }

    /// Unmounts it. The error is that it is in use.
    pub(crate) fn unmount(&self) -> io::Result<()> {
        self.unmount_with(UnmountFlags::empty(), &["-u"])
    }

    /// Unmounts it even if something in it is in use, which remains so.
    pub(crate) fn detach(&self) -> io::Result<()> {
        self.unmount_with(UnmountFlags::DETACH, &["-u", "-z"])
    }

    fn unmount_with(&self, flags: UnmountFlags, options: &[&str]) -> io::Result<()> {
        if !self.is_there() {
            return Ok(());
        }
        if device_at(&self.directory)?.0 != self.device {
            return Err(io::Error::other("something else is mounted on top of it"));
        }
        match rustix::mount::unmount(&self.directory, flags | UnmountFlags::NOFOLLOW) {
            Err(rustix::io::Errno::PERM) => fusermount(options, &self.directory),
            result => Ok(result?),
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = self.detach();
    }
}

impl Device {
    /// Whether a text such as `/proc/self/mountinfo` (proc(5)) has it.
    fn is_in(&self, mounts: &str) -> bool {
        let mut devices = mounts.lines().filter_map(|line| line.split(' ').nth(2));
        devices.any(|device| device == self.0)
    }
}

/// The directory, absolute, if something can be mounted there.
pub(crate) fn empty_directory(directory: &Path) -> Result<PathBuf> {
    let shown = directory.display();
    let mut entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            return Err(match error.kind() {
                io::ErrorKind::NotFound => {
                    usage(format!("there is no directory {shown}: make it first"))
                }
                io::ErrorKind::NotADirectory => {
                    usage(format!("{shown} is no directory: mount needs an empty one"))
                }
                io::ErrorKind::NotConnected => usage(format!(
                    "{shown} is a mount whose program is gone: run `fusermount3 -u {shown}` first"
                )),
                _ => anyhow::Error::new(error).context(format!("cannot look into {shown}")),
            });
        }
    };
    if entries.next().is_some() {
        return Err(usage(format!(
            "{shown} is not empty: mount needs an empty directory, so that nothing is hidden"
        )));
    }
    // A mount of an empty repository looks like any empty directory.
    const FUSE_SUPER_MAGIC: u32 = 0x6573_5546;
    let kind = rustix::fs::statfs(directory).map(|stat| stat.f_type as u32);
    if kind == Ok(FUSE_SUPER_MAGIC) && device_at(directory).is_ok_and(|(_, is_root)| is_root) {
        return Err(usage(format!(
            "something is mounted on {shown} already: unmount that first, or choose another directory"
        )));
    }
    directory
        .canonicalize()
        .with_context(|| format!("cannot find {shown}"))
}

fn config(name: &str, allow_other: bool) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoExec,
        MountOption::NoAtime,
        MountOption::DefaultPermissions,
        MountOption::FSName(name.to_owned()),
        MountOption::Subtype("virtkeep".to_owned()),
    ];
    config.acl = if allow_other {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    config.n_threads = Some((2 * cores).min(THREADS_MAX));
    config.clone_fd = true;
    config
}

/// Which file system a path is on, and whether it is its root. Asks no file system.
fn device_at(path: &Path) -> io::Result<(Device, bool)> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let stat = rustix::fs::statx(rustix::fs::CWD, path, flags, StatxFlags::empty())?;
    let device = Device(format!("{}:{}", stat.stx_dev_major, stat.stx_dev_minor));
    Ok((
        device,
        stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
    ))
}

/// Waits until this namespace has no mount of the device.
fn until_gone(device: &Device) -> io::Result<()> {
    let mut file = File::open(MOUNTS)?;
    let mut mounts = String::new();
    loop {
        mounts.clear();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_string(&mut mounts)?;
        if !device.is_in(&mounts) {
            return Ok(());
        }
        match rustix::event::poll(&mut [PollFd::new(&file, PollFlags::PRI)], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Unmounts as a user other than root must.
fn fusermount(options: &[&str], directory: &Path) -> io::Result<()> {
    let output = Command::new("fusermount3")
        .args(options)
        .arg("--")
        .arg(directory)
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(said.trim().to_owned()))
}
