"""A domain of the primary becomes one of this host: its disks, networks and files, and nothing that reaches further."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from shared.cli.definition_mapping import HostMapping, mapped
from shared.errors import UsageError
from shared.guest_status import DefinitionDiskStatus

UUID = "7ad1a5e0-0f11-4b2c-9a3f-3f0f2c1d9e10"
SOCKET = f"/run/vmreplica/primary/{UUID}/nbd.sock"
HERE = f"/run/vmreplica/replica/{UUID}/nbd.sock"
KNOWN = [
    DefinitionDiskStatus(index=0, path="/images/web.raw", export="disk0"),
    DefinitionDiskStatus(index=1, path="/images/data.raw", export="disk1"),
]
URIS = {0: f"nbd+unix:///disk-0?socket={HERE}", 1: f"nbd+unix:///disk-1?socket={HERE}"}
NVRAM = "/var/lib/libvirt/qemu/nvram/web_VARS.fd"
DOMAIN = f"""<!-- as libvirt writes it -->
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web</name>
  <uuid>{UUID}</uuid>
  <memory unit='KiB'>2097152</memory>
  <vcpu placement='static'>2</vcpu>
  <sysinfo type='smbios'><system><entry name='uuid'>{UUID}</entry></system></sysinfo>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>{NVRAM}</nvram>
    <kernel>/etc/shadow</kernel>
  </os>
  <features><acpi/></features>
  <seclabel type='none'/>
  <devices>
    <emulator>/tmp/evil</emulator>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw' discard='unmap' error_policy='stop' rerror_policy='stop'/>
      <source protocol='nbd' name='disk0'><host transport='unix' socket='{SOCKET}'/></source>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <source file='/images/data.raw'/><target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <source file='/images/scratch.raw'/><target dev='vdc' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'>
      <source file='/images/install.iso'/><target dev='sda' bus='sata'/><readonly/>
    </disk>
    <interface type='bridge'>
      <mac address='52:54:00:12:34:56'/><source bridge='br0'/><target dev='vnet3'/><script path='/tmp/evil'/>
    </interface>
    <interface type='network'><mac address='52:54:00:12:34:57'/><source network='default'/></interface>
    <serial type='file'><source path='/etc/cron.d/evil'/></serial>
    <console type='pty'><target type='serial' port='0'/></console>
    <channel type='unix'>
      <source mode='bind' path='/etc/evil.sock'/><target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
    <graphics type='vnc' port='-1' passwd='geheim'/>
    <input type='evdev'><source dev='/dev/input/event0'/></input>
    <hostdev mode='subsystem' type='pci'/>
    <filesystem type='mount'><source dir='/'/><target dir='root'/></filesystem>
    <rng model='virtio'><backend model='random'>/etc/shadow</backend></rng>
    <memballoon model='virtio'/>
  </devices>
  <qemu:commandline><qemu:arg value='-incoming'/></qemu:commandline>
</domain>
"""


def here(**options: Any) -> tuple[ET.Element, list[str], Any]:
    mapping: dict[str, Any] = {
        "disks": URIS,
        "networks": {"br0": "br7"},
        "files": {NVRAM: "/out/1-web_VARS.fd"},
        "uuid": UUID,
    }
    result = mapped(DOMAIN.encode(), KNOWN, HostMapping(**(mapping | options)), "web")
    return ET.fromstring(result.text), result.notes, result


def test_disks_networks_and_files_are_those_of_this_host() -> None:
    root, notes, result = here()
    disks = root.findall("devices/disk[@device='disk']")
    assert [disk.find("source").attrib for disk in disks] == [  # type: ignore[union-attr]
        {"protocol": "nbd", "name": "disk-0"},
        {"protocol": "nbd", "name": "disk-1"},
    ]
    assert {host.get("socket") for host in root.iterfind("devices/disk/source/host")} == {HERE}
    assert root.findtext("os/nvram") == "/out/1-web_VARS.fd"
    assert root.findtext("os/loader") == "/usr/share/OVMF/OVMF_CODE_4M.fd"
    sources = [each.find("source").attrib for each in root.iterfind("devices/interface")]  # type: ignore[union-attr]
    assert sources == [{"bridge": "br7"}, {"network": "default"}]
    assert (root.findtext("name"), root.findtext("uuid"), result.missing_disks) == ("web", UUID, [])
    assert root.find("devices/interface/mac").get("address") == "52:54:00:12:34:56"  # type: ignore[union-attr]
    assert any("vdc (/images/scratch.raw) was left out" in note for note in notes)


def test_nothing_of_the_other_hosts_choice_reaches_this_one() -> None:
    text = here(secrets=True)[2].text
    for reach in ("evil", "/etc/shadow", "hostdev", "filesystem", "seclabel", "commandline", "event0", "install.iso"):
        assert reach not in text, reach
    # What the VM is stays.
    root, notes, _ = here()
    kept = {element.tag for element in root.find("devices") or []}
    assert kept == {"disk", "interface", "console", "channel", "graphics", "rng", "memballoon"}
    assert any("hostdev" in note for note in notes)
    assert "geheim" in text and "geheim" not in ET.tostring(root, encoding="unicode")


def test_a_test_is_another_vm_and_on_no_network_that_is_not_named() -> None:
    other = "00000000-0000-4000-8000-000000000001"
    root, notes, result = here(test=True, uuid=other, networks={"default": "isolated"})
    assert (root.findtext("name"), root.findtext("uuid"), result.name) == ("web - Test", other, "web - Test")
    assert root.find("sysinfo/system/entry") is None and root.find("devices/interface/mac") is None
    first, second = root.findall("devices/interface")
    assert first.get("type") == "user" and first.find("source") is None
    assert first.find("link").get("state") == "down"  # type: ignore[union-attr]
    assert second.find("source").get("network") == "isolated"  # type: ignore[union-attr]
    assert any("br0 has its link down" in note for note in notes)


def test_disks_that_are_not_served_are_named() -> None:
    root, _, result = here(disks={1: URIS[1]})
    assert result.missing_disks == [0]
    assert root.find("devices/disk/source/host").get("socket") == "{disk0}"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "content, said",
    [
        (b"<!DOCTYPE d [<!ENTITY a 'aaaa'>]><domain><name>&a;</name></domain>", "entities"),
        (b"<domain>" + b"<x>" * 200 + b"</x>" * 200 + b"</domain>", "nested deeper"),
        (b"<domain><name>" + b"a" * (1 << 20) + b"</name></domain>", "at most"),
        (b"<domain><name>web</domain>", "no XML"),
        (b"<network><name>web</name></network>", "not the XML of a libvirt domain"),
        ("<domain><name>wéb</name></domain>".encode("utf-16"), "UTF-8"),
    ],
)
def test_what_is_no_domain_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        mapped(content, KNOWN, HostMapping({}, {}, {}), "web")


def test_placeholders_of_a_command_are_filled_in() -> None:
    text = (
        "qemu -name {name} -uuid {uuid} -blockdev {disk0},{disk2} -nic bridge,br={network:br0} -pflash {file:VARS.fd}"
    )
    mapping = HostMapping(URIS, {"br0": "br7"}, {"/nvram/VARS.fd": "/out/1-VARS.fd"}, uuid=UUID)
    result = mapped(text.encode(), KNOWN, mapping, "web")
    assert result.text == (
        f"qemu -name web -uuid {UUID} -blockdev {URIS[0]},{{disk2}} -nic bridge,br=br7 -pflash /out/1-VARS.fd"
    )
    assert result.missing_disks == [2] and not result.is_domain
    assert any("Disk 1 (/images/data.raw) is not named" in note for note in result.notes)
