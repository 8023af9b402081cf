"""Domains that run: their disks are copied behind a tap and out again under a guest that works on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from scripts.agent_pair import signal_process
from shared.cli.domain_xml import parse
from tests.adopt.domain_guest import DomainGuest
from tests.adopt.libvirt import Libvirt, disk_xml, domain_xml
from tests.guest.crash_image import assert_clean, judge
from tests.pair.hosts import MIB, VM, Hosts, compare, patience

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("libvirt")]

DISK = 64 * MIB
NOTES = 8
"""How many the guest makes between two events."""


def test_guest_works_on_from_adoption_to_release(hosts: Hosts, libvirt: Libvirt, boot_image: Path) -> None:
    """No downtime, no error in the guest, nothing lost: adopted live, its tap killed, and released live."""
    hosts.prepare()
    hosts.start_both()
    image = hosts.folder / "web.img"
    with image.open("wb") as file:
        file.truncate(DISK)
    with DomainGuest(libvirt, VM, boot_image, disk_xml(image)) as guest:
        guest.boot("format:formatted", "mount:mounted", "go:going").write_more(NOTES)
        told = json.loads(hosts.run("adopt", VM, "--live", "--replica", hosts.address, "--interval", "1s", "--json"))
        tap_image = hosts.folder / "web.vmr.raw"
        assert told["former_images"] == {"vda": str(image)}
        assert [disk["path"] for disk in told["disks"]] == [str(tap_image)]
        assert told["running"][0]["keeps_requests"]
        hosts.disks = [tap_image]
        guest.write_more(NOTES)
        # The former image is what it was at the switch: sound, and behind by what came since.
        former = hosts.folder / "former.raw"
        shutil.copyfile(image, former)
        hosts.wait("the link", "primary", lambda vm: vm["link"]["healthy"])
        hosts.call("primary", "vm.initial", vm=VM)
        hosts.wait_state("Replicating")
        tap = hosts.tap_pid()
        hosts.kill_tap()
        hosts.wait("another tap", "primary", lambda vm: vm["tap"] and vm["tap"]["pid"] not in (None, tap))
        guest.write_more(NOTES)
        assert former.read_bytes() == image.read_bytes()
        libvirt.virsh("suspend", VM)
        hosts.assert_same()
        libvirt.virsh("resume", VM)
        # Its next start is at the tap, too, and an error would pause it.
        inactive = parse(libvirt.virsh("dumpxml", "--inactive", VM)).disk("vda")
        assert (inactive.place, inactive.error_policies) == (
            parse(libvirt.virsh("dumpxml", VM)).disk("vda").place,
            ("stop", "stop"),
        )
        released = json.loads(hosts.run("release", VM, "--live", "--yes", "--json"))
        final = hosts.folder / "web.released.raw"
        assert released["disks"] == {"vda": str(final)}
        assert hosts.call("primary", "status")["vms"] == []
        guest.write_more(NOTES)
        guest.order("stop", "idle")
        guest.verify()
        nodes = {node["node-name"] for node in libvirt.qmp(VM, "query-named-block-nodes", flat=True)}
        assert not {node for node in nodes if node.startswith("vmreplica")}
        guest.power_off()
        notes = guest.notes
    assert_clean(final)
    assert judge(final, notes) == notes
    assert parse(libvirt.virsh("dumpxml", "--inactive", VM)).disk("vda").path == str(final)


def test_an_outage_without_the_delay_pauses_the_guest(hosts: Hosts, libvirt: Libvirt, boot_image: Path) -> None:
    """What error policy and libvirt's own start come to: nobody brings the tap back, and no error reaches the guest."""
    hosts.make_disks(DISK)
    hosts.prepare()
    hosts.start_both()
    with DomainGuest(libvirt, VM, boot_image, disk_xml(hosts.disks[0]), start=False) as guest:
        hosts.run("adopt", VM, "--replica", hosts.address)
        guest.start()
        guest.boot("format:formatted", "mount:mounted", "go:going").write_more(NOTES)
        tap = hosts.tap_pid()
        hosts.kill("primary")
        signal_process(tap, signal.SIGKILL)
        for _ in patience("the pause", {}):
            if libvirt.virsh("domstate", VM, "--reason").split() == ["paused", "(I/O", "error)"]:
                break
        hosts.start("primary")
        hosts.wait("another tap", "primary", lambda vm: vm["tap"] and vm["tap"]["pid"] not in (None, tap))
        hosts.wait("its sockets", "primary", lambda vm: vm["tap"]["running"])
        said = len(guest.notes)
        for _ in patience("the guest to go on", {}):
            # QEMU may still tell of its last attempt to connect when it is resumed for the first time.
            if libvirt.state(VM) == "paused":
                libvirt.virsh("resume", VM)
            if len(guest.notes) > said:
                break
        guest.write_more(NOTES)
        guest.order("stop", "idle")
        guest.verify()
        guest.power_off()
        notes = guest.notes
    assert judge(hosts.disks[0], notes) == notes


def test_formats_chains_and_a_copy_that_fails(hosts: Hosts, libvirt: Libvirt) -> None:
    """A raw disk and an overlay of a qcow2 image become raw ones, the same byte for byte; what fails is taken back."""
    hosts.make_disks(4 * MIB, 4 * MIB)
    hosts.prepare()
    hosts.start_both()
    root, content = hosts.disks
    base, overlay = hosts.folder / "base.qcow2", hosts.folder / "data.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", content, base], check=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", overlay], check=True)
    disks = disk_xml(root) + disk_xml(overlay, "vdb", format="qcow2")
    before = libvirt.define(domain_xml(VM, disks))
    libvirt.virsh("start", VM, "--paused")
    # Another job holds the second disk: the first one's copy has begun by then.
    libvirt.virsh("blockpull", VM, "vdb", "--bandwidth", "1", "--bytes")
    ran = hosts.command("adopt", VM, "--live", "--replica", hosts.address)
    assert (ran.returncode, "block job" in ran.stderr, "left to do" in ran.stderr) == (4, True, False), ran.stderr
    assert hosts.call("primary", "status")["vms"] == []
    assert sorted(path.name for path in hosts.folder.glob("*.vmr.raw")) == []
    assert libvirt.virsh("dumpxml", "--inactive", VM) == before
    assert not parse(libvirt.virsh("dumpxml", VM)).disk("vda").mirror
    libvirt.virsh("blockjob", VM, "vdb", "--abort")
    adopted = hosts.run("adopt", VM, "--live", "--replica", hosts.address)
    assert f"  {overlay}\n" in adopted
    assert "until its next start" in adopted
    compare(root, hosts.folder / "disk0.vmr.raw")
    compare(content, hosts.folder / "data.vmr.raw")
    # The device was started without the policy: the check says so, and that a start is needed.
    checked = hosts.command("adopt", VM, "--check")
    assert (checked.returncode, checked.stdout.count("requests wait")) == (4, 2)
    # The image is there already: nothing is overwritten by a second try.
    assert "vda of demo is served over NBD already" in hosts.command("adopt", VM, "--live").stderr
    libvirt.virsh("destroy", VM)
    assert f"vdb: {hosts.folder}/data.vmr.raw" in hosts.run("release", VM, "--yes")
    inactive = parse(libvirt.virsh("dumpxml", "--inactive", VM))
    assert [(disk.path, disk.format, disk.error_policies) for disk in inactive.disks] == [
        (f"{hosts.folder}/disk0.vmr.raw", "raw", ("", "")),
        (f"{hosts.folder}/data.vmr.raw", "raw", ("", "")),
    ]
    libvirt.virsh("start", VM)
