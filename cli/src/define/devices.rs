//! The devices of a restored domain: its disks at their new places; the rest of a clone's is for
//! [`host_ties`].

use roxmltree::Node;

use super::backing::Backing;
use super::host_ties;
use super::rewrite::{RestoredDisk, Rewriting, child};
use super::splice::escape;

pub(super) fn rewrite(rewriting: &mut Rewriting<'_>, devices: Node<'_, '_>) {
    for node in devices.children().filter(Node::is_element) {
        match node.tag_name().name() {
            "disk" => disk(rewriting, node),
            _ if rewriting.is_clone() => host_ties::rewrite(rewriting, node),
            _ => {}
        }
    }
}

fn disk(rewriting: &mut Rewriting<'_>, disk: Node<'_, '_>) {
    let target = child(disk, "target")
        .and_then(|node| node.attribute("dev"))
        .unwrap_or("");
    let restored = rewriting.placement.disks.iter();
    if let Some(restored) = restored.clone().find(|d| d.target == target) {
        return rehome(rewriting, disk, restored);
    }
    let source = child(disk, "source");
    let path = source.and_then(|node| node.attribute("file").or(node.attribute("dev")));
    let missing = path.filter(|path| !(rewriting.placement.host_has)(path));
    let removable = matches!(disk.attribute("device"), Some("cdrom" | "floppy"));
    let read_only = child(disk, "readonly").is_some();
    match (missing, source) {
        (Some(path), Some(source)) if removable => {
            rewriting.splices.remove_element(source);
            rewriting.note(format!(
                "{target}: {path} is not on this host; the drive is left empty"
            ));
        }
        (None, Some(source)) if rewriting.is_clone() && is_written_floppy(disk) => {
            rewriting.splices.remove_element(source);
            rewriting.note(format!(
                "{target}: the original may write to its floppy; the drive is left empty"
            ));
        }
        (None, _) if removable || read_only => {}
        (Some(path), _) if read_only => {
            rewriting.splices.remove_element(disk);
            rewriting.note(format!(
                "{target}: {path} is not on this host; the disk is left out"
            ));
        }
        _ if rewriting.is_clone() => {
            // Two domains writing to one disk would destroy it.
            rewriting.splices.remove_element(disk);
            rewriting.note(format!(
                "{target} was not restored: the clone does not have it"
            ));
        }
        (missing, _) => rewriting.note(format!(
            "{target} was not restored: the definition refers to the disk as before{}",
            missing
                .map(|path| format!(", but {path} is not on this host"))
                .unwrap_or_default()
        )),
    }
}

fn is_written_floppy(disk: Node<'_, '_>) -> bool {
    disk.attribute("device") == Some("floppy") && child(disk, "readonly").is_none()
}

/// Makes the disk a plain image file, whatever it was: all that belonged to the old place goes.
fn rehome(rewriting: &mut Rewriting<'_>, disk: Node<'_, '_>, restored: &RestoredDisk) {
    let splices = &mut rewriting.splices;
    splices.set_attribute(disk, "type", "file");
    let mut missing = String::new();
    match child(disk, "driver") {
        Some(driver) => {
            splices.set_attribute(driver, "type", restored.format);
            if restored.backing.is_some() {
                Backing::set_policies(splices, driver);
            }
        }
        None => {
            let policies = restored.backing.as_ref().map(|_| Backing::policies());
            missing = format!(
                "<driver name='qemu' type='{}'{}/>",
                restored.format,
                policies.unwrap_or_default()
            );
        }
    }
    let source = format!("<source file='{}'/>", escape(&restored.path));
    match child(disk, "source") {
        Some(node) => splices.replace_element(node, source),
        None => missing.push_str(&source),
    }
    missing.extend(restored.backing.as_ref().map(Backing::element));
    splices.insert_children(disk, &missing);
    for node in disk.children().filter(Node::is_element) {
        let name = node.tag_name().name();
        if matches!(
            name,
            "backingStore" | "mirror" | "auth" | "encryption" | "shareable"
        ) {
            splices.remove_element(node);
        }
    }
    let encrypted = child(disk, "encryption")
        .or_else(|| child(disk, "source").and_then(|node| child(node, "encryption")));
    let is_lun = disk.attribute("device") == Some("lun");
    if is_lun {
        splices.set_attribute(disk, "device", "disk");
        splices.remove_attribute(disk, "rawio");
        splices.remove_attribute(disk, "sgio");
    }
    let target = &restored.target;
    if child(disk, "shareable").is_some() {
        rewriting.note(format!(
            "{target} was shared by several domains; the image is this one's alone"
        ));
    }
    if is_lun {
        rewriting.note(format!(
            "{target} was a SCSI LUN of the host, and is a plain disk now"
        ));
    }
    if encrypted.is_some() {
        rewriting.note(format!(
            "{target} was an encrypted image; the restored one is not encrypted"
        ));
    }
}
