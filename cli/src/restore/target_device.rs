//! A block device as the target of a restore, and what guards the data on it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use roxmltree::Document;
use rustix::fs::OFlags;
use virt::connect::Connect;
use virt::sys;

use crate::output::shown;

/// A block device, opened so that nobody else in this kernel can claim it.
pub(crate) struct TargetDevice {
    path: PathBuf,
    file: File,
    size: u64,
}

impl TargetDevice {
    /// Opens a device that nothing on this host uses.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let name = path.display();
        let metadata = std::fs::metadata(path)
            .with_context(|| format!("cannot restore onto {name}: it cannot be looked at"))?;
        if !metadata.file_type().is_block_device() {
            bail!("{name} is not a block device: to restore into a file, use --to DIRECTORY");
        }
        if let Some(place) = mounted_at(metadata.rdev()) {
            bail!("{name} is mounted at {place}: unmount it first");
        }
        // For a block device O_EXCL without O_CREAT means: fail if it is mounted or otherwise
        // claimed (partitions, LVM, RAID, swap), and keep others from claiming it.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::EXCL.bits() as i32)
            .open(path);
        let file = match file {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                bail!(
                    "{name} is in use: a file system on it is mounted, or LVM, RAID or swap uses it"
                )
            }
            Err(error) => return Err(error).with_context(|| format!("cannot open {name}")),
        };
        let size = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))
            .with_context(|| format!("cannot find the size of {name}"))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
        })
    }

    /// The open device.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Its size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The name of a domain that has this device for a disk, running or not.
    ///
    /// # Errors
    /// When libvirt cannot be asked.
    pub(crate) fn used_by_domain(&self, uri: Option<&str>) -> Result<Option<String>> {
        let device = std::fs::metadata(&self.path)?.rdev();
        virt::error::clear_error_callback();
        let connection = Connect::open_read_only(uri)?;
        for domain in connection.list_all_domains(0)? {
            for flags in [0, sys::VIR_DOMAIN_XML_INACTIVE] {
                // A transient domain has no inactive XML; one that has just gone has none at all.
                if let Ok(xml) = domain.xml_desc(flags)
                    && sources(&xml)
                        .iter()
                        .any(|path| device_of(path) == Some(device))
                {
                    return Ok(Some(shown(&domain.name()?)));
                }
            }
        }
        Ok(None)
    }
}

/// All files and devices that a domain XML names as sources of its disks, backing files included.
fn sources(xml: &str) -> Vec<String> {
    let Ok(document) = Document::parse(xml) else {
        return Vec::new();
    };
    let disks = document.descendants().filter(|n| n.has_tag_name("disk"));
    disks
        .flat_map(|disk| disk.descendants())
        .filter(|n| n.has_tag_name("source"))
        .filter_map(|n| n.attribute("dev").or(n.attribute("file")))
        .map(str::to_owned)
        .collect()
}

fn device_of(path: &str) -> Option<u64> {
    let metadata = std::fs::metadata(path).ok()?;
    metadata
        .file_type()
        .is_block_device()
        .then(|| metadata.rdev())
}

/// Where a device is mounted, as far as this process can see.
fn mounted_at(device: u64) -> Option<String> {
    let wanted = format!(
        "{}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device)
    );
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    mount_point(&mounts, &wanted)
}

/// In mountinfo, field 3 is the device and field 5 the mount point, with octal escapes.
fn mount_point(mountinfo: &str, device: &str) -> Option<String> {
    mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        (fields.next()? == device).then_some(())?;
        Some(shown(&fields.nth(1)?.replace("\\040", " ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mounted_device_is_found_by_its_number() {
        let mounts = "22 1 8:2 / / rw - ext4 /dev/sda2 rw\n\
                      29 22 7:3 / /mnt/two\\040words rw shared:1 - ext4 /dev/loop3 rw\n";
        assert_eq!(
            mount_point(mounts, "7:3").as_deref(),
            Some("/mnt/two words")
        );
        assert_eq!(mount_point(mounts, "7:30"), None);
    }

    #[test]
    fn the_sources_of_all_disks_are_found_with_their_backing_files() {
        let xml = "<domain><devices>\
            <disk><source dev='/dev/vg/a'/></disk>\
            <disk><source file='/b'/><backingStore><source file='/c'/></backingStore></disk>\
            <interface><source dev='eth0'/></interface>\
            </devices></domain>";
        assert_eq!(sources(xml), ["/dev/vg/a", "/b", "/c"]);
    }

    #[test]
    fn a_file_is_no_device() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let Err(error) = TargetDevice::open(file.path()) else {
            panic!("a file was taken for a device");
        };
        assert!(
            error.to_string().contains("is not a block device"),
            "{error}"
        );
    }
}
