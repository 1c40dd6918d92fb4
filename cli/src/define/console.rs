//! The first serial line of a domain, made to write to a file: what the guest says can be read there.

use roxmltree::{Document, Node};

use super::rewrite::{RewriteError, child};
use super::splice::{Splices, escape};

/// The definition with its first serial line going to the file `path`. It gets one where it has none.
pub(crate) fn to_file(xml: &str, path: &str) -> Result<String, RewriteError> {
    let document =
        Document::parse(xml).map_err(|error| RewriteError::NotDomainXml(error.to_string()))?;
    let mut splices = Splices::new(xml);
    let source = format!("<source path='{}'/>", escape(path));
    let Some(devices) = child(document.root_element(), "devices") else {
        return Err(RewriteError::NotDomainXml("it has no devices".to_owned()));
    };
    let consoles = devices.children().filter(|node| {
        let kind = child(*node, "target").and_then(|target| target.attribute("type"));
        node.has_tag_name("console") && matches!(kind, None | Some("serial"))
    });
    // libvirt repeats the first serial line as a console, and wants both to be equal.
    let first = [child(devices, "serial"), consoles.into_iter().next()];
    for node in first.into_iter().flatten() {
        splices.set_attribute(node, "type", "file");
        splices.remove_attribute(node, "tty");
        for other in node.children().filter(Node::is_element) {
            if matches!(other.tag_name().name(), "source" | "protocol" | "log") {
                splices.remove_element(other);
            }
        }
        splices.insert_children(node, &source);
    }
    if first[0].is_none() {
        let serial = format!("<serial type='file'>{source}</serial>");
        splices.insert_children(devices, &serial);
    }
    Ok(splices.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_serial_line_goes_to_the_file_and_its_console_with_it() {
        let xml = "<domain><devices><serial type='tcp'><source mode='bind' host='h' \
            service='1'/><protocol type='raw'/><target port='0'/></serial><serial \
            type='pty'/><console type='tcp'><target type='serial' port='0'/></console></devices>\
            </domain>";
        assert_eq!(
            to_file(xml, "/t/c").unwrap(),
            "<domain><devices><serial type='file'><target port='0'/><source path='/t/c'/></serial>\
             <serial type='pty'/><console type='file'><target type='serial' port='0'/><source \
             path='/t/c'/></console></devices></domain>"
        );
    }

    #[test]
    fn a_domain_without_a_serial_line_gets_one() {
        let xml = "<domain><devices><console type='pty'><target type='virtio'/></console>\
            </devices></domain>";
        let new = to_file(xml, "/t/c").unwrap();
        assert!(
            new.contains("<serial type='file'><source path='/t/c'/></serial></devices>"),
            "{new}"
        );
        assert!(
            new.contains("<console type='pty'><target type='virtio'/>"),
            "{new}"
        );
    }
}
