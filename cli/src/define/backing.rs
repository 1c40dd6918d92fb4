//! Disks that still read from a server: their place in domain XML while a recovery is under way, and
//! how it is taken out again.
//!
//! A disk of a recovery is an overlay whose backing image is an export on a unix socket. While it is,
//! a server that is gone must not reach the guest as an I/O error: QEMU waits for it a little
//! ([`RECONNECT_SECONDS`]), then stands the guest still (policy `stop`) until it is resumed. And what the guest
//! has flushed must outlive a crash of the host, even of a guest that did not care before (`cache='unsafe'`):
//! it may be the only copy.

use std::path::Path;

use roxmltree::{Document, Node};
use serde::{Deserialize, Serialize};

use super::rewrite::{RewriteError, child};
use super::splice::{Splices, escape};

/// How long QEMU waits for a server that is gone before it stands the guest still. Less than the 30
/// seconds after which guests give up on a disk that is not paravirtual.
const RECONNECT_SECONDS: u32 = 20;

/// The attributes of a disk's `<driver>` that say what becomes of errors.
const POLICIES: [&str; 2] = ["error_policy", "rerror_policy"];

/// The attribute that says what becomes of flushes, and its value when nothing does.
const CACHE: &str = "cache";
const UNSAFE: &str = "unsafe";

/// An export that a disk reads from where it holds nothing itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Backing {
    /// Absolute path of the server's socket.
    pub(crate) socket: String,
    /// The name of the export.
    pub(crate) export: String,
}

/// What the definition of a disk says by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Policies {
    /// About errors, in the order of [`POLICIES`].
    errors: [Option<String>; 2],
    /// Whether flushes are left out.
    unsafe_cache: bool,
}

impl Backing {
    /// The child element of `<disk>`.
    pub(super) fn element(&self) -> String {
        format!(
            "<backingStore type='network'><format type='raw'/><source protocol='nbd' \
             name='{}'><host transport='unix' socket='{}'/><reconnect \
             delay='{RECONNECT_SECONDS}'/></source><backingStore/></backingStore>",
            escape(&self.export),
            escape(&self.socket)
        )
    }

    /// The attributes of `<driver>`.
    pub(super) fn set_policies(splices: &mut Splices<'_>, driver: Node<'_, '_>) {
        for name in POLICIES {
            splices.set_attribute(driver, name, "stop");
        }
        if driver.attribute(CACHE) == Some(UNSAFE) {
            splices.remove_attribute(driver, CACHE);
        }
    }

    /// The same for a disk without `<driver>`.
    pub(super) fn policies() -> String {
        POLICIES.map(|name| format!(" {name}='stop'")).concat()
    }
}

/// What the disks of a domain say about errors, with their targets.
pub(crate) fn policies(xml: &str) -> Result<Vec<(String, Policies)>, RewriteError> {
    let document = parse(xml)?;
    let policies = disks(&document).map(|disk| {
        let driver = child(disk, "driver");
        let of = |name| driver.and_then(|driver| driver.attribute(name));
        let policies = Policies {
            errors: POLICIES.map(|name| of(name).map(str::to_owned)),
            unsafe_cache: of(CACHE) == Some(UNSAFE),
        };
        (target(disk).to_owned(), policies)
    });
    Ok(policies.collect())
}

/// The disks that read from the server on `socket`, at whatever depth of their chains.
pub(crate) fn leaning_on(xml: &str, socket: &str) -> Result<Vec<String>, RewriteError> {
    let document = parse(xml)?;
    let leaning = disks(&document).filter(|disk| served(*disk, socket).is_some());
    Ok(leaning.map(|disk| target(disk).to_owned()).collect())
}

/// The definition in which the images of `wanted`, by target and path, read from the server again where they do
/// not any more. None where nothing has to change.
pub(crate) fn with_server(
    xml: &str,
    wanted: &[(&str, &Path, Backing)],
) -> Result<Option<String>, RewriteError> {
    let document = parse(xml)?;
    let mut splices = Splices::new(xml);
    for disk in disks(&document) {
        let Some((_, path, backing)) = wanted.iter().find(|(name, ..)| *name == target(disk))
        else {
            continue;
        };
        let source = child(disk, "source").and_then(|source| source.attribute("file"));
        if source.map(Path::new) != Some(path) || served(disk, &backing.socket).is_some() {
            continue;
        }
        match child(disk, "backingStore") {
            Some(old) => splices.replace_element(old, backing.element()),
            None => splices.insert_children(disk, &backing.element()),
        }
    }
    let new = splices.finish();
    Ok((new != xml).then_some(new))
}

/// Where an image is in the chains of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A disk writes to it.
    Top,
    /// Beneath another image, which is written to: after a snapshot.
    Below,
    /// Not in use.
    Nowhere,
}

/// Where the image `path` is in the chains of a domain.
pub(crate) fn place_of(xml: &str, path: &Path) -> Result<Place, RewriteError> {
    let document = parse(xml)?;
    let is_it = |source: &Node<'_, '_>| {
        source.has_tag_name("source") && source.attribute("file").map(Path::new) == Some(path)
    };
    let mut place = Place::Nowhere;
    for disk in disks(&document) {
        if disk.children().any(|node| is_it(&node)) {
            return Ok(Place::Top);
        }
        if disk.descendants().any(|node| is_it(&node)) {
            place = Place::Below;
        }
    }
    Ok(place)
}

/// The definition without the server on `socket`, and with the policies that the disks had. None
/// where nothing has to change.
pub(crate) fn without_server(
    xml: &str,
    socket: &str,
    original: &[(String, Policies)],
) -> Result<Option<String>, RewriteError> {
    let document = parse(xml)?;
    let mut splices = Splices::new(xml);
    for disk in disks(&document) {
        if let Some(node) = served(disk, socket) {
            splices.replace_element(node, "<backingStore/>");
        }
        let own = original.iter().find(|(name, _)| name == target(disk));
        let (Some((_, own)), Some(driver)) = (own, child(disk, "driver")) else {
            continue;
        };
        if own.unsafe_cache && driver.attribute(CACHE).is_none() {
            splices.set_attribute(driver, CACHE, UNSAFE);
        }
        for (name, own) in POLICIES.into_iter().zip(&own.errors) {
            match (driver.attribute(name), own) {
                // Somebody has chosen another since.
                (Some("stop"), Some(own)) => splices.set_attribute(driver, name, own),
                (Some("stop"), None) => splices.remove_attribute(driver, name),
                _ => {}
            }
        }
    }
    let new = splices.finish();
    Ok((new != xml).then_some(new))
}

fn parse(xml: &str) -> Result<Document<'_>, RewriteError> {
    Document::parse(xml).map_err(|error| RewriteError::NotDomainXml(error.to_string()))
}

fn disks<'a, 'i>(document: &'a Document<'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    let devices = child(document.root_element(), "devices");
    let nodes = devices.into_iter().flat_map(|node| node.children());
    nodes.filter(|node| node.has_tag_name("disk"))
}

fn target<'a>(disk: Node<'a, '_>) -> &'a str {
    child(disk, "target")
        .and_then(|node| node.attribute("dev"))
        .unwrap_or("")
}

/// The element of a disk's chain that is the export on this socket.
fn served<'a, 'i>(disk: Node<'a, 'i>, socket: &str) -> Option<Node<'a, 'i>> {
    disk.descendants().find(|node| {
        let source = child(*node, "source");
        let host = source.and_then(|source| child(source, "host"));
        node.has_tag_name("backingStore")
            && host.and_then(|host| host.attribute("socket")) == Some(socket)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const XML: &str = "<domain><devices><disk><driver name='qemu' error_policy='stop' \
        rerror_policy='stop'/><source file='/v/vda'/><backingStore type='file'><source \
        file='/v/base'/><backingStore type='network'><source protocol='nbd' name='vda'><host \
        transport='unix' socket='/run/s'/></source><backingStore/></backingStore></backingStore>\
        <target dev='vda'/></disk><disk><driver name='qemu' error_policy='report'/><target \
        dev='vdb'/></disk></devices></domain>";

    #[test]
    fn a_server_is_found_at_any_depth_and_taken_out_again() {
        assert_eq!(leaning_on(XML, "/run/s").unwrap(), ["vda"]);
        assert!(leaning_on(XML, "/run/other").unwrap().is_empty());
        let own = Policies {
            errors: [Some("report".to_owned()), None],
            unsafe_cache: true,
        };
        let original = [
            ("vda".to_owned(), own),
            ("vdb".to_owned(), Policies::default()),
        ];
        let new = without_server(XML, "/run/s", &original).unwrap().unwrap();
        assert!(
            new.contains(
                "<driver cache='unsafe' name='qemu' error_policy='report'/><source file='/v/vda'/>"
            ),
            "{new}"
        );
        let chain = "<source file='/v/base'/><backingStore/></backingStore>";
        assert!(new.contains(chain), "{new}");
        assert_eq!(without_server(&new, "/run/s", &original).unwrap(), None);
    }

    #[test]
    fn a_server_that_was_taken_out_is_put_back_beneath_the_image_that_needs_it() {
        let backing = Backing {
            socket: "/run/s".to_owned(),
            export: "vdb".to_owned(),
        };
        let xml = "<domain><devices><disk><source file='/v/vdb'/><target dev='vdb'/></disk></devices></domain>";
        let wanted = [("vdb", Path::new("/v/vdb"), backing.clone())];
        let new = with_server(xml, &wanted).unwrap().unwrap();
        assert_eq!(leaning_on(&new, "/run/s").unwrap(), ["vdb"]);
        assert_eq!(with_server(&new, &wanted).unwrap(), None);
        let none = xml.replace("/>", "/><backingStore/>");
        let none = none.replacen(
            "<target dev='vdb'/><backingStore/>",
            "<target dev='vdb'/>",
            1,
        );
        let new = with_server(&none, &wanted).unwrap().unwrap();
        assert_eq!(new.matches("<backingStore").count(), 2, "{new}");
        // Above a snapshot it is not.
        let other = [("vdb", Path::new("/v/other"), backing)];
        assert_eq!(with_server(xml, &other).unwrap(), None);
    }

    #[test]
    fn an_image_is_found_at_the_top_of_a_chain_or_below_a_snapshot() {
        for (path, place) in [
            ("/v/vda", Place::Top),
            ("/v/base", Place::Below),
            ("/v/other", Place::Nowhere),
        ] {
            assert_eq!(place_of(XML, Path::new(path)).unwrap(), place, "{path}");
        }
    }

    #[test]
    fn what_a_definition_says_about_errors_is_known_again() {
        let found = policies(XML).unwrap();
        let stop = Some("stop".to_owned());
        let both = Policies {
            errors: [stop.clone(), stop],
            unsafe_cache: false,
        };
        assert_eq!(found[0], ("vda".to_owned(), both));
        let report = Policies {
            errors: [Some("report".to_owned()), None],
            unsafe_cache: false,
        };
        assert_eq!(found[1], ("vdb".to_owned(), report));
    }
}
