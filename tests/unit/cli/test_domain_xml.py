"""Domains of many shapes: which disks may go behind a tap, and what their XML is there and back."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from shared.cli.domain_xml import Place, choose, is_tap_socket, nbd_disk, parse, plain_disk, put_back, put_behind_taps
from shared.cli.virsh import reachable
from shared.errors import InvalidStateError, NotFoundError, UsageError

UUID = "6d5f5e0a-7c66-4f0b-9a52-0f3a5a8b1c11"
PLACE = Place(f"/run/vmreplica/primary/{UUID}/nbd.sock", "disk0")
DATA = Place(PLACE.socket, "disk1")
FILE = """
<disk type='file' device='disk' snapshot='external'>
  <driver name='qemu' type='raw' cache='none' io='native' discard='unmap' queues='4' error_policy='enospace'/>
  <source file='/images/web.raw' startupPolicy='optional'><seclabel model='dac' relabel='no'/></source>
  <backingStore/>
  <target dev='vda' bus='virtio'/>
  <iotune><total_iops_sec>500</total_iops_sec></iotune>
  <serial>A&amp;B</serial>
  <boot order='1'/>
  <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
</disk>"""
BLOCK = "<disk type='block'><source dev='/dev/vg/data'/><target dev='sda' bus='scsi'/></disk>"
CDROM = "<disk type='file' device='cdrom'><target dev='sdb' bus='sata'/><readonly/></disk>"


def domain(*disks: str) -> str:
    return (
        "<domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
        f"<name>web</name><uuid>{UUID}</uuid>"
        "<metadata><os:info xmlns:os='http://example.org/os'><os:id>x</os:id></os:info></metadata>"
        f"<devices>{''.join(disks)}<interface type='user'/></devices>"
        "<qemu:commandline><qemu:arg value='-snapshot'/></qemu:commandline></domain>"
    )


def canonical(xml: str) -> str:
    return ET.canonicalize(xml, strip_text=True)


def test_disks_are_read() -> None:
    web = parse(domain(FILE, BLOCK, CDROM))
    assert (web.name, web.uuid) == ("web", UUID)
    assert [(disk.target, disk.device, disk.kind, disk.format, disk.path) for disk in web.disks] == [
        ("vda", "disk", "file", "raw", "/images/web.raw"),
        ("sda", "disk", "block", "raw", "/dev/vg/data"),
        ("sdb", "cdrom", "file", "raw", ""),
    ]
    assert web.disk("vda").error_policies == ("enospace", "")
    assert web.behind_taps() == ()
    with pytest.raises(NotFoundError, match="no disk vdx"):
        web.disk("vdx")


def test_behind_the_tap_all_but_the_source_stays() -> None:
    text = put_behind_taps(domain(FILE, BLOCK, CDROM), {"vda": PLACE, "sda": DATA})
    web = parse(text)
    assert [disk.place for disk in web.disks] == [PLACE, DATA, None]
    assert [disk.target for disk in web.behind_taps()] == ["vda", "sda"]
    vda = web.disk("vda")
    assert (vda.kind, vda.format, vda.error_policies, vda.reconnect_seconds) == ("network", "raw", ("stop", "stop"), 30)
    driver = vda.element.find("driver")
    assert driver is not None
    # `io` is about files; the cache mode is kept, and so is what else the driver does.
    assert driver.attrib == {
        "name": "qemu", "type": "raw", "cache": "none", "discard": "unmap", "queues": "4",
        "error_policy": "stop", "rerror_policy": "stop",
    }  # fmt: skip
    assert [child.tag for child in vda.element] == ["driver", "source", "target", "iotune", "serial", "boot", "address"]
    assert web.disk("sda").error_policies == ("stop", "stop")
    # The rest is as it was, namespaces and all.
    assert "<qemu:commandline>" in text
    assert "<os:id>x</os:id>" in text
    cdrom = web.disk("sdb").element
    assert canonical(ET.tostring(cdrom, encoding="unicode")) == canonical(CDROM)


def test_flushes_reach_the_tap() -> None:
    unsafe = FILE.replace("cache='none'", "cache='unsafe'")
    assert parse(put_behind_taps(domain(unsafe), {"vda": PLACE})).disk("vda").cache == ""


def test_back_again_it_is_what_it_was() -> None:
    before = domain(FILE, BLOCK)
    adopted = put_behind_taps(before, {"vda": PLACE, "sda": DATA})
    back = put_back(adopted, {"vda": ("file", "/images/web.raw"), "sda": ("block", "/dev/vg/data")}, parse(before))
    assert parse(back).disk("vda").error_policies == ("enospace", "")
    # libvirt names the driver by itself; all else is as before, attribute for attribute.
    wanted = domain(FILE, BLOCK.replace("<source", "<driver name='qemu' type='raw'/><source"))
    assert canonical(back) == canonical(wanted)


def test_back_where_the_former_domain_is_not_known() -> None:
    adopted = put_behind_taps(domain(FILE), {"vda": PLACE})
    disk = parse(put_back(adopted, {"vda": ("file", "/images/other.raw")}, None)).disk("vda")
    assert (disk.kind, disk.path, disk.format, disk.error_policies) == ("file", "/images/other.raw", "raw", ("", ""))
    assert disk.cache == "none"


def test_destinations_of_copies() -> None:
    disk = parse(domain(FILE)).disk("vda")
    assert nbd_disk(PLACE, disk) == (
        '<disk type="network" device="disk"><driver name="qemu" type="raw" discard="unmap" />'
        f'<source protocol="nbd" name="disk0"><host transport="unix" socket="{PLACE.socket}" />'
        '<reconnect delay="30" /></source></disk>'
    )
    assert plain_disk("block", "/dev/vg/x", disk).endswith('<source dev="/dev/vg/x" /></disk>')


@pytest.mark.parametrize(
    "change, live, text",
    [
        (("<boot order='1'/>", "<readonly/>"), True, "is read-only"),
        (("<boot order='1'/>", "<shareable/>"), True, "is shared"),
        (("<boot order='1'/>", "<transient/>"), True, "is transient"),
        (("<boot order='1'/>", "<mirror type='file' job='copy'/>"), True, "has a block job"),
        (("<boot order='1'/>", "<encryption format='luks'/>"), True, "is encrypted"),
        (("<seclabel model='dac' relabel='no'/>", "<encryption format='luks'/>"), True, "is encrypted"),
        (("<seclabel model='dac' relabel='no'/>", "<slices/>"), True, "is a slice"),
        (("<seclabel model='dac' relabel='no'/>", "<reservations managed='yes'/>"), True, "persistent reservations"),
        (("device='disk'", "device='lun'"), True, "is a lun device"),
        (("type='file'", "type='volume'"), True, "of type 'volume'"),
        (("type='raw'", "type='qcow2'"), False, "the format qcow2"),
        (("<backingStore/>", "<backingStore type='file'><source file='/b'/></backingStore>"), False, "backing file"),
    ],
)  # fmt: skip
def test_obstacles(change: tuple[str, str], live: bool, text: str) -> None:
    assert change[0] in FILE
    web = parse(domain(FILE.replace(*change)))
    with pytest.raises(InvalidStateError, match=text) as caught:
        choose(web, (), (), live=live)
    assert "--exclude vda" in caught.value.remedy
    # It can be left out, with others adopted.
    chosen, left = choose(parse(domain(FILE.replace(*change), BLOCK)), (), ("vda",), live=live)
    assert ([disk.target for disk in chosen], [disk.target for disk in left]) == (["sda"], ["vda"])


def test_another_format_can_be_copied() -> None:
    web = parse(domain(FILE.replace("type='raw'", "type='qcow2'")))
    assert [disk.target for disk in choose(web, (), (), live=True)[0]] == ["vda"]
    with pytest.raises(InvalidStateError) as caught:
        choose(web, (), (), live=False)
    assert "qemu-img convert -O raw /images/web.raw NEW.raw" in caught.value.remedy
    assert "--live" in caught.value.remedy


def test_chains_are_followed() -> None:
    chain = (
        "<backingStore type='file'><format type='qcow2'/><source file='/b'/>"
        "<backingStore type='block'><source dev='/dev/c'/></backingStore></backingStore>"
    )
    disk = parse(domain(FILE.replace("<backingStore/>", chain))).disk("vda")
    assert disk.chain == ("/images/web.raw", "/b", "/dev/c")


def test_disks_are_chosen_by_name() -> None:
    web = parse(domain(FILE, BLOCK, CDROM))
    assert [disk.target for disk in choose(web, (), (), live=False)[0]] == ["vda", "sda"]
    chosen, left = choose(web, ("sda",), (), live=False)
    assert ([disk.target for disk in chosen], [disk.target for disk in left]) == (["sda"], ["vda"])
    with pytest.raises(UsageError, match="both named and excluded"):
        choose(web, ("vda",), ("vda",), live=False)
    with pytest.raises(UsageError, match="No disk of web is left"):
        choose(web, (), ("vda", "sda"), live=False)
    with pytest.raises(NotFoundError):
        choose(web, (), ("vdz",), live=False)
    with pytest.raises(InvalidStateError, match="is a cdrom device"):
        choose(web, ("sdb",), (), live=False)
    adopted = parse(put_behind_taps(domain(FILE), {"vda": PLACE}))
    with pytest.raises(InvalidStateError, match="served over NBD already"):
        choose(adopted, (), (), live=False)


@pytest.mark.parametrize("text", ["", "<domain>", "<network><name>x</name></network>", "<domain><devices/></domain>"])
def test_what_is_no_domain(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


def test_sockets_of_taps() -> None:
    assert is_tap_socket(PLACE.socket)
    assert not is_tap_socket("/run/other/nbd.sock")
    assert not is_tap_socket(f"/run/{UUID}/other.sock")


def test_who_reaches_a_socket(tmp_path: Path) -> None:
    """By the modes of the socket and of each folder above it."""
    user, group = 64055, 64056
    # The folders of pytest are its user's alone.
    place = Path(os.path.realpath(f"/tmp/vmr-reach-{os.getpid()}"))
    place.mkdir()
    try:
        path = place / "nbd.sock"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            for folder_mode, mode, own_group, reached in (
                (0o711, 0o666, False, True),
                (0o711, 0o600, False, False),
                (0o700, 0o666, False, False),
                (0o711, 0o660, os.geteuid() == 0, os.geteuid() == 0),
            ):
                place.chmod(folder_mode)
                path.chmod(mode)
                if own_group:
                    os.chown(path, -1, group)
                assert reachable(str(path), user, group) is reached
            assert reachable(str(path), 0, 0)
    finally:
        (place / "nbd.sock").unlink(missing_ok=True)
        place.rmdir()
