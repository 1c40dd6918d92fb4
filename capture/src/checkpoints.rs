//! Our checkpoints on a domain: which there are, whose bitmaps are sound, and their removal.
//!
//! Only checkpoints whose name says that this repository made them are ever touched. Deleting one
//! changes no other: every checkpoint has a bitmap of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use roxmltree::Document;

use crate::domain_xml::{attribute, child, children};
use crate::error::{Error, Result};
use crate::libvirt::{CallResult, DomainHandle, ErrorKind};
use crate::names::{Names, escape};
use crate::qemu_img;

/// Our checkpoints by name, each with the target names of the disks whose bitmap is sound.
pub(crate) type Sound = BTreeMap<String, BTreeSet<String>>;

/// The names of our checkpoints.
pub(crate) fn ours(domain: &DomainHandle, names: &Names) -> CallResult<Vec<String>> {
    let mut found = Vec::new();
    for checkpoint in domain.checkpoints()? {
        let name = checkpoint.name()?;
        if names.is_our_checkpoint(&name) {
            found.push(name);
        }
    }
    Ok(found)
}

/// Our checkpoints of a running domain and which of their bitmaps are sound.
pub(crate) fn sound(domain: &DomainHandle, names: &Names) -> Result<Sound> {
    let mut sound = Sound::new();
    for name in ours(domain, names).map_err(Error::libvirt("list the domain's checkpoints"))? {
        let xml = domain
            .checkpoint(&name)
            .and_then(|checkpoint| checkpoint.xml(true));
        // What cannot be told is not sound.
        let disks = xml.map(|xml| sized_disks(&xml)).unwrap_or_default();
        sound.insert(name, disks);
    }
    Ok(sound)
}

/// The disks with a `size`: libvirt leaves it out where the bitmap is missing or broken.
fn sized_disks(xml: &str) -> BTreeSet<String> {
    let Ok(document) = Document::parse(xml) else {
        return BTreeSet::new();
    };
    let Some(disks) = child(document.root_element(), "disks") else {
        return BTreeSet::new();
    };
    children(disks, "disk")
        .filter(|disk| disk.attribute("size").is_some())
        .filter_map(|disk| attribute(disk, "name"))
        .collect()
}

/// The description of a checkpoint of some of the domain's disks.
pub(crate) fn xml(name: &str, with: &[&str], without: &[&str]) -> String {
    let disk =
        |target: &str, kind: &str| format!("<disk name='{}' checkpoint='{kind}'/>", escape(target));
    let with = with.iter().map(|target| disk(target, "bitmap"));
    let without = without.iter().map(|target| disk(target, "no"));
    let disks: String = with.chain(without).collect();
    format!(
        "<domaincheckpoint><name>{}</name><creationTime>1</creationTime>\
         <disks>{disks}</disks></domaincheckpoint>",
        escape(name)
    )
}

/// Tells libvirt of a checkpoint that it has forgotten, if the bitmap of any of the disks is still
/// there. Returns whether it is.
pub(crate) fn redefine_lost(
    domain: &DomainHandle,
    name: &str,
    disks: &[&str],
    all_disks: &[&str],
) -> Result<bool> {
    let without = difference(all_disks, disks);
    let Ok(checkpoint) = domain.redefine_checkpoint(&xml(name, disks, &without)) else {
        return Ok(false);
    };
    let sound = checkpoint.xml(true).map(|xml| sized_disks(&xml));
    if sound.is_ok_and(|disks| !disks.is_empty()) {
        return Ok(true);
    }
    // A ghost: it was accepted unseen, and there is nothing behind it.
    checkpoint
        .delete_metadata()
        .map_err(Error::libvirt(format!("forget checkpoint {name}")))?;
    Ok(false)
}

fn difference<'a>(all: &[&'a str], some: &[&str]) -> Vec<&'a str> {
    all.iter()
        .copied()
        .filter(|target| !some.contains(target))
        .collect()
}

/// Removes a checkpoint of a running domain with all its bitmaps, also where some are missing or
/// broken. `all_disks` are the targets of the domain's disks. One that is not there is no error.
pub(crate) fn remove(domain: &DomainHandle, name: &str, all_disks: &[&str]) -> CallResult<()> {
    let checkpoint = match domain.checkpoint(name) {
        Err(error) if error.kind() == ErrorKind::NoCheckpoint => return Ok(()),
        other => other?,
    };
    let covered = checkpoint.xml(false).map(|xml| covered_disks(&xml));
    let Err(refused) = checkpoint.delete() else {
        return Ok(());
    };
    if !matches!(
        refused.kind(),
        ErrorKind::Internal | ErrorKind::OperationFailed | ErrorKind::CheckpointInconsistent
    ) {
        return Err(refused);
    }
    // One bitmap is missing, and libvirt removed none. Take them one disk at a time.
    checkpoint.delete_metadata()?;
    drop(checkpoint);
    for disk in covered.unwrap_or_default() {
        if !all_disks.contains(&&*disk) {
            continue;
        }
        let only = xml(name, &[&disk], &difference(all_disks, &[&disk]));
        let Ok(single) = domain.redefine_checkpoint(&only) else {
            continue;
        };
        if single.delete().is_err() {
            single.delete_metadata()?;
        }
    }
    Ok(())
}

fn covered_disks(xml: &str) -> Vec<String> {
    let Ok(document) = Document::parse(xml) else {
        return Vec::new();
    };
    let Some(disks) = child(document.root_element(), "disks") else {
        return Vec::new();
    };
    children(disks, "disk")
        .filter(|disk| disk.attribute("checkpoint") == Some("bitmap"))
        .filter_map(|disk| attribute(disk, "name"))
        .collect()
}

/// Removes checkpoints of a domain that is shut off: their bitmaps from the images at `paths` and
/// whatever backs these, then libvirt's memory of them. Which ones, `is_meant` says by name.
/// Returns the names.
pub(crate) fn remove_offline(
    domain: &DomainHandle,
    paths: &[PathBuf],
    is_meant: impl Fn(&str) -> bool,
) -> Result<BTreeSet<String>> {
    let mut removed = BTreeSet::new();
    for path in paths {
        for (image, bitmap) in qemu_img::bitmaps(path)? {
            if is_meant(&bitmap) {
                qemu_img::remove_bitmap(Path::new(&image), &bitmap)?;
                removed.insert(bitmap);
            }
        }
    }
    let list = domain
        .checkpoints()
        .map_err(Error::libvirt("list the domain's checkpoints"))?;
    for checkpoint in list {
        let name = checkpoint
            .name()
            .map_err(Error::libvirt("ask a checkpoint for its name"))?;
        if is_meant(&name) {
            checkpoint
                .delete_metadata()
                .map_err(Error::libvirt(format!("forget checkpoint {name}")))?;
            removed.insert(name);
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_disks_with_a_size_have_a_sound_bitmap() {
        let xml = "<domaincheckpoint><disks>\
            <disk name='vda' checkpoint='bitmap' bitmap='c' size='65536'/>\
            <disk name='vdb' checkpoint='bitmap' bitmap='c'/>\
            <disk name='vdc' checkpoint='no'/></disks></domaincheckpoint>";
        assert_eq!(sized_disks(xml), BTreeSet::from(["vda".to_owned()]));
        assert_eq!(covered_disks(xml), ["vda", "vdb"]);
        assert!(sized_disks("not xml").is_empty());
    }

    #[test]
    fn a_checkpoint_names_the_disks_it_covers_and_those_it_does_not() {
        assert_eq!(
            xml("c", &["vda"], &["vdb"]),
            "<domaincheckpoint><name>c</name><creationTime>1</creationTime><disks>\
             <disk name='vda' checkpoint='bitmap'/><disk name='vdb' checkpoint='no'/>\
             </disks></domaincheckpoint>"
        );
    }
}
