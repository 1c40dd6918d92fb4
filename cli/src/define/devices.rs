//! The devices of a restored domain: its disks at their new places; the rest of a clone's is for
//! [`host_ties`].

use roxmltree::Node;

use super::backing::Backing;
use super::host_ties;
use super::rewrite::{RestoredDisk, Rewriting, child};
use super::splice::{Splices, escape};

pub(super) fn rewrite(rewriting: &mut Rewriting<'_>, devices: Node<'_, '_>) {
    for node in devices.children().filter(Node::is_element) {
        match node.tag_name().name() {
            "disk" => disk(rewriting, node),
            _ if rewriting.is_clone() => host_ties::rewrite(rewriting, node),
            "tpm" if host_ties::is_emulated(node) => rewriting.note(
                "the emulated TPM goes on with what this host keeps for it, or starts empty: its state in the point \
                 is not put back",
            ),
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
    let missing = source.and_then(|source| missing(rewriting, disk, source));
    let removable = is_removable(disk);
    let read_only = child(disk, "readonly").is_some();
    match (missing, source) {
        (Some(medium), Some(_)) if removable => {
            take_medium_out(rewriting, disk);
            rewriting.note(format!(
                "{target}: {medium} is not on this host; the drive is left empty"
            ));
        }
        (None, Some(_)) if rewriting.is_clone() && is_written_floppy(disk) => {
            take_medium_out(rewriting, disk);
            rewriting.note(format!(
                "{target}: the original may write to its floppy; the drive is left empty"
            ));
        }
        (None, _) if removable || read_only => {}
        (Some(medium), _) if read_only => {
            rewriting.splices.remove_element(disk);
            rewriting.note(format!(
                "{target}: {medium} is not on this host; the disk is left out"
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
                .map(|medium| format!(", but {medium} is not on this host"))
                .unwrap_or_default()
        )),
    }
}

/// What a disk names that this host does not have: a file or device, a volume of a storage pool, or, of a drive
/// for media, what lies on another host, for nobody can tell whether that would be found.
fn missing(rewriting: &Rewriting<'_>, disk: Node<'_, '_>, source: Node<'_, '_>) -> Option<String> {
    let host = rewriting.placement;
    let of = |name| source.attribute(name).unwrap_or("");
    match disk.attribute("type") {
        Some("volume") => {
            let (pool, volume) = (of("pool"), of("volume"));
            let named = format!("the volume {volume} of the pool {pool}");
            (!(host.host_has_volume)(pool, volume)).then_some(named)
        }
        Some("network") if is_removable(disk) => {
            Some(format!("{} ({})", of("name"), of("protocol")))
        }
        _ => {
            let path = source.attribute("file").or(source.attribute("dev"))?;
            (!(host.host_has)(path)).then(|| path.to_owned())
        }
    }
}

/// Leaves a drive empty. All that tells of the medium goes.
fn take_medium_out(rewriting: &mut Rewriting<'_>, disk: Node<'_, '_>) {
    // libvirt knows no empty drive of the other types.
    if matches!(disk.attribute("type"), Some("volume" | "network")) {
        rewriting.splices.set_attribute(disk, "type", "file");
    }
    for node in disk.children().filter(Node::is_element) {
        let name = node.tag_name().name();
        if matches!(name, "source" | "backingStore" | "auth" | "encryption") {
            rewriting.splices.remove_element(node);
        }
    }
}

fn is_removable(disk: Node<'_, '_>) -> bool {
    matches!(disk.attribute("device"), Some("cdrom" | "floppy"))
}

fn is_written_floppy(disk: Node<'_, '_>) -> bool {
    disk.attribute("device") == Some("floppy") && child(disk, "readonly").is_none()
}

/// Takes out what libvirt refuses of a raw image.
fn only_of_qcow2(splices: &mut Splices<'_>, driver: Node<'_, '_>) {
    splices.remove_attribute(driver, "discard_no_unref");
    if let Some(cache) = child(driver, "metadata_cache") {
        splices.remove_element(cache);
    }
}

/// Makes the disk a plain image file, whatever it was: all that belonged to the old place goes.
fn rehome(rewriting: &mut Rewriting<'_>, disk: Node<'_, '_>, restored: &RestoredDisk) {
    let splices = &mut rewriting.splices;
    splices.set_attribute(disk, "type", "file");
    let mut missing = String::new();
    match child(disk, "driver") {
        Some(driver) => {
            splices.set_attribute(driver, "type", restored.format);
            if restored.format == "raw" {
                only_of_qcow2(splices, driver);
            }
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
