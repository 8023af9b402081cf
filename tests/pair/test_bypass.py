"""I3, I10: a block device that was seen open for writing past its tap is compared as a whole before it is in step."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from primary_agent.attachments import AttachmentWatch
from primary_agent.bypassing import lasting
from shared.admin.verbs import DiskUseParams, EnableParams
from shared.planning import ResyncCause
from shared.ports import Peer
from shared.ports.disk_use import DiskUser, ProcDiskUse, Usage
from shared.states import ReplicationState
from shared.status import Cause
from tests.pair.loop_device import LoopDevice, loop_device
from tests.pair.rig import Pair
from tests.pair.test_attachment import Seen

MIB = 1 << 20
SIZE = 8 * MIB
_S = ReplicationState


@pytest.fixture
def device(tmp_path: Path) -> Iterator[LoopDevice]:
    with loop_device(tmp_path, SIZE) as device:
        Path(device.path).write_bytes(os.urandom(SIZE))
        yield device


async def told(_vm: str, _uuid: str, _cause: Cause) -> None:
    return None


async def enable(pair: Pair, device: LoopDevice) -> None:
    params = EnableParams(name="web", disks=[device.path], replica=f"localhost:{pair.port}", interval_seconds=1.0)
    await pair.primary.enable(params)
    await pair.healthy()


async def read_rate(pair: Pair, *rate: int) -> None:
    """Cap the reading of compares, so that one lasts; without figures nothing caps it."""
    record = msgspec.structs.replace(pair.vm.record, resync_read_rate=[*rate], initial_read_rate=[*rate])
    await pair.vm.set(record, {"read_rate": [*rate]})


async def replicate(pair: Pair, device: LoopDevice) -> None:
    await enable(pair, device)
    await pair.vm.initial()
    await pair.state(_S.REPLICATING)
    await pair.cut()


@asynccontextmanager
async def opened(path: str, mode: str, then: str = "") -> AsyncIterator[int]:
    """A process that has the device open, and has done ``then`` with its file ``f``."""
    code = f"import os, sys; f = open({path!r}, {mode!r}, buffering=0); {then or 'pass'}; "
    code += "print('open', flush=True); sys.stdin.read()"
    process = await asyncio.create_subprocess_exec(
        "/usr/bin/python3", "-c", code, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"open\n"
        yield process.pid
    finally:
        await process.communicate(b"")


WRITES = "f.seek(3 << 20), f.write(os.urandom(1 << 16)), os.fsync(f.fileno())"


def is_same(pair: Pair, device: LoopDevice) -> bool:
    return Path(pair.copy.parts.layout.disk(0)).read_bytes() == device.read_bytes()


def causes(pair: Pair) -> list[str]:
    return [cause.code for cause in pair.vm.parts.replication.record.causes]


async def test_what_was_written_past_the_tap_is_found_by_a_compare_of_everything(
    pair: Pair, device: LoopDevice
) -> None:
    await replicate(pair, device)
    watch = AttachmentWatch(pair.primary, ProcDiskUse(), told)
    await watch.look()
    assert (await pair.vm.status()).health == "Normal"
    await pair.until("its acknowledgement", lambda: not pair.vm.parts.moved_on())
    async with opened(device.path, "r+b", WRITES) as pid:
        await watch.look()
        await watch.look()
    await watch.look()
    await watch.look()
    status = await pair.vm.status()
    assert not is_same(pair, device), "the test is about a replica that is wrong"
    assert (status.health, status.protected) == ("Critical", False)
    assert status.state_code == _S.WAITING_FOR_START_RESYNCHRONIZE
    (cause,) = status.causes
    assert cause.code == ResyncCause.BYPASSED
    (opener,) = cause.evidence["openers"]
    assert (opener["pid"], opener["path"]) == (pid, device.path)
    assert opener["program"].startswith("python3") and opener["time"] > 0 and cause.evidence["over_time"] > 0
    assert pair.vm.parts.moved_on(), "these disks may have what the replica does not"
    # It is on record: another agent's process knows it as well.
    await pair.primary.stop()
    await pair.start_primary()
    await pair.healthy()
    assert causes(pair) == [ResyncCause.BYPASSED]
    await pair.vm.resume(resynchronize=True)
    await pair.state(_S.REPLICATING)
    await pair.cut()
    assert is_same(pair, device)
    status = await pair.vm.status()
    assert (status.health, status.causes) == ("Normal", [])
    assert pair.vm.parts.replication.runs.newest(1)[0].kind == "resync", "nothing bounds it"


async def test_reader_of_a_device_costs_nothing(pair: Pair, device: LoopDevice) -> None:
    await replicate(pair, device)
    watch = AttachmentWatch(pair.primary, ProcDiskUse(), told)
    async with opened(device.path, "rb"):
        await watch.look()
    await watch.look()
    assert causes(pair) == [] and (await pair.vm.status()).health == "Normal"


async def test_compare_rests_while_somebody_may_write_and_begins_anew_afterwards(
    pair: Pair, device: LoopDevice
) -> None:
    """What was compared while somebody wrote past the tap proves nothing, so nothing of it may be committed."""
    await replicate(pair, device)
    seen = Seen()
    watch = AttachmentWatch(pair.primary, seen, told)
    pid = os.getpid()
    await watch.look()
    # Seen in the middle of a compare: that one is void.
    await read_rate(pair, MIB)
    await pair.vm.resume(resynchronize=True)
    replication = pair.vm.parts.replication
    await pair.until("an open resync", lambda: replication.record.resync is not None)
    seen.usage = Usage(users=[DiskUser(device.path, pid, "dd", True)])
    await watch.look()
    assert replication.record.resync is None and ResyncCause.BYPASSED in causes(pair)
    await read_rate(pair)
    await pair.until("its rest", lambda: pair.vm.parts.progress and "past the tap" in pair.vm.parts.progress.text)
    status = await pair.vm.status()
    assert (status.state_code, status.protected) == (_S.RESYNCHRONIZING, False)
    assert "watch-disks" in status.waiting
    assert replication.record.resync is None
    # Whoever sees less than the watcher that told it can't say that it is over.
    root: Any = SimpleNamespace(peer=Peer(uid=0))
    await watch.reported(DiskUseParams(usage=seen.usage), root)
    seen.usage = Usage()
    await watch.look()
    assert lasting(replication.record) is not None
    assert replication.record.resync is None and replication.state is _S.RESYNCHRONIZING
    await watch.reported(DiskUseParams(usage=Usage()), root)
    await pair.state(_S.REPLICATING)
    await pair.cut()
    assert is_same(pair, device) and causes(pair) == []


async def test_first_copy_begins_anew_where_somebody_wrote_past_the_tap(pair: Pair, device: LoopDevice) -> None:
    await enable(pair, device)
    await read_rate(pair, MIB)
    seen = Seen()
    watch = AttachmentWatch(pair.primary, seen, told)
    await watch.look()
    replication = pair.vm.parts.replication
    await pair.vm.initial()
    await pair.until("an open first copy", lambda: replication.record.resync is not None)
    begun = replication.record.resync
    seen.usage = Usage(users=[DiskUser(device.path, 1, "dd", True)])
    await watch.look()
    assert replication.record.resync is None and replication.state is _S.INITIAL_REPLICATION_IN_PROGRESS
    await read_rate(pair)
    seen.usage = Usage()
    await watch.look()
    await pair.state(_S.REPLICATING)
    assert begun is not None and replication.record.epoch != begun.epoch
    await pair.cut()
    assert is_same(pair, device) and causes(pair) == []


async def test_end_counts_only_while_the_tap_is_the_one_that_was_known(pair: Pair, device: LoopDevice) -> None:
    """After a restart of the agent, or of the tap, one look alone may be one that left out who has the disks."""
    await replicate(pair, device)
    seen = Seen()
    seen.usage = Usage(users=[DiskUser(device.path, 1, "dd", True)])
    await AttachmentWatch(pair.primary, seen, told).look()
    (cause,) = pair.vm.parts.replication.record.causes
    assert "over_time" not in cause.evidence
    seen.usage = Usage()
    watch = AttachmentWatch(pair.primary, seen, told)
    await watch.look()
    (cause,) = pair.vm.parts.replication.record.causes
    assert "over_time" not in cause.evidence
    await watch.look()
    (cause,) = pair.vm.parts.replication.record.causes
    assert "over_time" in cause.evidence
