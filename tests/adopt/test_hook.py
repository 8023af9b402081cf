"""libvirt's hook: a domain that libvirt starts by itself has its delay, and one that comes by migration is refused."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adopt.libvirt import Libvirt, disk_xml, domain_xml
from tests.pair.hosts import MIB, VM, Hosts, patience

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("libvirt")]


@pytest.fixture
def adopted(hosts: Hosts, libvirt: Libvirt) -> Hosts:
    """Both agents, and a domain that is adopted and runs."""
    hosts.make_disks(4 * MIB)
    hosts.prepare()
    hosts.start_both()
    libvirt.define(domain_xml(VM, disk_xml(hosts.disks[0])))
    hosts.run("adopt", VM, "--replica", hosts.address, "--start")
    return hosts


@pytest.fixture
def beta(adopted: Hosts) -> Iterator[Libvirt]:
    """libvirt on another host, where the tap is not."""
    with tempfile.TemporaryDirectory(prefix="vmr-libvirt-") as folder:
        libvirt = Libvirt(Path(folder), "beta", hidden=adopted.folder / "run-primary")
        libvirt.start()
        try:
            yield libvirt
        finally:
            print(libvirt.log())
            libvirt.stop()


def delayed(libvirt: Libvirt) -> bool:
    """Whether QEMU has the connection with the delay."""
    nodes = libvirt.qmp(VM, "query-named-block-nodes", flat=True)
    return any(node["node-name"] == "vmreplica-30s-vda" for node in nodes)


def test_hook_sets_the_delay_at_each_start(adopted: Hosts, libvirt: Libvirt) -> None:
    libvirt.virsh("destroy", VM)
    libvirt.virsh("start", VM)
    assert not delayed(libvirt), "libvirt can set the delay by itself: this test has lost its point"
    libvirt.virsh("destroy", VM)
    libvirt.install_hook()
    libvirt.virsh("start", VM)
    for _ in patience("the hook's work", {}):
        if delayed(libvirt):
            break
    # Who looks while the hook is at work gets the same.
    libvirt.virsh("destroy", VM)
    libvirt.virsh("start", VM)
    assert "requests wait for a tap that restarts" in adopted.run("adopt", VM, "--check")


def test_migration_is_refused_and_the_domain_runs_on(adopted: Hosts, libvirt: Libvirt, beta: Libvirt) -> None:
    """Without the hook QEMU does not find the tap there; with it the refusal says why, and what to do."""
    migrate = ("migrate", "--live", VM, beta.uri, "--migrateuri", "tcp:127.0.0.1")
    for more in ((), ("--copy-storage-all",)):
        assert "nbd.sock" in libvirt.refused(*migrate, *more)
    beta.install_hook()
    for more in ((), ("--copy-storage-all",)):
        assert "can't be migrated: its disks are behind the tap of its host" in libvirt.refused(*migrate, *more)
    assert libvirt.state(VM) == "running"
    assert beta.virsh("list", "--all", "--name").split() == []
    assert adopted.status("primary")["tap"]["clients"] >= 1
    # A domain without a tap is none of the hook's business.
    plain = adopted.folder / "plain.raw"
    plain.write_bytes(bytes(MIB))
    libvirt.define(domain_xml("plain", disk_xml(plain)))
    libvirt.virsh("start", "plain")
    libvirt.virsh("migrate", "--live", "--unsafe", "plain", beta.uri, "--migrateuri", "tcp:127.0.0.1")
    assert beta.state("plain") == "running"
