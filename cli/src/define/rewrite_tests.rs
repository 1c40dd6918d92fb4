//! Tests of the rewriting: what changes, and that nothing else does.

use virtkeep_repo::DomainUuid;

use super::super::backing::{Backing, leaning_on, policies, without_server};
use super::{Identity, MovedFile, Placement, RestoredDisk, Rewritten, rewrite};

const DOMAIN: &str = "\
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web1</name>
  <uuid>11111111-1111-1111-1111-111111111111</uuid>
  <genid>22222222-2222-2222-2222-222222222222</genid>
  <sysinfo type='smbios'>
    <system>
      <entry name='uuid'>11111111-1111-1111-1111-111111111111</entry>
    </system>
  </sysinfo>
  <os firmware='efi'>
    <type arch='x86_64' machine='pc-q35-9.2'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/web1_VARS.fd</nvram>
    <kernel>/boot/vmlinuz</kernel>
  </os>
  <devices>
    <disk type='block' device='disk' snapshot='external'>
      <driver name='qemu' type='raw' cache='none' io='native'/>
      <source dev='/dev/vg/web1' index='2'/>
      <backingStore type='file'>
        <format type='qcow2'/>
        <source file='/images/base.qcow2'/>
      </backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='network' device='disk'>
      <auth username='admin'><secret type='ceph' uuid='33333333-3333-3333-3333-333333333333'/></auth>
      <source protocol='rbd' name='pool/web1'><host name='ceph1'/></source>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/>
      <source file='/iso/debian.iso'/>
      <target dev='sda' bus='sata'/>
      <readonly/>
    </disk>
    <interface type='network'>
      <mac address='52:54:00:11:11:11'/>
      <source network='default'/>
    </interface>
    <interface type='bridge'>
      <mac address='52:54:00:22:22:22'/>
      <link state='up'/>
    </interface>
    <channel type='unix'>
      <source mode='bind' path='/var/lib/libvirt/qemu/channel/target/web1.agent'/>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
    <graphics type='vnc' port='5901' autoport='no'/>
  </devices>
  <!-- kept -->
</domain>
";

fn disks() -> Vec<RestoredDisk> {
    ["vda", "vdb"]
        .map(|target| RestoredDisk {
            target: target.to_owned(),
            path: format!("/restore/it's/{target}.qcow2"),
            format: "qcow2",
            backing: None,
        })
        .to_vec()
}

fn run(xml: &str, identity: &Identity, disks: &[RestoredDisk], host: &[&str]) -> Rewritten {
    let files = [MovedFile {
        from: "/var/lib/libvirt/qemu/nvram/web1_VARS.fd".to_owned(),
        to: "/restore/nvram.fd".to_owned(),
    }];
    let placement = Placement {
        disks,
        directory: "/restore/it's",
        files: &files,
        host_has: &|path| host.contains(&path),
        host_has_volume: &|pool, volume| host.contains(&&*format!("{pool}/{volume}")),
        new_mac: &|| "52:54:00:99:99:99".to_owned(),
    };
    rewrite(xml, identity, &placement).unwrap()
}

fn copy(network: bool) -> Identity {
    Identity::Clone {
        name: "web1 & copy".to_owned(),
        uuid: DomainUuid::from_bytes([0x44; 16]),
        network,
    }
}

const HOST: [&str; 3] = [
    "/usr/share/OVMF/OVMF_CODE.fd",
    "/boot/vmlinuz",
    "/iso/debian.iso",
];

/// The lines of `new` that `old` does not have.
fn changed<'a>(old: &str, new: &'a str) -> Vec<&'a str> {
    new.lines()
        .filter(|line| !old.lines().any(|known| known == *line))
        .map(str::trim)
        .collect()
}

#[test]
fn an_original_keeps_all_but_what_is_at_a_new_place() {
    let result = run(DOMAIN, &Identity::Original, &disks(), &HOST);
    assert_eq!(
        changed(DOMAIN, &result.xml),
        [
            "<genid/>",
            "<nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/restore/nvram.fd</nvram>",
            "<disk type='file' device='disk' snapshot='external'>",
            "<driver name='qemu' type='qcow2' cache='none' io='native'/>",
            "<source file='/restore/it&apos;s/vda.qcow2'/>",
            "<disk type='file' device='disk'>",
            "<source file='/restore/it&apos;s/vdb.qcow2'/>",
            "<driver name='qemu' type='qcow2'/></disk>",
        ]
    );
    assert!(!result.xml.contains("backingStore") && !result.xml.contains("<auth"));
    assert!(result.xml.ends_with("  <!-- kept -->\n</domain>\n"));
    assert_eq!(result.notes, [""; 0]);
    roxmltree::Document::parse(&result.xml).unwrap();
}

#[test]
fn a_clone_shares_nothing_that_two_domains_cannot_share() {
    let result = run(DOMAIN, &copy(false), &disks(), &HOST);
    let uuid = "44444444-4444-4444-4444-444444444444";
    let xml = &result.xml;
    assert!(xml.contains("<name>web1 &amp; copy</name>"), "{xml}");
    assert!(xml.contains(&format!("<uuid>{uuid}</uuid>")), "{xml}");
    assert!(xml.contains(&format!("<entry name='uuid'>{uuid}</entry>")));
    assert!(!xml.contains("11111111") && !xml.contains("52:54:00:11"));
    assert_eq!(xml.matches("52:54:00:99:99:99").count(), 2);
    assert_eq!(xml.matches("<link state='down'/>").count(), 2);
    assert!(!xml.contains("/var/lib/libvirt/qemu/channel/"));
    assert!(xml.contains("<graphics type='vnc' autoport='yes'/>"));
    assert_eq!(
        result.notes,
        ["the display was on port 5901; the clone's gets a free port"]
    );
    roxmltree::Document::parse(xml).unwrap();
}

/// The XML and the notes of a clone of a domain with these devices.
fn clone_of(devices: &str, host: &[&str]) -> (String, Vec<String>) {
    let xml = format!("<domain><uuid/><name/><devices>{devices}</devices></domain>");
    let result = run(&xml, &copy(true), &[], host);
    roxmltree::Document::parse(&result.xml).unwrap();
    let start = result.xml.find("<devices>").unwrap() + "<devices>".len();
    let end = result.xml.find("</devices>").unwrap();
    (result.xml[start..end].to_owned(), result.notes)
}

#[test]
fn what_the_original_writes_a_clone_writes_beside_its_disks() {
    let (xml, notes) = clone_of(
        "<serial type='file'><source path='/log/web1.log' append='on'/><target port='0'/></serial>\
         <serial type='pty'><log file='/other/web1.log' append='on'/></serial>\
         <console type='file'><source path='/log/web1.log' append='on'/></console>\
         <parallel type='file'><source path='/log/printer'/></parallel>",
        &["/restore/it's/printer"],
    );
    assert_eq!(
        xml,
        "<serial type='file'><source path='/restore/it&apos;s/web1.log' append='on'/><target port='0'/></serial>\
         <serial type='pty'><log file='/restore/it&apos;s/web1-2.log' append='on'/></serial>\
         <console type='file'><source path='/restore/it&apos;s/web1.log' append='on'/></console>\
         <parallel type='file'><source path='/restore/it&apos;s/printer-2'/></parallel>"
    );
    assert_eq!(
        notes,
        [
            "the original writes to /log/web1.log, the clone to /restore/it's/web1.log",
            "the original writes to /other/web1.log, the clone to /restore/it's/web1-2.log",
            "the original writes to /log/printer, the clone to /restore/it's/printer-2",
        ]
    );
}

#[test]
fn sockets_ports_and_devices_of_the_host_become_terminals_of_a_clone() {
    let (xml, notes) = clone_of(
        "<serial type='tcp'><source mode='bind' host='127.0.0.1' service='4555'/><protocol type='telnet'/><target port='0'/></serial>\
         <serial type='udp'><source mode='bind' service='1'/><source mode='connect' service='2'/></serial>\
         <parallel type='dev'><source path='/dev/parport0'/></parallel>\
         <channel type='unix'><source mode='connect' path='/run/a.sock'/><target type='virtio' name='a'/></channel>\
         <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>",
        &[],
    );
    assert_eq!(
        xml,
        "<serial type='pty'><target port='0'/></serial>\
         <serial type='pty'></serial>\
         <parallel type='pty'></parallel>\
         <channel type='unix'><target type='virtio' name='a'/></channel>\
         <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>"
    );
    assert_eq!(
        notes,
        [
            "a serial device was connected to tcp 127.0.0.1:4555 of the host; the clone's is a pseudo-terminal",
            "a serial device was connected to udp :1 of the host; the clone's is a pseudo-terminal",
            "a parallel device was connected to dev /dev/parport0 of the host; the clone's is a pseudo-terminal",
            "a channel was connected to the socket /run/a.sock; libvirt chooses one for the clone",
        ]
    );
}

#[test]
fn names_and_numbers_that_are_unique_on_a_host_are_chosen_anew_for_a_clone() {
    let (xml, notes) = clone_of(
        "<graphics type='spice' tlsPort='5902' autoport='no'/>\
         <graphics type='vnc' socket='/run/vnc' websocket='5700'><listen type='socket' socket='/run/vnc'/></graphics>\
         <vsock model='virtio'><cid auto='no' address='5'/></vsock>\
         <interface type='bridge'><target dev='tap-web1'/><virtualport type='openvswitch'>\
         <parameters interfaceid='66666666-6666-6666-6666-666666666666'/></virtualport></interface>\
         <interface type='user'><portForward proto='tcp'><range start='2022' to='22'/></portForward></interface>\
         <tpm model='tpm-crb'><backend type='emulator'><source type='dir' path='/tpm'/></backend></tpm>",
        &[],
    );
    assert_eq!(
        xml,
        "<graphics type='spice' autoport='yes'/>\
         <graphics type='vnc' websocket='-1'><listen type='socket'/></graphics>\
         <vsock model='virtio'><cid auto='yes'/></vsock>\
         <interface type='bridge'><virtualport type='openvswitch'>\
         <parameters/></virtualport></interface>\
         <interface type='user'></interface>\
         <tpm model='tpm-crb'><backend type='emulator'></backend></tpm>"
    );
    assert_eq!(notes.len(), 7, "{notes:#?}");
}

#[test]
fn what_both_would_write_to_a_clone_does_not_have() {
    let (xml, notes) = clone_of(
        "<memory model='nvdimm'><source><path>/pmem/web1</path></source></memory>\
         <lease><key>web1</key><target path='/lease'/></lease>\
         <disk type='file' device='floppy'><source file='/a.img'/><target dev='fda'/></disk>\
         <smartcard mode='passthrough' type='tcp'><source mode='bind' host='::' service='3'/></smartcard>",
        &["/a.img"],
    );
    assert_eq!(
        xml,
        "<disk type='file' device='floppy'><target dev='fda'/></disk>"
    );
    assert_eq!(notes.len(), 4, "{notes:#?}");
}

#[test]
fn a_clone_touches_nothing_of_the_host_that_the_original_has() {
    let (xml, notes) = clone_of(
        "<hostdev type='pci'/><hostdev type='usb'/><shmem name='ring'/>\
         <filesystem><source dir='/srv'/></filesystem>\
         <input type='passthrough'/><input type='tablet'/>\
         <interface type='hostdev'/><interface type='vdpa'/>\
         <interface type='direct'><source dev='eth0' mode='passthrough'/></interface>\
         <tpm model='tpm-tis'><backend type='passthrough'/></tpm>",
        &[],
    );
    assert_eq!(xml, "<input type='tablet'/>");
    assert_eq!(notes.len(), 8, "{notes:#?}");
    let qemu = "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\
                <qemu:commandline><qemu:arg value='-S'/></qemu:commandline></domain>";
    let clone = run(qemu, &copy(true), &[], &[]);
    assert!(!clone.xml.contains("-S"), "{}", clone.xml);
    assert_eq!(clone.notes.len(), 1);
    let original = run(qemu, &Identity::Original, &[], &[]);
    assert_eq!((&original.xml[..], original.notes.len()), (qemu, 0));
}

#[test]
fn of_an_emulated_tpm_it_is_told_that_its_state_is_not_put_back() {
    let xml = "<domain><devices><tpm><backend type='emulator'/></tpm></devices></domain>";
    let original = run(xml, &Identity::Original, &[], &[]);
    assert_eq!(original.xml, xml);
    assert!(
        original.notes[0].contains("is not put back"),
        "{:?}",
        original.notes
    );
    let clone = run(xml, &copy(true), &[], &[]);
    assert!(clone.notes[0].contains("starts empty"), "{:?}", clone.notes);
}

#[test]
fn a_clone_with_network_keeps_its_links() {
    let result = run(DOMAIN, &copy(true), &disks(), &HOST);
    assert!(!result.xml.contains("state='down'"));
    assert!(result.xml.contains("<link state='up'/>"));
    assert!(!result.xml.contains("52:54:00:22"));
}

#[test]
fn files_that_the_host_lacks_are_replaced_dropped_or_named() {
    let result = run(DOMAIN, &Identity::Original, &disks(), &[]);
    assert!(!result.xml.contains("debian.iso"));
    assert!(result.xml.contains("<target dev='sda' bus='sata'/>"));
    assert_eq!(
        result.notes,
        [
            "the loader /usr/share/OVMF/OVMF_CODE.fd is not on this host, and not in the point",
            "the kernel /boot/vmlinuz is not on this host, and not in the point",
            "sda: /iso/debian.iso is not on this host; the drive is left empty",
        ]
    );
}

#[test]
fn a_drive_whose_medium_cannot_be_found_is_left_empty() {
    let drives = "<disk type='volume' device='cdrom'><source pool='isos' volume='a.iso'/><target dev='sda'/></disk>\
        <disk type='volume' device='cdrom'><source pool='isos' volume='b.iso'/><target dev='sdb'/></disk>\
        <disk type='network' device='cdrom'><auth username='u'/><source protocol='https' name='c.iso'/>\
        <target dev='sdc'/></disk>\
        <disk type='volume' device='disk'><source pool='isos' volume='d'/><target dev='vda'/><readonly/></disk>\
        <disk type='network' device='disk'><source protocol='nbd' name='e'/><target dev='vdb'/><readonly/></disk>";
    let xml = format!("<domain><devices>{drives}</devices></domain>");
    let result = run(&xml, &Identity::Original, &[], &["isos/a.iso"]);
    assert_eq!(
        result.xml,
        "<domain><devices><disk type='volume' device='cdrom'><source pool='isos' volume='a.iso'/>\
         <target dev='sda'/></disk><disk type='file' device='cdrom'><target dev='sdb'/></disk>\
         <disk type='file' device='cdrom'><target dev='sdc'/></disk>\
         <disk type='network' device='disk'><source protocol='nbd' name='e'/><target dev='vdb'/><readonly/></disk>\
         </devices></domain>"
    );
    assert_eq!(
        result.notes,
        [
            "sdb: the volume b.iso of the pool isos is not on this host; the drive is left empty",
            "sdc: c.iso (https) is not on this host; the drive is left empty",
            "vda: the volume d of the pool isos is not on this host; the disk is left out",
        ]
    );
}

#[test]
fn a_raw_image_has_none_of_the_settings_of_qcow2() {
    let disk = "<disk type='file'><driver name='qemu' type='qcow2' discard_no_unref='on'><metadata_cache>\
        <max_size>1</max_size></metadata_cache></driver><source file='/a'/><target dev='vda'/></disk>";
    let xml = format!("<domain><devices>{disk}</devices></domain>");
    let mut disks = disks();
    let kept = run(&xml, &Identity::Original, &disks, &[]).xml;
    assert!(kept.contains("metadata_cache") && kept.contains("discard_no_unref"));
    disks[0].format = "raw";
    let raw = run(&xml, &Identity::Original, &disks, &[]).xml;
    assert!(
        raw.contains("<driver name='qemu' type='raw'></driver>"),
        "{raw}"
    );
}

#[test]
fn a_clone_never_writes_to_a_disk_of_the_original() {
    let result = run(DOMAIN, &copy(false), &disks()[..1], &HOST);
    assert!(!result.xml.contains("dev='vdb'"));
    assert!(
        result
            .notes
            .contains(&"vdb was not restored: the clone does not have it".to_owned()),
        "{:?}",
        result.notes
    );
    let original = run(DOMAIN, &Identity::Original, &disks()[..1], &HOST);
    assert!(original.xml.contains("name='pool/web1'"));
}

#[test]
fn firmware_variables_in_the_new_form_are_moved_too() {
    let xml = "<domain><os><nvram type='file' format='qcow2' template='/t'>\
               <source file='/var/lib/libvirt/qemu/nvram/web1_VARS.fd'/></nvram></os></domain>";
    let result = run(xml, &Identity::Original, &[], &[]);
    assert!(
        result
            .xml
            .contains("<nvram format='qcow2' template='/t'>/restore/nvram.fd</nvram>"),
        "{}",
        result.xml
    );
}

#[test]
fn a_clone_without_firmware_variables_gets_fresh_ones() {
    let xml = "<domain><os><nvram template='/t'>/other</nvram></os></domain>";
    let result = run(xml, &copy(false), &[], &[]);
    assert!(
        result.xml.contains("<nvram template='/t'/>"),
        "{}",
        result.xml
    );
    let original = run(xml, &Identity::Original, &[], &[]);
    assert_eq!(original.xml, xml);
}

#[test]
fn a_clone_gets_the_identity_that_its_xml_did_not_have() {
    let result = run("<domain type='kvm'/>", &copy(false), &[], &[]);
    assert_eq!(
        result.xml,
        "<domain type='kvm'><uuid>44444444-4444-4444-4444-444444444444</uuid>\
         <name>web1 &amp; copy</name></domain>"
    );
}

#[test]
fn a_lun_and_an_encrypted_image_become_plain_disks() {
    let xml = "<domain><devices>\
        <disk type='block' device='lun' rawio='yes' sgio='unfiltered'><source dev='/dev/sdx'/>\
        <target dev='vda'/></disk>\
        <disk type='file' device='disk'><source file='/luks'><encryption format='luks'/></source>\
        <target dev='vdb'/></disk></devices></domain>";
    let result = run(xml, &Identity::Original, &disks(), &[]);
    assert!(result.xml.contains("<disk type='file' device='disk'>"));
    assert!(!result.xml.contains("sgio") && !result.xml.contains("encryption"));
    assert_eq!(result.notes.len(), 2, "{:?}", result.notes);
}

#[test]
fn a_disk_that_several_shared_is_one_domains_own() {
    let xml = "<domain><devices><disk type='file'><source file='/a'/><target dev='vda'/><shareable/></disk>\
        </devices></domain>";
    let result = run(xml, &Identity::Original, &disks(), &[]);
    assert!(!result.xml.contains("shareable"), "{}", result.xml);
    assert_eq!(result.notes.len(), 1, "{:?}", result.notes);
}

#[test]
fn what_xml_cannot_hold_is_refused() {
    let identity = Identity::Clone {
        name: "a\x1bb".to_owned(),
        uuid: DomainUuid::from_bytes([0; 16]),
        network: false,
    };
    let placement = Placement {
        disks: &[],
        directory: "/restore",
        files: &[],
        host_has: &|_| true,
        host_has_volume: &|_, _| true,
        new_mac: &String::new,
    };
    let refused = |xml, identity| rewrite(xml, identity, &placement).unwrap_err().to_string();
    assert!(refused("<domain/>", &identity).contains("control characters"));
    assert!(refused("<network/>", &Identity::Original).contains("\"network\""));
    assert!(refused("not xml", &Identity::Original).contains("cannot be read"));
}

#[test]
fn a_disk_of_a_recovery_reads_from_the_server_and_waits_for_it() {
    let mut disks = disks();
    disks[0].backing = Some(Backing {
        socket: "/run/a'b".to_owned(),
        export: "vda".to_owned(),
    });
    let xml = run(DOMAIN, &Identity::Original, &disks, &[]).xml;
    assert_eq!(leaning_on(&xml, "/run/a'b").unwrap(), ["vda"]);
    assert_eq!(xml.matches("='stop'").count(), 2, "{xml}");
    assert!(!xml.contains("/images/base.qcow2"), "{xml}");
    let original = policies(DOMAIN).unwrap();
    let alone = without_server(&xml, "/run/a'b", &original)
        .unwrap()
        .unwrap();
    assert!(
        !alone.contains("nbd") && !alone.contains("'stop'"),
        "{alone}"
    );
}
