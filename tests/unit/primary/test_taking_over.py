"""What a primary takes from a hand-over: the VM's own folders, under a name that can be given to it."""

from __future__ import annotations

import uuid

import pytest

from primary_agent.taking_over import plan
from shared.errors import UsageError
from shared.handover import HandedDisk, HandOver

VM = bytes(range(16))
UUID = str(uuid.UUID(bytes=VM))
TAP, SOCKETS = f"/srv/copies/{UUID}/tap", f"/run/vmreplica/replica/{UUID}"


def handed(tap: str = TAP, sockets: str = SOCKETS, name: str = "web") -> HandOver:
    disk = HandedDisk(index=0, uuid="61" * 16, path="/srv/copies/disk-0.raw", size=1 << 20, export="disk0")
    return HandOver(
        id="01" * 16,
        vm=VM.hex(),
        name=name,
        to="primary",
        disks=[disk],
        epoch="02" * 16,
        tap_folder=tap,
        runtime_folder=sockets,
    )


def test_only_the_folders_of_the_vm_itself_are_taken() -> None:
    """Both are written by a root agent, and deleted with the VM."""
    record = plan(handed(), ("beta", 8443), [], 1.0)
    assert record.tap is not None and (record.tap.folder, record.tap.runtime_folder) == (TAP, SOCKETS)
    other = f"/srv/copies/{uuid.UUID(int=7)}/tap"
    for tap in ("/etc", other, f"/srv/{UUID}/../../etc/{UUID}/tap", f"srv/{UUID}/tap", SOCKETS):
        with pytest.raises(UsageError, match="is no folder of the VM"):
            plan(handed(tap=tap), ("beta", 8443), [], 1.0)
    for sockets in ("", "/run", f"/run/../{UUID}", TAP):
        with pytest.raises(UsageError, match="is no folder of the VM"):
            plan(handed(sockets=sockets), ("beta", 8443), [], 1.0)
    with pytest.raises(UsageError, match="not usable as a VM's name"):
        plan(handed(name="a/b"), ("beta", 8443), [], 1.0)
