//! The character devices of a clone: serial lines, consoles, parallel ports and channels.
//!
//! Whatever their other end on the host is, the original has it: files move into the directory of
//! the restore, sockets, ports and host devices become pseudo-terminals. `<console>` repeats the
//! first `<serial>` in libvirt's XML, so that equal ends must be treated equally.

use roxmltree::Node;

use super::rewrite::{Rewriting, child};

pub(super) fn rewrite(rewriting: &mut Rewriting<'_>, device: Node<'_, '_>) {
    log(rewriting, device);
    let name = device.tag_name().name();
    match device.attribute("type") {
        Some("file") => file(rewriting, device),
        Some("unix") if is_virtio_channel(device) => unix_channel(rewriting, device),
        Some(kind @ ("unix" | "tcp" | "udp" | "pipe" | "dev" | "nmdm")) => {
            let end = other_end(device);
            rewriting.splices.set_attribute(device, "type", "pty");
            for node in device.children().filter(Node::is_element) {
                if matches!(node.tag_name().name(), "source" | "protocol") {
                    rewriting.splices.remove_element(node);
                }
            }
            rewriting.note(format!(
                "a {name} device was connected to {kind}{end} of the host; the clone's is a pseudo-terminal"
            ));
        }
        // The others have no end on the host that could be shared.
        _ => {}
    }
}

/// The log file that libvirt keeps of a device.
pub(super) fn log(rewriting: &mut Rewriting<'_>, device: Node<'_, '_>) {
    if let Some(log) = child(device, "log") {
        rewriting.rehome_attribute(log, "file");
    }
}

fn file(rewriting: &mut Rewriting<'_>, device: Node<'_, '_>) {
    if let Some(source) = child(device, "source") {
        rewriting.rehome_attribute(source, "path");
    }
}

fn is_virtio_channel(device: Node<'_, '_>) -> bool {
    device.has_tag_name("channel")
        && child(device, "target").and_then(|n| n.attribute("type")) == Some("virtio")
}

/// Lets libvirt choose the socket of a channel anew.
fn unix_channel(rewriting: &mut Rewriting<'_>, channel: Node<'_, '_>) {
    let Some(source) = child(channel, "source") else {
        return;
    };
    rewriting.splices.remove_element(source);
    // The sockets that libvirt itself chose are below this directory.
    let path = source.attribute("path").unwrap_or("");
    if !path.contains("/libvirt/qemu/") {
        rewriting.note(format!(
            "a channel was connected to the socket {path}; libvirt chooses one for the clone"
        ));
    }
}

/// ` PATH` or ` HOST:PORT` of what the device is connected to.
fn other_end(device: Node<'_, '_>) -> String {
    let Some(source) = child(device, "source") else {
        return String::new();
    };
    match (source.attribute("path"), source.attribute("service")) {
        (Some(path), _) => format!(" {path}"),
        (None, Some(port)) => format!(" {}:{port}", source.attribute("host").unwrap_or("")),
        (None, None) => String::new(),
    }
}
