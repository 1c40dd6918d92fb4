//! What a capture needs to know from a domain's XML, and nothing else.
//!
//! Format: <https://libvirt.org/formatdomain.html>.

use roxmltree::{Document, Node};

use crate::error::{Error, Result};

/// A domain as its XML describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DomainXml {
    pub(crate) disks: Vec<DiskXml>,
    pub(crate) agent: Agent,
    /// Names of the virtual networks it is attached to.
    pub(crate) networks: Vec<String>,
    pub(crate) loader: Option<String>,
    pub(crate) nvram: Option<String>,
    pub(crate) kernel: Option<String>,
    pub(crate) initrd: Option<String>,
    /// Whether it has an emulated TPM, and where its state is if that is not libvirt's choice.
    pub(crate) tpm: Option<TpmState>,
}

/// The guest agent's channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Agent {
    /// No channel.
    #[default]
    NotConfigured,
    /// A channel, but nobody at the guest's end.
    Disconnected,
    Connected,
}

/// Where the state of an emulated TPM is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TpmState {
    /// In libvirt's own place, under the domain's uuid.
    Default,
    Path(String),
}

/// One `<disk>`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DiskXml {
    /// `dev` of the target: `vda`.
    pub(crate) target: String,
    pub(crate) device: Device,
    /// `type` of the driver, `raw` when nothing is said.
    pub(crate) format: String,
    pub(crate) source: SourceXml,
    pub(crate) readonly: bool,
    pub(crate) shareable: bool,
    pub(crate) transient: bool,
    pub(crate) encrypted: bool,
    /// Sources of the backing images, nearest first; only known of a running domain.
    pub(crate) backing: Vec<SourceXml>,
}

/// What the guest sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Device {
    #[default]
    Disk,
    Cdrom,
    Floppy,
    /// SCSI passthrough and whatever else there may be.
    Other(String),
}

/// Where an image is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum SourceXml {
    /// No medium.
    #[default]
    None,
    File(String),
    Block(String),
    Volume {
        pool: String,
        volume: String,
    },
    /// Protocol and name: `rbd:pool/image`.
    Network(String),
    /// A `type` that this crate does not know how to back up.
    Other(String),
}

impl SourceXml {
    /// Path or address, as kept in a point.
    pub(crate) fn location(&self) -> String {
        match self {
            Self::None => String::new(),
            Self::File(path) | Self::Block(path) => path.clone(),
            Self::Volume { pool, volume } => format!("volume:{pool}/{volume}"),
            Self::Network(address) => address.clone(),
            Self::Other(kind) => kind.clone(),
        }
    }

    /// The path of an image on this host.
    pub(crate) fn path(&self) -> Option<&str> {
        match self {
            Self::File(path) | Self::Block(path) => Some(path),
            _ => None,
        }
    }
}

impl DomainXml {
    /// Reads the XML of the domain called `name` (for messages).
    pub(crate) fn parse(name: &str, xml: &str) -> Result<Self> {
        let unfit = |why: String| Error::Xml {
            what: format!("domain {name}"),
            why,
        };
        let document = Document::parse(xml).map_err(|error| unfit(error.to_string()))?;
        let root = document.root_element();
        let devices = child(root, "devices").ok_or_else(|| unfit("it has no <devices>".into()))?;
        let os = child(root, "os");
        let os_text = |tag: &str| text(child(os?, tag)?);
        let mut disks = Vec::new();
        for node in children(devices, "disk") {
            disks.push(disk(node).ok_or_else(|| unfit("a disk has no target".into()))?);
        }
        let mut networks: Vec<String> = children(devices, "interface")
            .filter(|node| node.attribute("type") == Some("network"))
            .filter_map(|node| attribute(child(node, "source")?, "network"))
            .collect();
        networks.sort();
        networks.dedup();
        Ok(Self {
            disks,
            agent: agent(devices),
            networks,
            loader: os_text("loader"),
            nvram: nvram(os),
            kernel: os_text("kernel"),
            initrd: os_text("initrd"),
            tpm: tpm(devices),
        })
    }
}

fn disk(node: Node<'_, '_>) -> Option<DiskXml> {
    let source = child(node, "source");
    Some(DiskXml {
        target: attribute(child(node, "target")?, "dev")?,
        device: match node.attribute("device").unwrap_or("disk") {
            "disk" => Device::Disk,
            "cdrom" => Device::Cdrom,
            "floppy" => Device::Floppy,
            other => Device::Other(other.into()),
        },
        format: child(node, "driver")
            .and_then(|driver| attribute(driver, "type"))
            .unwrap_or_else(|| "raw".into()),
        source: image_source(node),
        readonly: child(node, "readonly").is_some(),
        shareable: child(node, "shareable").is_some(),
        transient: child(node, "transient").is_some(),
        encrypted: child(node, "encryption").is_some()
            || source.is_some_and(|source| child(source, "encryption").is_some()),
        backing: backing(node),
    })
}

/// The image of a `<disk>` or `<backingStore>`, both of which have a `type` and a `<source>`.
fn image_source(node: Node<'_, '_>) -> SourceXml {
    let Some(source) = child(node, "source") else {
        return SourceXml::None;
    };
    let get = |name: &str| attribute(source, name);
    let kind = node.attribute("type").unwrap_or("file");
    let found = match kind {
        "file" => get("file").map(SourceXml::File),
        "block" => get("dev").map(SourceXml::Block),
        "volume" => get("pool")
            .zip(get("volume"))
            .map(|(pool, volume)| SourceXml::Volume { pool, volume }),
        "network" => {
            let protocol = get("protocol").unwrap_or_default();
            let name = get("name").unwrap_or_default();
            Some(SourceXml::Network(format!("{protocol}:{name}")))
        }
        other => Some(SourceXml::Other(other.into())),
    };
    found.unwrap_or_default()
}

fn backing(disk: Node<'_, '_>) -> Vec<SourceXml> {
    std::iter::successors(child(disk, "backingStore"), |node| {
        child(*node, "backingStore")
    })
    .map(image_source)
    .filter(|source| *source != SourceXml::None)
    .collect()
}

fn agent(devices: Node<'_, '_>) -> Agent {
    children(devices, "channel")
        .filter_map(|channel| child(channel, "target"))
        .find(|target| target.attribute("name") == Some("org.qemu.guest_agent.0"))
        .map_or(Agent::NotConfigured, |target| {
            match target.attribute("state") {
                Some("connected") => Agent::Connected,
                _ => Agent::Disconnected,
            }
        })
}

/// The path of the firmware variables: the text of `<nvram>`, or its `<source file=…>`.
fn nvram(os: Option<Node<'_, '_>>) -> Option<String> {
    let node = child(os?, "nvram")?;
    child(node, "source")
        .and_then(|source| attribute(source, "file"))
        .or_else(|| text(node))
}

fn tpm(devices: Node<'_, '_>) -> Option<TpmState> {
    let backend = child(child(devices, "tpm")?, "backend")?;
    (backend.attribute("type") == Some("emulator")).then(|| {
        child(backend, "source")
            .and_then(|source| attribute(source, "path"))
            .map_or(TpmState::Default, TpmState::Path)
    })
}

pub(crate) fn child<'a, 'i>(node: Node<'a, 'i>, tag: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|child| child.has_tag_name(tag))
}

pub(crate) fn children<'a, 'i: 'a>(
    node: Node<'a, 'i>,
    tag: &'a str,
) -> impl Iterator<Item = Node<'a, 'i>> + 'a {
    node.children().filter(move |child| child.has_tag_name(tag))
}

pub(crate) fn attribute(node: Node<'_, '_>, name: &str) -> Option<String> {
    node.attribute(name).map(str::to_owned)
}

fn text(node: Node<'_, '_>) -> Option<String> {
    let text = node.text()?.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RICH: &str = r"
<domain type='kvm' id='3'>
  <name>rich</name>
  <os>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/rich_VARS.fd</nvram>
    <kernel>/boot/vmlinuz</kernel>
    <initrd>/boot/initrd</initrd>
  </os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/images/top.qcow2'/>
      <backingStore type='file'>
        <format type='qcow2'/>
        <source file='/images/middle.qcow2'/>
        <backingStore type='file'><source file='/images/base &amp; co.qcow2'/><backingStore/></backingStore>
      </backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw'/>
      <source dev='/dev/vg/lv'/>
      <target dev='vdb' bus='virtio'/>
      <shareable/>
    </disk>
    <disk type='volume' device='disk'>
      <source pool='fast' volume='data'/>
      <target dev='vdc' bus='virtio'/>
    </disk>
    <disk type='network' device='disk'>
      <source protocol='rbd' name='pool/image'><host name='mon'/></source>
      <target dev='vdd' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
    <interface type='network'><source network='default' bridge='virbr0'/></interface>
    <interface type='bridge'><source bridge='br0'/></interface>
    <interface type='network'><source network='default'/></interface>
    <channel type='unix'>
      <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>
    </channel>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
  </devices>
</domain>";

    #[test]
    fn a_rich_domain_is_understood() {
        let domain = DomainXml::parse("rich", RICH).unwrap();
        let [vda, vdb, vdc, vdd, sda] = &domain.disks[..] else {
            panic!("five disks, not {}", domain.disks.len());
        };
        assert_eq!((&*vda.target, &*vda.format), ("vda", "qcow2"));
        assert_eq!(vda.source, SourceXml::File("/images/top.qcow2".into()));
        assert_eq!(
            vda.backing,
            [
                SourceXml::File("/images/middle.qcow2".into()),
                SourceXml::File("/images/base & co.qcow2".into()),
            ]
        );
        assert_eq!(vdb.source.location(), "/dev/vg/lv");
        assert!(vdb.shareable && !vda.shareable);
        assert_eq!(
            (&*vdc.format, &*vdc.source.location()),
            ("raw", "volume:fast/data")
        );
        assert_eq!(vdd.source.location(), "rbd:pool/image");
        assert_eq!(
            (&sda.device, &sda.source),
            (&Device::Cdrom, &SourceXml::None)
        );
        assert!(sda.readonly);
        assert_eq!(domain.networks, ["default"]);
        assert_eq!(domain.agent, Agent::Connected);
        assert_eq!(domain.kernel.as_deref(), Some("/boot/vmlinuz"));
        assert_eq!(domain.initrd.as_deref(), Some("/boot/initrd"));
        assert_eq!(
            domain.loader.as_deref(),
            Some("/usr/share/OVMF/OVMF_CODE.fd")
        );
        assert_eq!(
            domain.nvram.as_deref(),
            Some("/var/lib/libvirt/qemu/nvram/rich_VARS.fd")
        );
        assert_eq!(domain.tpm, Some(TpmState::Default));
    }

    #[test]
    fn an_agent_channel_without_a_guest_is_disconnected() {
        let xml = "<domain><devices><channel><target name='org.qemu.guest_agent.0'/></channel>\
                   </devices></domain>";
        let domain = DomainXml::parse("x", xml).unwrap();
        assert_eq!(domain.agent, Agent::Disconnected);
    }

    #[test]
    fn broken_xml_is_an_error_that_names_the_domain() {
        let error = DomainXml::parse("web1", "<domain>").unwrap_err();
        assert!(error.to_string().contains("domain web1"), "{error}");
    }
}
