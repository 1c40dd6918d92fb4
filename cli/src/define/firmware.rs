//! What a restored domain boots with: loader, firmware variables, kernel and RAM disk.

use roxmltree::Node;

use super::rewrite::{Rewriting, child};
use super::splice::escape;

pub(super) fn rewrite(rewriting: &mut Rewriting<'_>, os: Node<'_, '_>) {
    for name in ["loader", "kernel", "initrd", "dtb"] {
        let Some(node) = child(os, name) else {
            continue;
        };
        let path = node.text().unwrap_or("").trim();
        if let Some(to) = rewriting.moved(path) {
            let to = to.to_owned();
            rewriting.splices.set_text(node, &to);
        } else if !path.is_empty() && !(rewriting.placement.host_has)(path) {
            rewriting.note(format!(
                "the {name} {path} is not on this host, and not in the point"
            ));
        }
    }
    if let Some(node) = child(os, "nvram") {
        nvram(rewriting, node);
    }
}

/// The path of the firmware variables, in the old form (`<nvram>PATH</nvram>`) or the new one
/// (`<nvram type='file'><source file='PATH'/></nvram>`).
pub(crate) fn nvram_path<'a>(nvram: Node<'a, '_>) -> Option<&'a str> {
    match child(nvram, "source") {
        Some(source) => source.attribute("file"),
        None => nvram.text().map(str::trim).filter(|path| !path.is_empty()),
    }
}

fn nvram(rewriting: &mut Rewriting<'_>, nvram: Node<'_, '_>) {
    let path = nvram_path(nvram);
    if let Some(to) = path.and_then(|path| rewriting.moved(path)) {
        let text = element(nvram, &["template", "templateFormat", "format"], to);
        rewriting.splices.replace_element(nvram, text);
    } else if rewriting.is_clone() && (path.is_some() || child(nvram, "source").is_some()) {
        // The original's variables must not be shared; libvirt fills new ones from the template.
        let text = element(nvram, &["template", "templateFormat"], "");
        rewriting.splices.replace_element(nvram, text);
        rewriting.note("the point holds no firmware variables: the clone starts with fresh ones");
    }
}

fn element(nvram: Node<'_, '_>, keep: &[&str], path: &str) -> String {
    let attributes: String = nvram
        .attributes()
        .filter(|a| keep.contains(&a.name()))
        .map(|a| format!(" {}='{}'", a.name(), escape(a.value())))
        .collect();
    if path.is_empty() {
        format!("<nvram{attributes}/>")
    } else {
        format!("<nvram{attributes}>{}</nvram>", escape(path))
    }
}
