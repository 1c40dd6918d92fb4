//! Where the parts of a recovery go: its images, and the socket that QEMU must be able to reach.
//!
//! QEMU runs as a user of its own and, where AppArmor guards it, may open few files besides those in
//! its domain XML; the sockets of network disks are not among those that libvirt allows it. It does allow
//! `/run/libvirt/**/*.tunnelmigrate.dest.NAME`, read and write, to the domain NAME, and so the socket is
//! called that. The directory can be passed through but not listed by others; the socket itself belongs
//! to QEMU's user alone.

use std::fs::Permissions;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use roxmltree::{Document, Node};
use virt::connect::Connect;
use virtkeep_capture::LibvirtError;
use virtkeep_repo::DomainUuid;

use crate::output::shown;
use crate::restore::file_names;

/// The longest path of a unix socket, in bytes.
const SOCKET_PATH_MAX: usize = 107;

/// The directory for images of a domain, where none was named: beside those of other domains. Of no
/// domain, the directory that holds all of those.
pub(crate) fn usual_directory(domain: &str) -> PathBuf {
    let images = if rustix::process::geteuid().is_root() {
        PathBuf::from("/var/lib/libvirt/images")
    } else {
        let of = |name| std::env::var_os(name).map(PathBuf::from);
        let data = of("XDG_DATA_HOME").or_else(|| Some(of("HOME")?.join(".local/share")));
        data.unwrap_or_else(std::env::temp_dir)
            .join("libvirt/images")
    };
    match domain {
        "" => images,
        domain => images.join(file_names::safe(domain)),
    }
}

/// The socket of the recovery of a domain.
pub(crate) fn socket(domain: &str, uuid: DomainUuid) -> PathBuf {
    socket_by_name(domain).unwrap_or_else(|| socket_directory().join(format!("{uuid}.sock")))
}

/// The socket by whose name AppArmor lets the domain use it, unless the name is too long.
fn socket_by_name(domain: &str) -> Option<PathBuf> {
    let path = socket_directory().join(format!("nbd.tunnelmigrate.dest.{domain}"));
    (path.as_os_str().len() <= SOCKET_PATH_MAX).then_some(path)
}

fn socket_directory() -> PathBuf {
    let user = rustix::process::geteuid();
    let run = if user.is_root() {
        PathBuf::from("/run/libvirt")
    } else {
        let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        own.filter(|dir| dir.is_dir())
            .unwrap_or_else(|| shared_directory(user.as_raw()))
    };
    run.join("virtkeep")
}

/// The name of a domain made of another one's, which is cut as far as its socket needs it.
pub(crate) fn name_with_socket(name: &str, suffix: &str) -> String {
    let mut name = name.to_owned();
    loop {
        let whole = format!("{name}{suffix}");
        if socket_by_name(&whole).is_some() || name.pop().is_none() {
            return whole;
        }
    }
}

/// A user's own part of what all users share.
fn shared_directory(user: u32) -> PathBuf {
    std::env::temp_dir().join(format!("virtkeep-{user}"))
}

/// Makes the directory of the socket, unless it is there.
pub(crate) fn make_socket_directory(socket: &Path) -> Result<()> {
    let dir = socket.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(dir)
        // The usual mask takes the right to pass through away.
        .and_then(|()| std::fs::set_permissions(dir, Permissions::from_mode(0o711)))
        .with_context(|| format!("cannot create the directory {}", dir.display()))
}

/// Makes the directory of the images, unless it is there; others may pass through, as QEMU must.
pub(crate) fn make_directory(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(dir)
        .with_context(|| format!("cannot create the directory {}", dir.display()))?;
    let_pass(dir)
}

/// Lets others pass through a directory, but not list it.
pub(crate) fn let_pass(dir: &Path) -> Result<()> {
    std::fs::set_permissions(dir, Permissions::from_mode(0o711))
        .with_context(|| format!("cannot open up the directory {}", dir.display()))
}

/// Makes sure that guests of this libvirt run here, where they can reach what we serve. Returns its URI.
pub(crate) fn check_local(connection: &Connect) -> Result<String> {
    let uri = connection
        .uri()
        .map_err(LibvirtError::from)
        .context("cannot ask libvirt for its URI")?;
    if virtkeep_capture::is_remote(&uri) {
        bail!("guests of {uri} run on another host: run `virtkeep boot` there");
    }
    Ok(uri)
}

/// User and group of QEMU, as libvirt tells; none where it runs as we do.
pub(crate) fn qemu_user(connection: &Connect) -> Result<Option<(u32, u32)>> {
    let capabilities = capabilities(connection)?;
    let capabilities = Document::parse(&capabilities).ok();
    let label = capabilities.as_ref().and_then(dac_label);
    let user = rustix::process::geteuid();
    match label {
        Some((qemu, _)) if qemu == user.as_raw() => Ok(None),
        Some(_) if !user.is_root() => {
            bail!(
                "QEMU runs as another user there, which this one cannot serve: run `virtkeep boot` as root, or \
                 pass -c qemu:///session"
            )
        }
        label => Ok(label),
    }
}

/// Makes sure that AppArmor, where it guards QEMU, lets a domain of this name use its socket.
pub(crate) fn check_name(connection: &Connect, domain: &str) -> Result<()> {
    if socket_by_name(domain).is_some() {
        return Ok(());
    }
    let capabilities = capabilities(connection)?;
    if Document::parse(&capabilities).is_ok_and(|xml| security(&xml, "apparmor").is_some()) {
        let taken = socket_by_name("").map_or(0, |path| path.as_os_str().len());
        bail!(
            "the name {} is too long for a socket that AppArmor lets QEMU use: boot it as a clone with a --name of at most \
             {} bytes, or use `virtkeep restore --define`",
            shown(domain),
            SOCKET_PATH_MAX - taken
        );
    }
    Ok(())
}

fn capabilities(connection: &Connect) -> Result<String> {
    connection
        .capabilities()
        .map_err(LibvirtError::from)
        .context("cannot ask libvirt what QEMU runs as")
}

fn dac_label(capabilities: &Document<'_>) -> Option<(u32, u32)> {
    let mut nodes = security(capabilities, "dac")?.children();
    let label = nodes.find(|node| node.has_tag_name("baselabel"))?.text()?;
    let (user, group) = label.trim().split_once(':')?;
    let number = |text: &str| text.strip_prefix('+').unwrap_or(text).parse().ok();
    Some((number(user)?, number(group)?))
}

/// What the host tells of a security model that guards QEMU, if it does.
fn security<'a, 'i>(capabilities: &'a Document<'i>, name: &str) -> Option<Node<'a, 'i>> {
    capabilities.descendants().find(|node| {
        let model = node.children().find(|node| node.has_tag_name("model"));
        node.has_tag_name("secmodel") && model.and_then(|model| model.text()) == Some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_of_qemu_is_found_in_the_capabilities() {
        let xml = "<capabilities><host><secmodel><model>apparmor</model><baselabel \
            type='kvm'>x</baselabel></secmodel><secmodel><model>dac</model><doi>0</doi><baselabel \
            type='kvm'>+64055:+993</baselabel></secmodel></host></capabilities>";
        assert_eq!(
            dac_label(&Document::parse(xml).unwrap()),
            Some((64055, 993))
        );
        let of = |name| security(&Document::parse(xml).unwrap(), name).is_some();
        assert!(of("apparmor") && !of("selinux"));
        let none = "<capabilities><host/></capabilities>";
        assert_eq!(dac_label(&Document::parse(none).unwrap()), None);
    }

    #[test]
    fn a_long_name_gets_a_socket_that_can_be_bound() {
        let uuid = DomainUuid::from_bytes([7; 16]);
        assert!(socket("web1", uuid).ends_with("nbd.tunnelmigrate.dest.web1"));
        let long = socket(&"x".repeat(200), uuid);
        assert!(long.as_os_str().len() <= SOCKET_PATH_MAX, "{long:?}");
    }

    #[test]
    fn a_long_name_is_cut_where_the_name_may_be_another() {
        assert_eq!(name_with_socket("web1", "-test"), "web1-test");
        let long = name_with_socket(&"ü".repeat(100), "-test");
        assert!(long.starts_with("üü") && long.ends_with("ü-test"), "{long}");
        assert!(socket_by_name(&long).is_some());
    }
}
