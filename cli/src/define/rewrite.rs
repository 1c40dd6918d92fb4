//! From the domain XML of a point to the XML that defines the restored domain.
//!
//! What has to change is spliced in; the rest stays byte for byte. Pure text work: what is where on
//! the host is passed in.

use roxmltree::{Document, Node};
use virtkeep_repo::DomainUuid;

use super::backing::Backing;
use super::splice::{Splices, representable};
use super::{devices, firmware, host_ties};
use crate::restore::file_names;

/// As whom the restored domain is defined.
#[derive(Clone, Debug)]
pub(crate) enum Identity {
    /// As itself: name, uuid and MAC addresses stay.
    Original,
    /// As a copy that can run beside the original.
    Clone {
        /// Its name.
        name: String,
        /// Its uuid.
        uuid: DomainUuid,
        /// Whether its network links are up from the start.
        network: bool,
    },
}

/// A disk that was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RestoredDisk {
    /// Its target name in the XML.
    pub(crate) target: String,
    /// Absolute path of the image.
    pub(crate) path: String,
    /// `raw` or `qcow2`.
    pub(crate) format: &'static str,
    /// What it reads from where it holds nothing itself.
    pub(crate) backing: Option<Backing>,
}

/// Firmware variables, a kernel or the like that the definition has to find at a new place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MovedFile {
    /// Where the XML says it is.
    pub(crate) from: String,
    /// Absolute path of the restored copy.
    pub(crate) to: String,
}

/// Where everything is on this host.
pub(crate) struct Placement<'a> {
    /// The disks that were restored.
    pub(crate) disks: &'a [RestoredDisk],
    /// The directory of the restore, where files of the clone's own may be put; absolute.
    pub(crate) directory: &'a str,
    /// The other files that were restored and are to be used.
    pub(crate) files: &'a [MovedFile],
    /// Whether the host has a file or device of this path.
    pub(crate) host_has: &'a dyn Fn(&str) -> bool,
    /// Whether a storage pool of this name has a volume of this name.
    pub(crate) host_has_volume: &'a dyn Fn(&str, &str) -> bool,
    /// A new MAC address that nobody uses.
    pub(crate) new_mac: &'a dyn Fn() -> String,
}

/// The new definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rewritten {
    /// Domain XML.
    pub(crate) xml: String,
    /// What the user should know about it.
    pub(crate) notes: Vec<String>,
    /// Files that the domain will write besides its disks: logs and the like. Absolute paths.
    pub(crate) written: Vec<String>,
}

/// The XML of the point cannot be made into a definition.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RewriteError {
    /// It is not the XML of a domain.
    #[error(
        "the domain XML cannot be read ({0}): the disks can still be restored without --define"
    )]
    NotDomainXml(String),
    /// A name or path that XML cannot express.
    #[error("{what} {text:?} holds control characters, which libvirt cannot accept")]
    NotRepresentable {
        /// What it is.
        what: &'static str,
        /// The name or path.
        text: String,
    },
}

/// Rewrites the XML of a point for a restored domain.
pub(crate) fn rewrite(
    xml: &str,
    identity: &Identity,
    placement: &Placement<'_>,
) -> Result<Rewritten, RewriteError> {
    check_representable(identity, placement)?;
    let document =
        Document::parse(xml).map_err(|error| RewriteError::NotDomainXml(error.to_string()))?;
    let domain = document.root_element();
    if !domain.has_tag_name("domain") {
        let why = format!("its root element is {:?}", domain.tag_name().name());
        return Err(RewriteError::NotDomainXml(why));
    }
    let mut rewriting = Rewriting {
        splices: Splices::new(xml),
        identity,
        placement,
        rehomed: Vec::new(),
        notes: Vec::new(),
    };
    rewriting.identity(domain);
    if let Some(os) = child(domain, "os") {
        firmware::rewrite(&mut rewriting, os);
    }
    if let Some(devices) = child(domain, "devices") {
        devices::rewrite(&mut rewriting, devices);
    }
    if rewriting.is_clone() {
        host_ties::command_line(&mut rewriting, domain);
    }
    Ok(Rewritten {
        xml: rewriting.splices.finish(),
        notes: rewriting.notes,
        written: rewriting.rehomed.into_iter().map(|(_, to)| to).collect(),
    })
}

/// A rewriting under way.
pub(super) struct Rewriting<'a> {
    pub(super) splices: Splices<'a>,
    pub(super) identity: &'a Identity,
    pub(super) placement: &'a Placement<'a>,
    /// Files of the original, and those that the clone has in their place.
    rehomed: Vec<(String, String)>,
    notes: Vec<String>,
}

impl Rewriting<'_> {
    /// Tells the user something, once.
    pub(super) fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    /// Where a clone writes what the original writes to the file `path`: a name in the directory of
    /// the restore that nothing else has. Equal paths give equal names.
    pub(super) fn rehomed(&mut self, path: &str) -> String {
        if let Some((_, to)) = self.rehomed.iter().find(|(from, _)| from == path) {
            return to.clone();
        }
        let directory = self.placement.directory;
        let name = file_names::safe(path.rsplit('/').next().unwrap_or(path));
        let mut taken = Vec::new();
        let to = loop {
            let name = file_names::unique(name.clone(), &mut taken);
            let to = format!("{directory}/{name}");
            let is_ours = self.rehomed.iter().any(|(_, other)| *other == to);
            if !is_ours && !(self.placement.host_has)(&to) {
                break to;
            }
        };
        self.rehomed.push((path.to_owned(), to.clone()));
        self.note(format!("the original writes to {path}, the clone to {to}"));
        to
    }

    /// The same for an attribute that holds a path, if it is there.
    pub(super) fn rehome_attribute(&mut self, node: Node<'_, '_>, name: &str) {
        if let Some(path) = node.attribute(name) {
            let to = self.rehomed(path);
            self.splices.set_attribute(node, name, &to);
        }
    }

    pub(super) fn is_clone(&self) -> bool {
        matches!(self.identity, Identity::Clone { .. })
    }

    /// Where a file that the XML names has been put, if it has been moved.
    pub(super) fn moved(&self, path: &str) -> Option<&str> {
        let moved = self.placement.files.iter().find(|file| file.from == path);
        moved.map(|file| file.to.as_str())
    }

    fn identity(&mut self, domain: Node<'_, '_>) {
        // The generation id tells a guest that it was set back in time: libvirt makes a new one.
        if let Some(genid) = child(domain, "genid") {
            self.splices.replace_element(genid, "<genid/>");
        }
        let Identity::Clone { name, uuid, .. } = self.identity else {
            return;
        };
        let uuid = uuid.to_string();
        let mut missing = String::new();
        match child(domain, "uuid") {
            Some(node) => self.splices.set_text(node, &uuid),
            None => missing = format!("<uuid>{uuid}</uuid>"),
        }
        match child(domain, "name") {
            Some(node) => self.splices.set_text(node, name),
            None => missing += &format!("<name>{}</name>", super::splice::escape(name)),
        }
        self.splices.insert_children(domain, &missing);
        // libvirt demands that the system's uuid in SMBIOS equals the domain's.
        let system = child(domain, "sysinfo").and_then(|node| child(node, "system"));
        let entries = system.into_iter().flat_map(|node| node.children());
        for entry in entries.filter(|n| n.attribute("name") == Some("uuid")) {
            self.splices.set_text(entry, &uuid);
        }
    }
}

/// The first child element of this name.
pub(super) fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|n| n.has_tag_name(name))
}

/// Whether a domain can have this name, as far as XML goes.
pub(crate) fn check_name(name: &str) -> Result<(), RewriteError> {
    check("the name", name)
}

fn check_representable(identity: &Identity, placement: &Placement<'_>) -> Result<(), RewriteError> {
    if let Identity::Clone { name, .. } = identity {
        check_name(name)?;
    }
    let disks = placement.disks.iter().map(|disk| &disk.path);
    let files = placement.files.iter().map(|file| &file.to);
    for path in disks.chain(files) {
        check("the path", path)?;
    }
    check("the path", placement.directory)
}

fn check(what: &'static str, text: &str) -> Result<(), RewriteError> {
    if representable(text) {
        return Ok(());
    }
    let text = text.to_owned();
    Err(RewriteError::NotRepresentable { what, text })
}

#[cfg(test)]
#[path = "rewrite_tests.rs"]
mod tests;
