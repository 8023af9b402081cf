"""Domains that run: their disks are copied behind a tap and out again under a guest that works on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from shared.cli.domain_xml import parse
from tests.adopt.domain_guest import DomainGuest
from tests.adopt.libvirt import Libvirt, disk_xml
from tests.guest.crash_image import assert_clean, judge
from tests.pair.hosts import MIB, VM, Hosts

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
