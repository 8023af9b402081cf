"""A disk that is resized while its VM runs: noticed, told with the way out, not taken for what it was (R20, P19)."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import msgspec
import pytest

from shared.errors import InvalidStateError
from shared.events import EventId
from shared.planning import ResyncCause
from shared.schedule import ResyncMode
from shared.states import ReplicationState
from shared.status import VmStatus
from tests.pair.rig import WAIT_SECONDS, Pair

MIB = 1 << 20
SIZE = 4 * MIB


async def resized(pair: Pair, size: int) -> VmStatus:
    """Give the disk's file another size; the status once that is told. Nobody writes, and no order is given."""
    told = len(await resize_events(pair))
    os.truncate(pair.disk(0), size)
    deadline = time.monotonic() + WAIT_SECONDS
    while len(await resize_events(pair)) == told:
        assert time.monotonic() < deadline, await pair.vm.status()
        await asyncio.sleep(0.05)
    return await pair.vm.status()


async def resize_events(pair: Pair) -> list[dict[str, object]]:
    return [event["data"] for event in await pair.events(EventId.DISK_RESIZED)]


async def test_a_disk_made_larger_goes_on_at_its_size(pair: Pair) -> None:
    await pair.replicate(SIZE, MIB)
    await pair.write(0, "write -P 1 0 1M")
    await pair.assert_same()
    status = await resized(pair, SIZE + MIB)
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    (cause,) = pair.vm.parts.replication.record.causes
    assert cause.code == ResyncCause.TRACKING_LOST
    assert f"its size was {SIZE} and is {SIZE + MIB}" in cause.text
    assert await resize_events(pair) == [
        {"disk": 0, "size_bytes": SIZE, "before_bytes": SIZE, "found_bytes": SIZE + MIB}
    ]
    assert status.health == "Critical"
    assert any(f"{SIZE} to {SIZE + MIB} bytes" in reason for reason in status.reasons)
    await pair.write(0, "write -P 2 3M 1M")
    await pair.healthy()
    await pair.vm.resume(resynchronize=True)
    await pair.state(ReplicationState.REPLICATING)
    await pair.write(0, "write -P 3 1M 64k")
    await pair.cut()
    theirs = Path(pair.copy.parts.layout.disk(0)).read_bytes()
    assert pair.disk(0).read_bytes()[:SIZE] == theirs
    status = await pair.vm.status()
    assert (status.state, status.protected, status.health) == ("Replicating", True, "Critical")
    assert f"truncate --size {SIZE} {pair.disk(0)}" in status.remedy
    # Back at its size it is well again, once it was compared: nothing shows that only the end was cut off.
    await resized(pair, SIZE)
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    await pair.vm.resume(resynchronize=True)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
    assert (await pair.vm.status()).health == "Normal"


async def test_a_disk_made_smaller_does_not_spoil_its_copy(pair: Pair) -> None:
    """What the disk lost is whole at the replica: no resync begins, ordered or by itself, until the size is back."""
    await pair.replicate(SIZE, MIB)
    await pair.assert_same()
    before = Path(pair.copy.parts.layout.disk(0)).read_bytes()
    vm = pair.vm
    # No cut looks at the disks: whoever asks how the tap is does.
    await vm.set(msgspec.structs.replace(vm.record, interval_seconds=3600.0), {"interval_seconds": 3600.0})
    status = await resized(pair, SIZE - MIB)
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    await pair.healthy()
    assert any("what lay behind that is lost" in reason for reason in status.reasons)
    with pytest.raises(InvalidStateError, match=f"has {SIZE - MIB} bytes, and must have {SIZE}"):
        await vm.resume(resynchronize=True)
    await vm.set(msgspec.structs.replace(vm.record, resync_mode=ResyncMode.AUTOMATIC), {"resync_mode": "automatic"})
    # The guest goes on where there is something left.
    await pair.write(0, "write -P 4 1M 64k")
    await pair.write(1, "write -P 5 0 64k")
    assert vm.parts.replication.state is ReplicationState.WAITING_FOR_START_RESYNCHRONIZE
    assert Path(pair.copy.parts.layout.disk(0)).read_bytes() == before
    await resized(pair, SIZE)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
    events = [(event["before_bytes"], event["found_bytes"]) for event in await resize_events(pair)]
    assert events == [(SIZE, SIZE - MIB), (SIZE - MIB, SIZE)]
