//! The definition of a guest that is only tried: what it leaves on the host lies in one directory, what it says nobody
//! keeps, and it ends where others would begin again.

use roxmltree::{Document, Node};

use super::firmware::nvram_path;
use super::rewrite::{RewriteError, child};
use super::splice::{Splices, escape};

/// What becomes of a guest that restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Restart {
    /// It does so.
    Allowed,
    /// It ends: else one that crashes again and again would look like one that works.
    Ends,
}

/// The definition of a clone, made throw-away. `variables` is where firmware variables go that have no place yet:
/// libvirt would put them beside those of other domains, and leave them there.
pub(crate) fn throw_away(
    xml: &str,
    restart: Restart,
    variables: &str,
) -> Result<String, RewriteError> {
    let document =
        Document::parse(xml).map_err(|error| RewriteError::NotDomainXml(error.to_string()))?;
    let domain = document.root_element();
    let mut splices = Splices::new(xml);
    let mut missing = String::new();
    let mut end_on = |splices: &mut Splices<'_>, event: &str| match child(domain, event) {
        Some(node) => splices.set_text(node, "destroy"),
        None => missing += &format!("<{event}>destroy</{event}>"),
    };
    end_on(&mut splices, "on_poweroff");
    end_on(&mut splices, "on_crash");
    if restart == Restart::Ends {
        end_on(&mut splices, "on_reboot");
    }
    splices.insert_children(domain, &missing);
    if let Some(devices) = child(domain, "devices") {
        devices
            .children()
            .filter(Node::is_element)
            .for_each(|device| hush(&mut splices, device));
    }
    if let Some(os) = child(domain, "os") {
        place_variables(&mut splices, os, variables);
    }
    Ok(splices.finish())
}

/// Lets a device that would write to a file write to nothing: a guest may say more than there is room for.
fn hush(splices: &mut Splices<'_>, device: Node<'_, '_>) {
    if matches!(
        device.tag_name().name(),
        "serial" | "console" | "parallel" | "channel"
    ) {
        if device.attribute("type") == Some("file") {
            splices.set_attribute(device, "type", "null");
            if let Some(source) = child(device, "source") {
                splices.remove_element(source);
            }
        }
        if let Some(log) = child(device, "log") {
            splices.remove_element(log);
        }
    }
}

fn place_variables(splices: &mut Splices<'_>, os: Node<'_, '_>, path: &str) {
    match child(os, "nvram") {
        Some(nvram) if nvram_path(nvram).is_none() && child(nvram, "source").is_none() => {
            splices.set_text(nvram, path);
        }
        None if os.attribute("firmware") == Some("efi") => {
            splices.insert_children(os, &format!("<nvram>{}</nvram>", escape(path)));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_on_trial_ends_where_others_begin_again() {
        let xml = "<domain><on_crash>restart</on_crash><devices/></domain>";
        assert_eq!(
            throw_away(xml, Restart::Ends, "/t").unwrap(),
            "<domain><on_crash>destroy</on_crash><devices/><on_poweroff>destroy</on_poweroff>\
             <on_reboot>destroy</on_reboot></domain>"
        );
        let allowed = throw_away(xml, Restart::Allowed, "/t").unwrap();
        assert!(!allowed.contains("on_reboot"), "{allowed}");
    }

    #[test]
    fn what_a_guest_on_trial_says_goes_to_no_file() {
        let xml = "<domain><devices><serial type='file'><source path='/l'/><target port='0'/></serial><console \
            type='pty'><log file='/m'/><target type='serial'/></console></devices></domain>";
        let new = throw_away(xml, Restart::Ends, "/t").unwrap();
        let devices = "<devices><serial type='null'><target port='0'/></serial><console type='pty'><target \
            type='serial'/></console></devices>";
        assert!(new.contains(devices), "{new}");
    }

    #[test]
    fn firmware_variables_that_libvirt_would_make_are_made_in_its_directory() {
        let ends = "<on_poweroff>destroy</on_poweroff><on_crash>destroy</on_crash>";
        for (os, placed) in [
            (
                "<os><nvram template='/v'/></os>",
                "<os><nvram template='/v'>/t/it&apos;s</nvram></os>",
            ),
            (
                "<os firmware='efi'><type/></os>",
                "<os firmware='efi'><type/><nvram>/t/it&apos;s</nvram></os>",
            ),
            ("<os><nvram>/n</nvram></os>", "<os><nvram>/n</nvram></os>"),
            ("<os><type/></os>", "<os><type/></os>"),
        ] {
            let new = throw_away(
                &format!("<domain>{os}</domain>"),
                Restart::Allowed,
                "/t/it's",
            );
            assert_eq!(new.unwrap(), format!("<domain>{placed}{ends}</domain>"));
        }
    }
}
