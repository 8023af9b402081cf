"""A VM with a disk that is not replicated: on record, nothing of it crosses, and a failover has only the others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from primary_agent.resync_report import report
from replica_agent.vm_status import status_of
from shared.admin.verbs import EnableParams
from shared.cli.console import Palette
from shared.cli.page import page_lines
from shared.cli.resync_text import report_lines
from shared.errors import UsageError
from shared.states import ReplicationState
from tests.pair.rig import MIB, Pair
from tests.pair.test_replica_failover import image_of

MARK = b"nobody may copy this"


def params(pair: Pair, disk: Path, *excluded: Path) -> EnableParams:
    return EnableParams(
        name="web", disks=[str(disk)], replica=f"localhost:{pair.port}", interval_seconds=1.0,
        exclude=tuple(str(path) for path in excluded),
    )  # fmt: skip


def holders(folder: Path) -> list[Path]:
    """Files in which the mark is."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if MARK in path.read_bytes()]


async def test_an_excluded_disk_takes_no_part(pair: Pair, tmp_path: Path) -> None:
    disk, scratch = pair.disk(0), pair.folder / "scratch.raw"
    disk.write_bytes(os.urandom(MIB) + bytes(3 * MIB))
    scratch.write_bytes(MARK * 1000 + bytes(4 * MIB - 1000 * len(MARK)))
    await pair.primary.enable(params(pair, disk, scratch))
    await pair.healthy()
    await pair.vm.initial()
    await pair.state(ReplicationState.REPLICATING)
    with scratch.open("r+b") as file:
        # The guest has it without a tap.
        file.seek(2 * MIB)
        file.write(MARK * 1000)
    await pair.write(0, "write -P 0x31 1M 64k")
    await pair.assert_same()
    await pair.vm.resume(resynchronize=True)
    await pair.until("its end", lambda: pair.vm.parts.replication.record.causes == [])
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
    status, shown = await pair.vm.status(), report(pair.vm)
    assert status.excluded_disks == [str(scratch)] == shown.excluded
    assert [each.path for each in status.disks] == [str(disk)]
    page = "\n".join(page_lines(status, 0.0, None, Palette(False)))
    assert "not replicated" in page and str(scratch) in page
    assert f"  {scratch} is not replicated, and takes no part." in report_lines("web", shown, None)
    assert shown.last is not None and [each.index for each in shown.last.disks] == [0]
    assert shown.last.total("compared_bytes") == 4 * MIB == shown.disk_bytes
    assert holders(pair.folder) == [scratch]
    # It is still on record after a restart of the agent.
    await pair.primary.stop()
    await pair.start_primary()
    assert pair.vm.record.excluded == [str(scratch)]
    truth = disk.read_bytes()
    await pair.copy.failover()
    (uri,) = status_of(pair.copy).uris
    assert await image_of(uri, tmp_path) == truth


@pytest.mark.parametrize("name", ["disk0.raw", "../disk0.raw", "twice"])
async def test_what_can_not_be_excluded(pair: Pair, name: str) -> None:
    pair.disk(0).write_bytes(bytes(MIB))
    excluded = [pair.folder / "a", pair.folder / "a"] if name == "twice" else [pair.folder / name]
    with pytest.raises(UsageError):
        await pair.primary.enable(params(pair, pair.disk(0), *excluded))
    assert not pair.primary.vms
