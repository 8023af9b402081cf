"""Domains that are off: their disks go behind a tap and back, and whatever fails leaves them as they were."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from shared.cli.domain_xml import parse
from tests.adopt.libvirt import Libvirt, disk_xml, domain_xml
from tests.pair.hosts import MIB, VM, Hosts

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("libvirt")]


def canonical(xml: str) -> str:
    return ET.canonicalize(xml, strip_text=True)


def prepared(hosts: Hosts, *sizes: int) -> None:
    """Both agents, without a VM, and disks."""
    hosts.make_disks(*sizes)
    hosts.prepare()
    hosts.start_both()


def test_adopted_started_and_released(hosts: Hosts, libvirt: Libvirt) -> None:
    """Three buses, a CD drive and an excluded disk: adopted with a start, started again by libvirt, and released."""
    prepared(hosts, 4 * MIB, 4 * MIB, 4 * MIB, MIB)
    root, data, sata, swap = hosts.disks
    disks = (
        disk_xml(root, more="<boot order='1'/><serial>ROOT</serial>")
        + disk_xml(data, "sda", bus="scsi")
        + disk_xml(sata, "sdb", bus="sata")
        + disk_xml(swap, "vdb")
        + "<disk type='file' device='cdrom'><target dev='sdc' bus='sata'/><readonly/></disk>"
    )
    controller = "<controller type='scsi' model='virtio-scsi'/>"
    before = libvirt.define(domain_xml(VM, disks, devices=controller))
    adopted = hosts.run(
        "adopt", VM, "--replica", hosts.address, "--interval", "1s", "--exclude", "vdb", "--start", "--json"
    )
    told = json.loads(adopted)
    assert [disk["path"] for disk in told["disks"]] == [str(root), str(data), str(sata)]
    assert [(disk["keeps_requests"], disk["write_errors"], disk["read_errors"]) for disk in told["running"]] == [
        (True, "stop", "stop")
    ] * 3
    vm = hosts.status("primary")
    assert vm["uuid"] == parse(before).uuid
    assert vm["excluded_disks"] == [str(swap)]
    # What the domain has beside its disks' sources is as it was.
    now = parse(libvirt.virsh("dumpxml", VM))
    assert [disk.target for disk in now.behind_taps()] == ["vda", "sda", "sdb"]
    assert now.disk("vda").element.findtext("serial") == "ROOT"
    assert now.disk("vdb").path == str(swap)
    # QEMU really is at the tap, and waits for one that restarts.
    assert hosts.wait("QEMU", "primary", lambda vm: vm["tap"]["clients"] >= 3)["tap"]["pid"]
    hosts.disks = [root, data, sata]
    hosts.wait("the link", "primary", lambda vm: vm["link"]["healthy"])
    hosts.call("primary", "vm.initial", vm=VM)
    hosts.wait_state("Replicating")
    hosts.assert_same()
    # libvirt starts it anew: what `--check` is for, which libvirt's hook runs.
    libvirt.virsh("destroy", VM)
    again = hosts.command("adopt", VM, "--exclude", "vdb")
    assert (again.returncode, "vda of demo is served over NBD already" in again.stderr) == (4, True)
    libvirt.virsh("start", VM)
    checked = json.loads(hosts.run("adopt", VM, "--check", "--json"))
    assert all(disk["keeps_requests"] for disk in checked["disks"])
    refused = hosts.command("release", VM, "--yes")
    assert (refused.returncode, "not off (running)" in refused.stderr) == (4, True)
    libvirt.virsh("destroy", VM)
    asked = hosts.command("release", VM)
    assert (asked.returncode, "Nothing was changed" in asked.stderr) == (2, True)
    assert "no longer replicated" in hosts.run("release", VM, "--yes")
    assert canonical(libvirt.virsh("dumpxml", "--inactive", VM)) == canonical(before)
    assert hosts.call("primary", "status")["vms"] == []
    # The images are QEMU's again.
    libvirt.virsh("start", VM)
    assert libvirt.state(VM) == "running"


def qcow2(folder: Path, name: str, *more: str) -> Path:
    path = folder / name
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *more, str(path), "4M"], check=True)
    return path


def test_what_is_refused_changes_nothing(hosts: Hosts, libvirt: Libvirt) -> None:
    """Every refusal, and a start that fails after everything else was done: domain and agent are as before."""
    prepared(hosts, 4 * MIB)
    (raw,) = hosts.disks
    good, other = disk_xml(raw), disk_xml(qcow2(hosts.folder, "data.qcow2"), "vdb", format="qcow2")

    def refused(code: int, text: str, *more: str) -> None:
        before = libvirt.virsh("dumpxml", "--inactive", VM)
        ran = hosts.command("adopt", VM, "--replica", hosts.address, *more)
        assert (ran.returncode, ran.stdout) == (code, "")
        assert text in ran.stderr
        assert libvirt.virsh("dumpxml", "--inactive", VM) == before
        assert hosts.call("primary", "status")["vms"] == []

    sound = libvirt.define(domain_xml(VM, good + other))
    refused(4, f"qemu-img convert -O raw {hosts.folder}/data.qcow2 NEW.raw")
    refused(3, "has no disk vdc", "--disk", "vdc")
    refused(4, "does not run", "--live")
    libvirt.virsh("start", VM)
    refused(4, "is not off (running)", "--exclude", "vdb")
    overlays = [f"--diskspec={target},file={hosts.folder}/{target}.overlay" for target in ("vda", "vdb")]
    libvirt.virsh("snapshot-create-as", VM, "s1", "--disk-only", *overlays)
    refused(4, "has the snapshot s1", "--live")
    libvirt.virsh("destroy", VM)
    libvirt.virsh("snapshot-delete", VM, "s1", "--metadata")
    refused(4, "vda of demo has the format qcow2", "--exclude", "vdb")
    libvirt.define(sound)
    libvirt.virsh("start", VM)
    libvirt.virsh("managedsave", VM)
    refused(4, "has a saved state", "--exclude", "vdb")
    libvirt.virsh("managedsave-remove", VM)
    # The last step fails: all others are taken back.
    libvirt.define(sound.replace("</os>", "<kernel>/nowhere/kernel</kernel></os>"))
    refused(4, "/nowhere/kernel", "--exclude", "vdb", "--start")
    libvirt.define(sound)
    libvirt.virsh("start", VM)
    assert libvirt.state(VM) == "running"
