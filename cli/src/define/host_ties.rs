//! What else ties a domain to its host, and cannot serve a clone beside the original: names, ports
//! and sockets are chosen anew, files move, and what would be written or used by both is left out, with
//! a note. So a clone that runs touches nothing of the original's.

use roxmltree::Node;

use super::character;
use super::rewrite::{Identity, Rewriting, child};

pub(super) fn rewrite(rewriting: &mut Rewriting<'_>, device: Node<'_, '_>) {
    match device.tag_name().name() {
        "serial" | "console" | "parallel" | "channel" => character::rewrite(rewriting, device),
        "interface" => interface(rewriting, device),
        "graphics" => graphics(rewriting, device),
        "vsock" => vsock(rewriting, device),
        "tpm" => tpm(rewriting, device),
        "memory" => memory(rewriting, device),
        "lease" => lease(rewriting, device),
        "redirdev" | "smartcard" => redirection(rewriting, device),
        "rng" => random(rewriting, device),
        "audio" => rewriting.rehome_attribute(device, "path"),
        "pstore" => pstore(rewriting, device),
        "filesystem" => filesystem(rewriting, device),
        "shmem" => {
            let name = device.attribute("name").unwrap_or("");
            leave_out(rewriting, device, &format!("the shared memory {name}"));
        }
        "hostdev" => leave_out(rewriting, device, "a device of the host, passed through,"),
        "input" if matches!(device.attribute("type"), Some("passthrough" | "evdev")) => {
            leave_out(rewriting, device, "an input device of the host");
        }
        _ => {}
    }
}

fn leave_out(rewriting: &mut Rewriting<'_>, node: Node<'_, '_>, what: &str) {
    rewriting.splices.remove_element(node);
    rewriting.note(format!(
        "{what} is the original's: the clone does not have it"
    ));
}

/// What the hypervisor is told past libvirt may name anything: files, ports, devices of the host.
pub(super) fn command_line(rewriting: &mut Rewriting<'_>, domain: Node<'_, '_>) {
    for node in domain.children().filter(Node::is_element) {
        if matches!(node.tag_name().name(), "commandline" | "override") {
            let name = node.tag_name().name();
            rewriting.splices.remove_element(node);
            rewriting.note(format!(
                "what the definition tells QEMU itself (qemu:{name}) may be the original's: the clone does \
                 without it"
            ));
        }
    }
}

fn interface(rewriting: &mut Rewriting<'_>, interface: Node<'_, '_>) {
    let Identity::Clone { network, .. } = rewriting.identity else {
        return;
    };
    let kind = interface.attribute("type").unwrap_or("");
    let mode = child(interface, "source").and_then(|n| n.attribute("mode"));
    let is_exclusive = matches!(kind, "hostdev" | "vdpa" | "vhostuser" | "server" | "udp")
        || kind == "direct" && mode == Some("passthrough");
    if is_exclusive {
        let what = format!("a network interface of type {kind}");
        return leave_out(rewriting, interface, &what);
    }
    if let Some(mac) = child(interface, "mac") {
        let address = (rewriting.placement.new_mac)();
        rewriting.splices.set_attribute(mac, "address", &address);
    }
    if !*network {
        match child(interface, "link") {
            Some(link) => rewriting.splices.set_attribute(link, "state", "down"),
            None => rewriting
                .splices
                .insert_children(interface, "<link state='down'/>"),
        }
    }
    interface_on_host(rewriting, interface);
}

/// The host's side of an interface: its device, its port of a switch, forwarded ports, a log.
fn interface_on_host(rewriting: &mut Rewriting<'_>, interface: Node<'_, '_>) {
    for node in interface.children().filter(Node::is_element) {
        match node.tag_name().name() {
            "target" if node.attribute("managed") == Some("no") => rewriting.note(
                "a network interface uses a device made by somebody else: the clone needs another \
                 to run beside the original",
            ),
            "target" => {
                if let Some(device) = node.attribute("dev") {
                    rewriting.splices.remove_element(node);
                    // Those are names that libvirt itself chose.
                    if !device.starts_with("vnet") && !device.starts_with("macvtap") {
                        rewriting.note(format!(
                            "a network interface was called {device} on the host; libvirt chooses \
                             a name for the clone's"
                        ));
                    }
                }
            }
            "virtualport" => {
                // Made anew by libvirt where they are missing.
                if let Some(parameters) = child(node, "parameters") {
                    for id in ["interfaceid", "instanceid"] {
                        rewriting.splices.remove_attribute(parameters, id);
                    }
                }
            }
            "portForward" => {
                rewriting.splices.remove_element(node);
                rewriting
                    .note("ports of the host were forwarded to the original; none is to the clone");
            }
            "backend" => rewriting.rehome_attribute(node, "logFile"),
            _ => {}
        }
    }
}

/// A display on fixed ports or a fixed socket gets free ones.
fn graphics(rewriting: &mut Rewriting<'_>, graphics: Node<'_, '_>) {
    let is_chosen = |port: &str| matches!(port, "" | "0" | "-1");
    let automatic = graphics.attribute("autoport") == Some("yes");
    let fixed: Vec<&str> = ["port", "tlsPort"]
        .into_iter()
        .filter(|_| !automatic)
        .filter_map(|name| graphics.attribute(name))
        .filter(|port| !is_chosen(port))
        .collect();
    if !fixed.is_empty() {
        for name in ["port", "tlsPort"] {
            rewriting.splices.remove_attribute(graphics, name);
        }
        rewriting.splices.set_attribute(graphics, "autoport", "yes");
        rewriting.note(format!(
            "the display was on port {}; the clone's gets a free port",
            fixed.join(" and ")
        ));
    }
    // Of web sockets the port says itself whether it is fixed.
    let websocket = graphics.attribute("websocket");
    if let Some(port) = websocket.filter(|port| !is_chosen(port)) {
        rewriting.splices.set_attribute(graphics, "websocket", "-1");
        rewriting.note(format!(
            "the display's web socket was on port {port}; the clone's gets a free port"
        ));
    }
    let bus = graphics.attribute("address");
    if let Some(bus) = bus.filter(|_| graphics.attribute("type") == Some("dbus")) {
        rewriting.splices.remove_attribute(graphics, "address");
        rewriting.note(format!(
            "the display was on the bus {bus}; the clone's gets a bus of its own"
        ));
    }
    let listens = graphics.children().filter(|n| n.has_tag_name("listen"));
    let mut sockets: Vec<&str> = Vec::new();
    for node in std::iter::once(graphics).chain(listens) {
        if let Some(socket) = node.attribute("socket") {
            rewriting.splices.remove_attribute(node, "socket");
            if !sockets.contains(&socket) {
                sockets.push(socket);
            }
        }
    }
    for socket in sockets {
        rewriting.note(format!(
            "the display was on the socket {socket}; libvirt chooses one for the clone"
        ));
    }
}

fn vsock(rewriting: &mut Rewriting<'_>, vsock: Node<'_, '_>) {
    let Some(cid) = child(vsock, "cid").filter(|cid| cid.attribute("auto") != Some("yes")) else {
        return;
    };
    rewriting.splices.set_attribute(cid, "auto", "yes");
    rewriting.splices.remove_attribute(cid, "address");
    if let Some(address) = cid.attribute("address") {
        rewriting.note(format!(
            "the vsock address was {address}; libvirt chooses one for the clone"
        ));
    }
}

/// Whether a TPM is a process of the host, whose state is kept by the domain's uuid, unless a place is given.
pub(super) fn is_emulated(tpm: Node<'_, '_>) -> bool {
    child(tpm, "backend").and_then(|node| node.attribute("type")) == Some("emulator")
}

fn tpm(rewriting: &mut Rewriting<'_>, tpm: Node<'_, '_>) {
    if !is_emulated(tpm) {
        return leave_out(rewriting, tpm, "a TPM of the host");
    }
    if let Some(source) = child(tpm, "backend").and_then(|node| child(node, "source")) {
        rewriting.splices.remove_element(source);
    }
    rewriting.note("the clone's emulated TPM starts empty");
}

/// Memory with a file behind it is a disk by another name.
fn memory(rewriting: &mut Rewriting<'_>, memory: Node<'_, '_>) {
    let path = child(memory, "source").and_then(|source| child(source, "path"));
    if let Some(path) = path.and_then(|path| path.text()) {
        rewriting.splices.remove_element(memory);
        rewriting.note(format!(
            "the memory device kept in {} was not restored: the clone does not have it",
            path.trim()
        ));
    }
}

fn lease(rewriting: &mut Rewriting<'_>, lease: Node<'_, '_>) {
    let key = child(lease, "key").and_then(|key| key.text()).unwrap_or("");
    leave_out(rewriting, lease, &format!("the lease {key}"));
}

fn redirection(rewriting: &mut Rewriting<'_>, device: Node<'_, '_>) {
    let kind = device.attribute("type").unwrap_or("spicevmc");
    if kind == "spicevmc" {
        return character::log(rewriting, device);
    }
    let name = device.tag_name().name();
    leave_out(
        rewriting,
        device,
        &format!("a {name} device of type {kind}"),
    );
}

fn random(rewriting: &mut Rewriting<'_>, rng: Node<'_, '_>) {
    let Some(backend) = child(rng, "backend") else {
        return;
    };
    let mut sources = backend.children().filter(|n| n.has_tag_name("source"));
    if sources.any(|source| source.attribute("mode") == Some("bind")) {
        let random = "<backend model='random'>/dev/urandom</backend>";
        rewriting.splices.replace_element(backend, random);
        rewriting.note(
            "the random numbers came from a socket of the original; the clone's are the host's",
        );
    }
}

fn pstore(rewriting: &mut Rewriting<'_>, pstore: Node<'_, '_>) {
    if let Some(node) = child(pstore, "path")
        && let Some(path) = node.text()
    {
        let to = rewriting.rehomed(path.trim());
        rewriting.splices.set_text(node, &to);
    }
}

fn filesystem(rewriting: &mut Rewriting<'_>, filesystem: Node<'_, '_>) {
    let source = child(filesystem, "source");
    let of = |name| source.and_then(|source| source.attribute(name));
    let path = ["dir", "file", "dev", "name", "socket"]
        .into_iter()
        .find_map(of);
    let what = format!("the shared file system {}", path.unwrap_or(""));
    leave_out(rewriting, filesystem, what.trim_end());
}
