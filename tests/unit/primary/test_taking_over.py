"""What a primary takes from a hand-over, and gives: the VM's own folders, its name, and its disks as they are."""

from __future__ import annotations

import uuid
from pathlib import Path

import msgspec
import pytest

from primary_agent.handing_over import look_at_disks
from primary_agent.taking_over import plan
from shared.errors import UsageError
from shared.handover import HandedDisk, HandOver
from shared.ports.file_system import RealFileSystem

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


def test_a_disk_that_an_order_had_just_enlarged_is_handed_over_as_it_is(tmp_path: Path) -> None:
    """The VM was failed over before the order came to its end: the file has either size, and both are no surprise."""
    path, larger = tmp_path / "disk.raw", 3 << 20
    record = plan(handed(), ("beta", 8443), [], 1.0)
    record = msgspec.structs.replace(record, disks=[msgspec.structs.replace(record.disks[0], larger=larger)])
    for size, told in ((1 << 20, 1 << 20), (larger, larger), (2 << 20, 1 << 20)):
        path.write_bytes(b"")
        with path.open("r+b") as file:
            file.truncate(size)
        given = handed()
        given.disks[0].path = str(path)
        look_at_disks(RealFileSystem(), given, record)
        found = path.stat()
        assert (given.disks[0].size, given.disks[0].inode) == (told, found.st_ino)
        assert given.disks[0].mtime_ns == found.st_mtime_ns
